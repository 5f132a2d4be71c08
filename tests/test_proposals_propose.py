"""Search, filter and NMS together; images that are scaled for the search."""

from __future__ import annotations

import torch
from torchvision.ops import box_iou

from data.proposals.box_filter import BoxFilter, filter_boxes
from data.proposals.propose import ProposalSettings, propose
from tests.helpers.two_rectangles import draw


def test_propose_finds_objects_and_obeys_its_settings() -> None:
    image = torch.from_numpy(draw(0)).permute(2, 0, 1)
    boxes = propose([image])[0]
    truth = torch.tensor([[10.0, 8, 40, 40], [50, 20, 74, 52]])
    assert box_iou(truth, boxes).amax(dim=1).min() > 0.8
    overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
    assert overlaps.max() <= 0.5
    assert len(filter_boxes(boxes, 60, 80, BoxFilter())) == len(boxes)
    assert propose([image], ProposalSettings(max_boxes=1))[0].tolist() == boxes[:1].tolist()
    everything = propose([image], ProposalSettings(box_filter=None, nms_iou=1))[0]
    assert len(everything) > len(boxes)


def test_large_images_are_searched_small_and_boxes_scaled_back() -> None:
    image = torch.from_numpy(draw(0).repeat(3, axis=0).repeat(3, axis=1)).permute(2, 0, 1)
    truth = torch.tensor([[30.0, 24, 120, 120], [150, 60, 222, 156]])
    for scene in (image, image.float() / 255):
        boxes = propose([scene], ProposalSettings(search_side=80, nms_iou=1))[0]
        assert box_iou(truth, boxes).amax(dim=1).min() > 0.8
    whole = propose([image], ProposalSettings(box_filter=None, search_side=77, nms_iou=1))[0]
    assert (whole == torch.tensor([0.0, 0, 240, 180])).all(dim=1).any()


def test_one_pixel_image() -> None:
    image = torch.zeros(3, 1, 1, dtype=torch.uint8)
    assert propose([image])[0].shape == (0, 4)  # the one box is larger than 0.8 of the image
    assert propose([image], ProposalSettings(box_filter=None))[0].tolist() == [[0, 0, 1, 1]]
