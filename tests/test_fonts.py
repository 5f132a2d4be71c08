"""Fonts of captions: what Pillow's own cannot show, and files that are no fonts."""

from __future__ import annotations

import unicodedata

import pytest

from data.errors import DataError
from data.fonts import CaptionFont


@pytest.fixture(scope="module")
def font():
    return CaptionFont()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dog 0.93", "dog 0.93"),
        ("  two\n\tlines ", "two lines"),
        ("größe", "grosse"),
        (unicodedata.normalize("NFD", "café"), "cafe"),
        ("№ 5", "No 5"),
        ("zero\u200dwidth\ufeff", "zerowidth"),
        ("bell\a", "bell"),
        ("fish 鱼", "fish ?"),
        ("猫", "nothing left"),
        ("\ud800", "nothing left"),  # JSON can hold half a surrogate pair
        ("❤\ufe0f", "nothing left"),
        ("", "nothing left"),
        (" \n ", "nothing left"),
        ("?", "nothing left"),
    ],
)
def test_what_is_written_with_pillows_own_font(font, text, shown):
    assert font.readable(text, "nothing left") == shown
    assert not font.missing([font.readable(text)])  # what is left can be drawn
    font.at(12).getmask(font.readable(text))


def test_missing_characters_are_named_once(font):
    names = ["dog", "猫 and 猫", "größe", "line\nbreak", "", "❤\ufe0f"]
    assert font.missing(names) == "猫öß❤"
    sentence = font.notice(names)
    assert sentence.count("猫") == 1
    assert "--font" in sentence
    assert font.notice(["dog", "cat 2"]) is None


def test_a_notice_can_be_printed_and_is_short(font):
    sentence = font.notice(["\ud800", *map(chr, range(0x4E00, 0x4F00))])
    sentence.encode("utf-8")
    assert "\\ud800" in sentence
    assert len(sentence) < 200


@pytest.mark.parametrize("content", [None, b"", b"no font"])
def test_files_that_are_no_fonts(tmp_path, content):
    path = tmp_path / "font.ttf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match="font.ttf: cannot be used as a font.*give a TrueType"):
        CaptionFont(path)


def test_a_font_file_is_used(tmp_path, font):
    """Pillow's own font, saved as a file."""
    path = tmp_path / "own.ttf"
    path.write_bytes(font.at(20).path.getvalue())
    other = CaptionFont(path)
    assert other.at(17).path == str(path)
    assert other.at(17).size == font.at(17).size
    assert other.readable("größe") == "grosse"
