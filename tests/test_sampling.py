"""Sampling: torchvision's distribution, and positives first for AlignDet's contrastive loss."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from models.sampling import over_batch, sample_balanced

IDS = torch.tensor([-1, 4, -2, -1, 0, -1, 4, -2, -1, 300])


def draw(matched, count, fraction):
    matched = torch.tensor(matched)
    (chosen,) = sample_balanced([matched], count, fraction)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen.dtype == torch.int64
    return matched[chosen].tolist()


def test_positives_are_limited_and_negatives_fill_up():
    torch.manual_seed(0)
    matched = [5] * 10 + [-1] * 10 + [-2] * 10
    assert draw(matched, 8, 0.25) == [5] * 2 + [-1] * 6
    assert draw(matched, 16, 0.75) == [5] * 10 + [-1] * 6  # there are no more positives
    assert draw(matched, 100, 0.5) == [5] * 10 + [-1] * 10  # all except the ignored
    assert draw(matched, 16, 0.25) == [5] * 4 + [-1] * 10  # positives do not replace negatives
    assert draw(matched, 6, 1.0) == [5] * 6


def test_too_few_or_none_of_a_kind():
    assert draw([-1, -1, -2], 2, 0.5) == [-1, -1]
    assert draw([3, 3, -2], 2, 0.5) == [3]
    assert draw([-2, -2], 2, 0.5) == []
    (chosen,) = sample_balanced([torch.zeros(0, dtype=torch.int64)], 4, 0.5)
    assert chosen.shape == (0,)


def test_distribution_is_torchvisions():
    # 30 positives, 50 negatives, 20 ignored; 24 samples, at most 9 of them positive.
    kinds = torch.tensor([1] * 30 + [0] * 50 + [-1] * 20)  # torchvision: 1, 0, -1
    matched = torch.where(kinds == 1, 7, torch.where(kinds == 0, -1, -2))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    kinds, matched = kinds[order], matched[order]
    sampler = BalancedPositiveNegativeSampler(24, 0.375)
    torch.manual_seed(0)
    ours, theirs, rounds = torch.zeros(100), torch.zeros(100), 3000
    for _ in range(rounds):
        (chosen,) = sample_balanced([matched], 24, 0.375)
        ours[chosen] += 1
        positive, negative = sampler([kinds])
        theirs += positive[0] + negative[0]
        assert len(chosen) == int(positive[0].sum() + negative[0].sum()) == 24
        assert int((matched[chosen] >= 0).sum()) == int(positive[0].sum()) == 9
    # Probabilities are 9 / 30 per positive, 15 / 50 per negative; 5 standard deviations are 0.042.
    expected = torch.where(kinds >= 0, 0.3, 0.0)
    for counts in (ours, theirs):
        assert ((counts / rounds - expected).abs() <= 0.042 * (kinds >= 0)).all()


def test_all_positives_come_before_any_background():
    for seed in range(20):
        torch.manual_seed(seed)
        (chosen,) = sample_balanced([IDS], 6, 1.0)
        assert len(chosen) == 6
        assert {1, 4, 6, 9} <= set(chosen.tolist())
        assert (IDS[chosen] == -1).sum() == 2


def test_too_many_positives_are_cut_to_a_random_part():
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        (chosen,) = sample_balanced([IDS], 2, 1.0)
        assert len(chosen) == len(set(chosen.tolist())) == 2
        assert (IDS[chosen] >= 0).all()
        seen.update(chosen.tolist())
    assert seen == {1, 4, 6, 9}


def test_background_is_drawn_from_everywhere():
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        (chosen,) = sample_balanced([IDS], 5, 1.0)
        seen.update(chosen.tolist())
    assert seen == {0, 1, 3, 4, 5, 6, 8, 9}


def test_ignored_entries_are_never_taken_and_no_random_number_is_drawn_when_all_fit():
    state = torch.random.get_rng_state()
    (chosen,) = sample_balanced([IDS], 100, 1.0)
    assert chosen.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_to_take():
    for ids in (torch.tensor([-2, -2]), torch.zeros(0, dtype=torch.int64)):
        (chosen,) = sample_balanced([ids], 5, 1.0)
        assert chosen.tolist() == []
        assert chosen.dtype == torch.int64
    assert sample_balanced([], 5, 1.0) == []


def slow_sample(matched, count, positive_fraction):
    """One image after the other, positives first."""
    chosen = []
    for row in matched:
        positives = (row >= 0).nonzero().flatten()
        most = int(count * positive_fraction)
        if len(positives) > most:
            positives = positives[torch.randperm(len(positives))[:most]]
        negatives = (row == -1).nonzero().flatten()
        most = count - len(positives)
        if len(negatives) > most:
            negatives = negatives[torch.randperm(len(negatives))[:most]]
        chosen.append(sorted(positives.tolist() + negatives.tolist()))
    return chosen


@pytest.mark.parametrize(("count", "fraction"), [(8, 0.25), (8, 1.0), (100, 0.5), (1, 0.0)])
def test_a_batch_draws_as_its_images_one_after_the_other(count, fraction):
    """A run repeats itself, whatever is done for all images at once."""
    matched = [torch.randint(-2, 3, (size,)) for size in (40, 25, 0, 60)]
    torch.manual_seed(3)
    chosen = sample_balanced(matched, count, fraction)
    torch.manual_seed(3)
    assert [c.tolist() for c in chosen] == slow_sample(matched, count, fraction)


def test_indices_over_the_batch():
    anchors = torch.arange(12).view(3, 4)
    chosen = [torch.tensor([0, 3]), torch.zeros(0, dtype=torch.int64), torch.tensor([1])]
    assert anchors.flatten()[over_batch(chosen, 4)].tolist() == [0, 3, 9]
