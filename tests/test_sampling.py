"""Sampling of predictions for the contrast: what must, may and must not be taken."""

from __future__ import annotations

import torch

from aligndet.sampling import sample_positives_first

IDS = torch.tensor([-1, 4, -2, -1, 0, -1, 4, -2, -1, 300])


def test_all_positives_come_before_any_background():
    for seed in range(20):
        torch.manual_seed(seed)
        chosen = sample_positives_first(IDS, 6)
        assert len(chosen) == 6
        assert {1, 4, 6, 9} <= set(chosen.tolist())
        assert (IDS[chosen] == -1).sum() == 2


def test_more_positives_than_room_gives_a_random_part_of_them():
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        chosen = sample_positives_first(IDS, 2)
        assert len(chosen) == len(set(chosen.tolist())) == 2
        assert (IDS[chosen] >= 0).all()
        seen.update(chosen.tolist())
    assert seen == {1, 4, 6, 9}


def test_background_is_drawn_from_everywhere():
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        seen.update(sample_positives_first(IDS, 5).tolist())
    assert seen == {0, 1, 3, 4, 5, 6, 8, 9}


def test_ignored_entries_are_never_taken_and_nothing_is_drawn_when_all_fit():
    state = torch.random.get_rng_state()
    chosen = sample_positives_first(IDS, 100)
    assert chosen.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_to_take():
    for ids in (torch.tensor([-2, -2]), torch.zeros(0, dtype=torch.int64)):
        assert sample_positives_first(ids, 5).tolist() == []
        assert sample_positives_first(ids, 5).dtype == torch.int64
