import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection.roi_heads import (
    maskrcnn_loss,
    paste_masks_in_image,
    project_masks_on_boxes,
)

from models.mask_head import MASKS_AT_ONCE, MaskHead, MaskHeadConfig, cut_masks, paste_masks
from tests.helpers.assertions import assert_finite_gradients

K = 3
STRIDES = (4, 8, 16, 32)
SMALL = MaskHeadConfig(channels=16, mask_convs=2)
SIDE = 128  # px, of the images
EMPTY = torch.zeros(0, 4)
ROIS = [
    torch.tensor([[12.0, 10, 60, 58], [0, 0, 30, 30], [90, 20, 124, 110], [10, 20, 124, 120]]),
    torch.tensor([[5.0, 8, 90, 70], [100, 100, 128, 120.5]]),
]
NO_INDEX = torch.zeros(0, dtype=torch.int64)


def head(**changes) -> MaskHead:
    torch.manual_seed(0)
    return MaskHead(replace(SMALL, **changes), K, STRIDES)


def features(channels: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, channels, SIDE // s, SIDE // s, generator=generator) for s in STRIDES]


def random_masks(count: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """Half planes: (count, height, width) uint8, each with both values."""
    generator = torch.Generator().manual_seed(count)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    a, b = torch.randn(2, count, 1, 1, generator=generator)
    return (a * (x - width / 2) + b * (y - height / 2) > 0).to(torch.uint8)


def random_rois(count: int, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    return corners.flatten(1) * SIDE


@pytest.mark.parametrize("norm", ["none", "gn", "bn"])
@pytest.mark.parametrize(("agnostic", "number"), [(True, 1), (False, K)])
def test_shapes(norm, agnostic, number):
    model = head(mask_norm=norm, mask_class_agnostic=agnostic).train()
    inside = model.mask_features(features(), ROIS)
    assert inside.shape == (6, 16, 14, 14)
    assert model.logits_from(inside).shape == (6, number, 28, 28)
    empty = model(features(), [EMPTY, EMPTY])
    assert empty.shape == (0, number, 28, 28)
    empty.sum().backward()
    assert_finite_gradients(model)
    assert all(b.isfinite().all() for b in model.buffers())


def test_settings_make_the_layers():
    model = head(channels=32, mask_convs=3, mask_norm="gn", mask_roi_size=7)
    assert sum(isinstance(layer, nn.Conv2d) for layer in model.convs) == 3
    assert sum(isinstance(layer, nn.GroupNorm) for layer in model.convs) == 3
    assert model(features(32), ROIS).shape == (6, 1, 14, 14)
    with pytest.raises(ValueError, match="model.options.mask_norm is 'syncbn'.*none, gn, bn"):
        MaskHeadConfig(mask_norm="syncbn")


def test_initialisation():
    model = head(channels=64, mask_convs=4, mask_norm="none")
    inside = model.mask_features(features(64), ROIS)
    assert 0.3 < inside.pow(2).mean().sqrt() < 3
    assert 0.3 < model.upsample(inside).relu().pow(2).mean().sqrt() < 3
    probabilities = model.logits_from(inside).sigmoid()  # a fresh head knows nothing
    assert (probabilities - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("count", [1, 5, MASKS_AT_ONCE, 2 * MASKS_AT_ONCE + 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_masks_are_cut_out_as_torchvision_does(count, dtype):
    masks, rois = random_masks(count, 96, 120).to(dtype), random_rois(40)
    matched = torch.randint(count, (40,), generator=torch.Generator().manual_seed(3))
    found = cut_masks(masks, rois, matched, 28, aligned=False)
    assert torch.equal(found, project_masks_on_boxes(masks, rois, matched, 28))
    assert found.unique().numel() > 2


def test_a_cell_of_an_aligned_cut_is_the_mean_of_its_pixels():
    masks = torch.randint(2, (2, 40, 50), generator=torch.Generator().manual_seed(0))
    masks = masks.to(torch.uint8)
    rois = torch.tensor([[6.0, 4, 26, 34], [10, 0, 30, 30]])  # cells of 4 x 6 pixels
    found = cut_masks(masks, rois, torch.tensor([1, 0]), 5, aligned=True)
    for cut, mask, (left, top) in ((found[0], masks[1], (6, 4)), (found[1], masks[0], (10, 0))):
        for row in range(5):
            for column in range(5):
                x, y = left + 4 * column, top + 6 * row
                mean = mask[y : y + 6, x : x + 4].float().mean()
                torch.testing.assert_close(cut[row, column], mean)


def test_without_masks_or_rois_nothing_is_cut_out():
    assert cut_masks(random_masks(3), EMPTY, NO_INDEX, 28, True).shape == (0, 28, 28)
    nothing = torch.zeros(0, SIDE, SIDE, dtype=torch.uint8)
    assert cut_masks(nothing, EMPTY, NO_INDEX, 28, True).shape == (0, 28, 28)


def test_rois_whose_box_has_a_mask_are_positive():
    masks = [random_masks(3), torch.zeros(0, SIDE, SIDE, dtype=torch.uint8), random_masks(1)]
    masks[0][1] = 0  # box 1 has none
    rois = [torch.arange(24.0).reshape(6, 4), torch.ones(2, 4), torch.zeros(1, 4)]
    matched = [torch.tensor([2, -1, 1, 0, -2, 2]), torch.tensor([-1, -1]), torch.tensor([0])]
    chosen, boxes = head().positives(rois, matched, masks)
    assert [b.tolist() for b in boxes] == [[2, 0, 2], [], [0]]
    assert [r.tolist() for r in chosen] == [rois[0][[0, 3, 5]].tolist(), [], [[0.0] * 4]]
    assert torch.equal(head().positives(rois, matched, [m.bool() for m in masks])[1][0], boxes[0])


def test_positives_beyond_the_limit_are_drawn():
    masks, seen = [random_masks(2), random_masks(2)], set()
    matched = [torch.tensor([0, 1, -1, 1, 0]), torch.tensor([-1, 1])]
    rois = [torch.arange(20.0).reshape(5, 4), torch.arange(8.0).reshape(2, 4)]
    model = head()
    for _ in range(40):
        (first, second), (boxes, one) = model.positives(rois, matched, masks, limit=2)
        assert len(first) == 2
        rows = (first[:, 0] / 4).long()
        assert torch.equal(matched[0][rows], boxes)
        assert second.tolist() == [[4, 5, 6, 7]]
        assert one.tolist() == [1]
        seen.add(tuple(sorted(rows.tolist())))
    assert seen == set(itertools.combinations((0, 1, 3, 4), 2))  # all pairs, sooner or later


@pytest.mark.parametrize("agnostic", [True, False])
def test_loss_equals_a_slow_loop(agnostic):
    generator = torch.Generator().manual_seed(4)
    model = head(mask_class_agnostic=agnostic)
    masks = [random_masks(3), random_masks(2)]
    matched = [torch.tensor([2, 0, 1, 2]), torch.tensor([1, 0])]
    labels = [torch.tensor([2, 0, 1]), torch.tensor([1, 2])]
    logits = torch.randn(6, 1 if agnostic else K, 28, 28, generator=generator) * 3
    found = model.losses(logits, ROIS, matched, masks, None if agnostic else labels)
    terms, row = [], 0
    for image in range(2):
        goals = cut_masks(masks[image], ROIS[image], matched[image], 28, aligned=True)
        for goal, box in zip(goals, matched[image].tolist(), strict=True):
            p = logits[row, 0 if agnostic else labels[image][box]].double().sigmoid()
            terms.append(-(goal * p.log() + (1 - goal) * (1 - p).log()).mean())
            row += 1
    assert found.keys() == {"loss_mask"}
    torch.testing.assert_close(found["loss_mask"].double(), sum(terms) / 6, rtol=1e-5, atol=0)


def test_loss_is_torchvisions():
    model = head(mask_class_agnostic=False, roi_aligned=False)
    masks, labels = [random_masks(3), random_masks(2)], [torch.tensor([2, 0, 1])] * 2
    matched = [torch.tensor([2, 0, 1, 2]), torch.tensor([1, 0])]
    logits = torch.randn(6, K, 28, 28, generator=torch.Generator().manual_seed(4))
    expected = maskrcnn_loss(logits, ROIS, masks, labels, matched)
    found = model.losses(logits, ROIS, matched, masks, labels)["loss_mask"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("agnostic", [True, False])
def test_no_rois_give_a_zero_that_is_attached_to_the_graph(agnostic):
    model = head(mask_class_agnostic=agnostic)
    masks = [torch.zeros(0, SIDE, SIDE, dtype=torch.uint8), random_masks(2)]
    labels = [NO_INDEX, torch.tensor([0, 1])]
    logits = model(features(), [EMPTY, EMPTY])
    loss = model.losses(logits, [EMPTY, EMPTY], [NO_INDEX] * 2, masks, labels)["loss_mask"]
    assert loss == 0
    loss.backward()
    assert_finite_gradients(model)


def test_detections_get_the_masks_of_their_class():
    model = head(mask_class_agnostic=False)
    labels = [torch.tensor([2, 0, 1, 2]), torch.tensor([1, 0])]
    scores = [torch.rand(4), torch.rand(2)]
    found = [
        {"boxes": b, "scores": s, "labels": y} for b, s, y in zip(ROIS, scores, labels, strict=True)
    ]
    expected = model(features(), ROIS).sigmoid()
    with_masks = model.detections(features(), found)
    assert [d["masks"].shape for d in with_masks] == [(4, 28, 28), (2, 28, 28)]
    masks = torch.cat([d["masks"] for d in with_masks])
    for row, label in enumerate(torch.cat(labels).tolist()):
        assert torch.equal(masks[row], expected[row, label])
    for before, after in zip(found, with_masks, strict=True):
        assert list(after) == ["boxes", "scores", "labels", "masks"]
        assert all(after[key] is before[key] for key in before)
    assert "masks" not in found[0]

    nothing = {"boxes": EMPTY, "scores": torch.zeros(0), "labels": NO_INDEX}
    one, none = model.detections(features(), [found[0], nothing])
    torch.testing.assert_close(one["masks"], masks[:4])
    assert none["masks"].shape == (0, 28, 28)
    assert head().detections(features(), [nothing, nothing])[1]["masks"].shape == (0, 28, 28)


@pytest.mark.parametrize("size", [(128, 128), (60, 100), (7, 5)])
def test_masks_are_pasted_as_torchvision_does(size):
    generator = torch.Generator().manual_seed(5)
    boxes = torch.cat((
        random_rois(40),  # some of them stick out of the smaller images, or lie beside them
        random_rois(20, 6) / 20,
        torch.tensor([[-30.0, -9, 20, 30], [100, 90, 150, 170], [3, 3, 3, 3], [0, 0, 128, 128]]),
    ))  # fmt: skip
    masks = torch.rand(len(boxes), 28, 28, generator=generator)
    found = paste_masks(masks, boxes, size)
    assert found.dtype == torch.uint8
    assert found.shape == (len(boxes), *size)
    # Pasted into a large image, as torchvision cannot paste what lies beside its image.
    expected = paste_masks_in_image(masks[:, None], boxes, (200, 200))[:, 0] > 0.5
    assert torch.equal(found, expected[:, : size[0], : size[1]].to(torch.uint8))
    fewer = paste_masks(masks, boxes, size, threshold=0.7)
    assert (fewer <= found).all()
    assert fewer.sum() < found.sum()
    assert paste_masks(masks[:0], boxes[:0], size).shape == (0, *size)


def test_a_full_mask_fills_its_box():
    boxes = torch.tensor([[30.0, 40, 86, 124]])
    (found,) = paste_masks(torch.ones(1, 28, 28), boxes, (160, 120))
    rows, columns = found.any(dim=1).nonzero(), found.any(dim=0).nonzero()
    assert found.sum() == len(rows) * len(columns) - 4  # a rectangle without its corners
    for found_at, expected in ((rows, (40, 124)), (columns, (30, 86))):
        assert abs(found_at.min() - expected[0]) <= 1
        assert abs(found_at.max() + 1 - expected[1]) <= 1


def test_what_is_cut_out_and_pasted_is_the_mask_again():
    masks = random_masks(6)
    boxes = torch.tensor([[20.0, 24, 110, 100]]).repeat(6, 1)
    cut = cut_masks(masks, boxes, torch.arange(6), 28, aligned=True)
    pasted = paste_masks(cut, boxes, (SIDE, SIDE))
    box = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    box[24:100, 20:110] = 1
    wrong = (pasted != masks * box).sum(dim=(1, 2))
    assert (wrong < 4 * 0.5 * (76 + 90)).all()  # its outline and that of the box, by half a pixel
    assert (pasted.sum(dim=(1, 2)) > 2000).all()
