"""Ideas for pre-training that the study measures: what each changes, and that the rest stays."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from aligndet import adapters
from aligndet.box_domain import BoxDomain, BoxDomainConfig
from data import transforms
from experiments.variants import (
    Clusters,
    ManyOperations,
    Variant,
    VariantBoxDomain,
    part_of,
    visible,
)
from models import build_detector
from tests.helpers.small_detectors import model_config

CHANGED = {
    "likeness": 0.9,
    "background": 0.5,
    "both_views": True,
    "predictor": True,
    "queue": 64,
    "classes": 3,
}


@pytest.fixture
def task(monkeypatch):
    """A box domain with a variant, or without any."""
    monkeypatch.setattr(adapters, "sample_balanced", adapters.sample_balanced)

    def build(name, variant=None):
        torch.manual_seed(0)
        detector = build_detector(model_config(name), num_classes=1)
        config = BoxDomainConfig(embedding_width=16, samples=128)
        if variant is None:
            return BoxDomain(detector, name, config)
        monkeypatch.setattr(VariantBoxDomain, "variant", variant)
        return VariantBoxDomain(detector, name, config)

    return build


def test_one_match_for_both_views_leaves_the_online_branch_as_it_is(task):
    """The second view's boxes are mirrored here, so that other queries answer for them."""
    seen = []
    for one in (True, False):
        model = task("detr", Variant(one_match=one))
        model.online.register_forward_hook(lambda m, args, output: seen.append(output))
        model.target.register_forward_hook(lambda m, args, output: seen.append(output))
        view1, view2 = batch()
        flip = torch.tensor([96.0, 0, 96, 0]), torch.tensor([2, 1, 0, 3])
        mirrored = [
            (flip[0] - b * torch.tensor([1.0, -1, 1, -1]))[:, flip[1]] for b in view2["boxes"]
        ]
        found, _ = model((view1, {**view2, "boxes": mirrored}))
        seen.append({k: v.item() for k, v in found.items()})
    online, given, losses_given, _, own, losses_own = seen
    assert losses_given["loss_box"] == losses_own["loss_box"]
    assert losses_given["loss_contrast"] != losses_own["loss_contrast"]
    assert sorted(given.ids.tolist()) == sorted(own.ids.tolist())
    assert given.matched is online.matched
    assert any(not torch.equal(a, b) for a, b in zip(given.matched, own.matched, strict=True))


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    boxes = [torch.tensor([[4.0, 4, 60, 60], [20, 30, 90, 90]]), torch.tensor([[10.0, 10, 80, 50]])]
    views = [
        {
            "images": torch.randn(2, 3, 96, 96, generator=generator),
            "image_sizes": torch.tensor([[96, 96]] * 2),
            "boxes": boxes,
        }
        for _ in range(2)
    ]
    return tuple(views)


def losses(task, steps=1):
    for seed in range(steps):
        torch.manual_seed(seed)
        found, _ = task(batch(seed))
    return found


@pytest.mark.parametrize("name", ["fcos", "retinanet", "detr"])
def test_a_variant_that_changes_nothing(task, name):
    expected, found = losses(task(name)), losses(task(name, Variant()))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("name", ["fcos", "retinanet"])
@pytest.mark.parametrize("idea", CHANGED)
def test_each_idea_changes_the_loss_and_can_be_trained(task, name, idea):
    plain = losses(task(name), steps=2)
    changed = task(name, Variant(**{idea: CHANGED[idea]}))
    found = losses(changed, steps=2)  # the queue is empty in the first
    assert found.keys() != plain.keys() or any(
        not torch.equal(value, plain[key]) for key, value in found.items()
    )
    assert any(not torch.equal(value, plain.get(key, value)) for key, value in found.items()) or (
        found.keys() != plain.keys()
    )
    torch.stack(list(found.values())).sum().backward()
    for parameter_name, parameter in changed.named_parameters():
        trained = parameter.requires_grad and "neck.p" not in parameter_name
        assert not trained or parameter.grad is not None, parameter_name


def test_the_contrast_is_the_equation(task):
    """Every pair by itself, in a loop."""
    domain = task("fcos", Variant(both_views=True, likeness=0.5))
    generator = torch.Generator().manual_seed(3)
    query, key = (F.normalize(torch.randn(6, 16, generator=generator), dim=1) for _ in range(2))
    ids, key_ids = torch.tensor([0, 0, 1, 2, -1, 1]), torch.tensor([0, 1, 1, -1, 2, -1])
    instances = F.normalize(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1]]), dim=1)  # 0 is like 1
    alike = {(0, 1), (1, 0)}
    tau = domain.config.temperature
    of_id = {}
    for i, mine in enumerate(ids.tolist()):
        if mine < 0:
            continue
        others = [(key[j], int(key_ids[j]), True) for j in range(6)]
        others += [(query[j], int(ids[j]), j != i) for j in range(6)]
        s = [(float(query[i] @ o) / tau, theirs, counts) for o, theirs, counts in others]
        negatives = [v for v, theirs, _ in s if theirs != mine and (mine, theirs) not in alike]
        total = torch.tensor(negatives).exp().sum()
        pairs = [
            -torch.log(torch.tensor(v).exp() / (torch.tensor(v).exp() + total))
            for v, theirs, counts in s
            if theirs == mine and counts
        ]
        if pairs:
            of_id.setdefault(mine, []).append(torch.stack(pairs).mean())
    expected = torch.stack([torch.stack(values).mean() for values in of_id.values()]).mean()
    target = adapters.BranchOutput(key, key_ids, {}, ())
    torch.testing.assert_close(domain.contrast(query, target, ids, instances), expected)


def test_saved_weights(task):
    online = task("fcos", Variant(save="online"))
    saved = {}
    for branch in ("online", "target", "mean"):
        domain = task("fcos", Variant(save=branch))
        with torch.no_grad():
            for parameter in domain.target.parameters():
                parameter += 2.0
        saved[branch] = domain.weights()
    assert saved["target"].keys() == saved["mean"].keys() == online.weights().keys()
    trained = {name.removeprefix("detector.") for name, _ in online.online.named_parameters()}
    for name, value in saved["online"].items():
        moved = name in trained
        torch.testing.assert_close(saved["target"][name], value + 2.0 if moved else value)
        torch.testing.assert_close(saved["mean"][name], value + 1.0 if moved else value)


def test_clusters_find_groups():
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(4, 16, generator=generator), dim=1)
    group = torch.randint(4, (400,), generator=generator)
    noise = 0.05 * torch.randn(400, 16, generator=generator)
    features = F.normalize(centres[group] + noise, dim=1)
    torch.manual_seed(0)
    clusters = Clusters(8, warm_up=400)
    assert not clusters.assign(features).any()
    found = clusters.assign(features)
    for cluster in found.unique():
        assert len(group[found == cluster].unique()) == 1


def test_two_operations_reach_the_views(monkeypatch):
    """The views of a dataset, not only a call of the transform, are changed twice."""
    seen = []
    monkeypatch.setattr(transforms, "photometric", lambda image, *rest: seen.append(rest) or image)
    augment = ManyOperations((8,), 8, 0.5, photometric=True)
    augment.with_masks(Image.new("RGB", (8, 8)), torch.zeros(1, 4), None, random.Random(0))
    assert len(seen) == ManyOperations.number == 2


def test_a_part_of_an_image():
    image, rng = Image.new("RGB", (200, 100)), random.Random(0)
    for _ in range(50):
        x1, y1, x2, y2 = part_of(image, 0.3, rng)
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 100
        assert 0.28 < (x2 - x1) * (y2 - y1) / 20000 <= 1
        assert (x2 - x1) / (y2 - y1) == pytest.approx(2, abs=0.05)
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 60]])
    assert visible(boxes, (10, 0, 40, 40)).tolist() == [0.0, 0.5, 0.0]
