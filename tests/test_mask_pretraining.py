"""What box-domain pre-training teaches the mask head of Mask R-CNN, and what fine-tuning takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from aligndet import checkpoint
from aligndet.box_domain import BoxDomain, BoxDomainConfig
from aligndet.transfer import TransferConfig, load_pretrained, pretrained_file
from data.coco import Categories
from models import build_detector
from tests.helpers.small_detectors import OPTIONS, model_config

SIZE = (64, 96)
BOXES = [torch.tensor([[8.0, 8, 40, 56], [50, 10, 90, 40]]), torch.tensor([[20.0, 4, 84, 60]])]


def diamonds(boxes):
    """(M, 64, 96) masks: the diamond in each box."""
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in SIZE), indexing="ij")
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    of_x = (x - centre[:, 0, None, None]).abs() / half[:, 0, None, None]
    of_y = (y - centre[:, 1, None, None]).abs() / half[:, 1, None, None]
    return (of_x + of_y <= 1).to(torch.uint8)


def batch(with_masks=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = [
        {
            "images": torch.randn(2, 3, *SIZE, generator=generator),
            "image_sizes": [SIZE] * 2,
            "boxes": BOXES,
        }
        for _ in range(2)
    ]
    if with_masks:
        views[0]["masks"] = [diamonds(boxes) for boxes in BOXES]
    return tuple(views)


def build(**options):
    torch.manual_seed(0)
    detector = build_detector(model_config("mask_rcnn"), num_classes=1)
    return BoxDomain(detector, "mask_rcnn", BoxDomainConfig(embedding_width=16, **options))


def mask_loss(task, seed=0):
    torch.manual_seed(seed)
    return task(batch())[0]["loss_mask"]


def test_the_loss_is_that_of_the_regions_of_the_proposals():
    """RoI by RoI: the mask of its box, cut to it, against what the head says of it."""
    task, seen = build(), {}
    adapter = task.online
    head = adapter.detector.mask_head
    head.register_forward_pre_hook(lambda m, args: seen.update(features=args[0], rois=args[1]))
    found = mask_loss(task)
    sides, terms = head.config.mask_roi_size * 2, []
    with torch.no_grad():
        logits = head(seen["features"], seen["rois"]).split([len(rois) for rois in seen["rois"]])
        matched = adapter.detector.roi_head.assign(seen["rois"], BOXES)
    for rois, boxes, of_rois, predicted in zip(seen["rois"], BOXES, matched, logits, strict=True):
        assert len(rois) > 0
        for roi, box, logit in zip(rois, of_rois, predicted, strict=True):
            # The middle of each cell of the RoI: inside the diamond or not.
            x1, y1, x2, y2 = roi.tolist()
            step = (torch.arange(sides) + 0.5) / sides
            x, y = x1 + step * (x2 - x1), y1 + step * (y2 - y1)
            centre, half = (
                (boxes[box, :2] + boxes[box, 2:]) / 2,
                (boxes[box, 2:] - boxes[box, :2]) / 2,
            )
            inside = ((x - centre[0]).abs() / half[0])[None] + ((y - centre[1]).abs() / half[1])[
                :, None
            ]
            terms.append(F.binary_cross_entropy_with_logits(logit[0], (inside <= 1).float()))
    # Cells on an edge count by halves in the product, and as a whole here.
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=0.02)


def test_it_learns():
    task = build()
    optimizer = torch.optim.AdamW(task.online.detector.mask_head.parameters(), lr=0.01)
    first = mask_loss(task).item()
    for _ in range(12):
        optimizer.zero_grad()
        mask_loss(task).backward()
        optimizer.step()
    assert mask_loss(task).item() < 0.8 * first


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_weight_of_the_loss(weight):
    task = build(mask_weight=weight)
    torch.manual_seed(0)
    losses, _ = task(batch(with_masks=weight > 0))
    torch.stack(list(losses.values())).sum().backward()
    head = task.online.detector.mask_head
    if weight:
        torch.testing.assert_close(losses["loss_mask"], 0.5 * mask_loss(build()))
        assert all(parameter.grad.any() for parameter in head.parameters())
    else:  # the authors': no masks are needed, and the head stays as it is
        assert "loss_mask" not in losses
        assert not any(parameter.requires_grad for parameter in head.parameters())


def test_boxes_without_masks_leave_the_loss_out():
    views = batch()
    views[0]["masks"] = [torch.zeros_like(masks) for masks in views[0]["masks"]]
    task = build()
    losses, _ = task(views)
    assert losses["loss_mask"].item() == 0
    losses["loss_mask"].backward()  # still attached: two ranks have the same gradients to average
    assert task.online.detector.mask_head.predictor.weight.grad is not None


@pytest.mark.parametrize("agnostic", [True, False])
def test_fine_tuning_takes_the_mask_head(tmp_path, agnostic):
    """Its last layer only where both stages have one mask for all classes."""
    task, path = build(), tmp_path / "weights.pt"
    checkpoint.save(pretrained_file(task.weights(), model_config("mask_rcnn")), path)
    options = {**OPTIONS["mask_rcnn"], "mask_class_agnostic": agnostic}
    torch.manual_seed(1)
    detector = build_detector(model_config("mask_rcnn", options=options), num_classes=3)
    categories = Categories((1, 2, 3), ("a", "b", "c"))
    manifest = load_pretrained(detector, "mask_rcnn", path, categories, TransferConfig())
    pretrained = task.online.detector.mask_head.state_dict()
    for name, value in detector.mask_head.state_dict().items():
        of_classes = name.startswith("predictor.") and not agnostic
        assert (f"mask_head.{name}" in manifest.fresh) == of_classes
        if not of_classes:
            assert torch.equal(value, pretrained[name])
    # One switch away: the authors' fine-tuning, whose mask head is random.
    torch.manual_seed(1)
    random_head = build_detector(model_config("mask_rcnn", options=options), num_classes=3)
    left_out = TransferConfig(leave_out=("mask_head.",))
    manifest = load_pretrained(random_head, "mask_rcnn", path, categories, left_out)
    fresh = [name for name in manifest.fresh if name.startswith("mask_head.")]
    assert len(fresh) == len(pretrained)
