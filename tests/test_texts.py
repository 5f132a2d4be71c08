"""Texts come back as they were put in."""

from __future__ import annotations

import pickle

import pytest

from data.texts import Texts

GIVEN = ["a.jpg", "", "b/é😀.png", "\udcff", "line\nbreak"]


def test_texts_come_back():
    texts = Texts.of(iter(GIVEN))
    assert list(texts) == GIVEN
    assert texts == GIVEN
    assert texts != GIVEN[:-1]
    assert (texts[2], texts[-1], texts[1:3]) == (GIVEN[2], GIVEN[-1], GIVEN[1:3])
    assert "b/é😀.png" in texts
    assert list(pickle.loads(pickle.dumps(texts))) == GIVEN


def test_none():
    assert list(Texts.of([])) == []


@pytest.mark.parametrize("index", [5, -6])
def test_wrong_indices_are_refused(index):
    with pytest.raises(IndexError):
        Texts.of(GIVEN)[index]
