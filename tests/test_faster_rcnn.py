from dataclasses import replace

import pytest
import torch
from torch import nn

from models import ModelConfig, build_detector
from models.backbone import build_backbone
from models.faster_rcnn import FasterRCNN, FasterRCNNConfig, add_boxes
from tests.helpers.assertions import assert_finite_gradients
from tests.helpers.labelled_batch import NOTHING, SIZES, TARGETS, K, batch

LEVELS = ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))  # of a batch of 128 x 160
SMALL = FasterRCNNConfig(
    channels=32, box_features=64, proposals_train=60, proposals_test=40, roi_samples=64
)


def small_faster_rcnn(config: FasterRCNNConfig = SMALL) -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(build_backbone("resnet18"), config, K)


LOSSES = ["loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box"]


def test_pyramid_and_levels():
    model = small_faster_rcnn()
    features = model.pyramid(batch())
    assert [tuple(f.shape) for f in features] == [(2, 32, h, w) for h, w in LEVELS]
    assert model.strides == model.rpn.strides == (4, 8, 16, 32, 64)
    assert model.roi_head.strides == (4, 8, 16, 32)
    assert torch.equal(features[4], features[3][:, :, ::2, ::2])


@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], NOTHING[0]], NOTHING])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"box_head": "2fc", "box_norm": "none", "class_agnostic": False},
        {"box_norm": "bn", "fpn_norm": "bn", "rpn_convs": 2, "box_loss": "giou"},
        {"fpn_norm": "gn", "rpn_box_loss": "giou"},
    ],
)
def test_every_trained_parameter_gets_a_finite_gradient(targets, options):
    model = small_faster_rcnn(replace(SMALL, **options)).train()
    losses = model(batch(), SIZES, targets)
    assert list(losses) == LOSSES
    assert all(v.shape == () and v.isfinite() for v in losses.values())
    for name in ("loss_rpn_box", "loss_box"):
        assert (losses[name] > 0) == (targets is not NOTHING)
    sum(losses.values()).backward()
    assert_finite_gradients(model)


def test_ground_truth_is_among_the_rois():
    # Untrained proposals miss the boxes; only the boxes themselves give positive RoIs.
    boxes = [t["boxes"] for t in TARGETS]
    proposals = [torch.tensor([[0.0, 0, 5, 5]]), torch.zeros(0, 4)]
    rois = add_boxes(proposals, boxes)
    assert [len(r) for r in rois] == [4, 1]
    model = small_faster_rcnn()
    assert [m.tolist() for m in model.roi_head.assign(rois, boxes)] == [[-1, 0, 1, 2], [0]]


def test_training_uses_more_proposals(monkeypatch):
    model, limits = small_faster_rcnn(), []
    propose = model.rpn.propose

    def record(output, sizes, topk, limit):
        limits.append((topk, limit))
        return propose(output, sizes, topk, limit)

    monkeypatch.setattr(model.rpn, "propose", record)
    model(batch(), SIZES, TARGETS)
    model(batch(), SIZES)
    assert limits == [(2000, 60), (1000, 40)]


def test_bfloat16_autocast(monkeypatch):
    """With the same proposals and all of them in the losses, since rounding changes the order of
    the proposals of an untrained RPN, and with it which RoIs there are."""
    model = small_faster_rcnn(
        replace(SMALL, score_threshold=0.0, rpn_samples=10**6, roi_samples=10**6)
    )
    with torch.no_grad():
        proposals = model.rpn.propose(model.rpn(model.pyramid(batch())), SIZES, 1000, 60)
    monkeypatch.setattr(model.rpn, "propose", lambda *args: proposals)
    full = model(batch(), SIZES, TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch(), SIZES, TARGETS)
        found = model(batch(), SIZES)
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[key], rtol=0.1, atol=0.0)
    sum(losses.values()).backward()
    assert all(d["boxes"].dtype == d["scores"].dtype == torch.float32 for d in found)


def test_options_of_both_stages_reach_them():
    options = {"channels": 32, "rpn_convs": 2, "box_head": "2fc", "fpn_norm": "gn"}
    config = ModelConfig("faster_rcnn", "resnet18", options=options)
    model = build_detector(config, K)
    assert isinstance(model, FasterRCNN)
    assert model.config == FasterRCNNConfig(**options)
    assert len(model.rpn.tower) == 4
    assert len(model.roi_head.convs) == 0
    assert isinstance(model.neck.lateral[0][1], nn.GroupNorm)


def test_bad_options():
    with pytest.raises(ValueError, match="fpn_norm is 'ln'"):
        FasterRCNNConfig(fpn_norm="ln")
    with pytest.raises(ValueError, match="box_head is '1fc'"):
        FasterRCNNConfig(box_head="1fc")
    with pytest.raises(ValueError, match="rpn_box_loss is 'l2'"):
        FasterRCNNConfig(rpn_box_loss="l2")
