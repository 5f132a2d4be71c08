from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from models import ModelConfig, build_detector
from models.backbone import build_backbone
from models.faster_rcnn import FasterRCNN, FasterRCNNConfig, add_boxes

K = 3
SIZES = torch.tensor([[128, 160], [100, 130]])
LEVELS = ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))  # of a batch of 128 x 160
SMALL = FasterRCNNConfig(
    channels=32, box_features=64, proposals_train=60, proposals_test=40, roi_samples=64
)


def small_faster_rcnn(config: FasterRCNNConfig = SMALL) -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(build_backbone("resnet18"), config, K)


def batch() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 128, 160)


def target(boxes: list, labels: list) -> dict[str, torch.Tensor]:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}


TARGETS = [
    target([[10, 12, 50, 70], [20.5, 20, 100, 120], [3, 3, 150, 60]], [0, 2, 1]),
    target([[60, 30, 90, 77.5]], [1]),
]
NOTHING = [target([], []), target([], [])]
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
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_ground_truth_is_among_the_rois():
    # Untrained proposals miss the boxes; without the boxes there would be no positive RoI.
    boxes = [t["boxes"] for t in TARGETS]
    proposals = [torch.tensor([[0.0, 0, 5, 5]]), torch.zeros(0, 4)]
    rois = add_boxes(proposals, boxes)
    assert [len(r) for r in rois] == [4, 1]
    model = small_faster_rcnn()
    assert [m.tolist() for m in model.roi_head.assign(rois, boxes)] == [[-1, 0, 1, 2], [0]]


def test_proposals_are_more_in_training(monkeypatch):
    model, limits = small_faster_rcnn(), []
    propose = model.rpn.propose

    def record(output, sizes, topk, limit):
        limits.append((topk, limit))
        return propose(output, sizes, topk, limit)

    monkeypatch.setattr(model.rpn, "propose", record)
    model(batch(), SIZES, TARGETS)
    model(batch(), SIZES)
    assert limits == [(2000, 60), (1000, 40)]


@pytest.mark.parametrize("training", [True, False])
def test_targets_alone_choose_what_forward_returns(training):
    model = small_faster_rcnn().train(training)
    assert isinstance(model(batch(), SIZES, TARGETS), dict)
    assert isinstance(model(batch(), SIZES), list)


def test_detections_lie_in_the_true_image():
    found = small_faster_rcnn(replace(SMALL, score_threshold=0.01))(batch(), SIZES)
    assert len(found) == 2
    for detections, (height, width) in zip(found, SIZES.tolist(), strict=True):
        boxes, scores, labels = (detections[k] for k in ("boxes", "scores", "labels"))
        assert 0 < len(boxes) <= 100
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1
        assert (scores[:-1] >= scores[1:]).all()
        assert labels.min() >= 0
        assert labels.max() < K


def test_the_parts_that_pre_training_calls_need_no_labels():
    # Proposals in the place of ground truth; a projector in the place of the classifier.
    model = small_faster_rcnn()
    model.roi_head.classifier = nn.Linear(64, 16)
    boxes = [t["boxes"] for t in TARGETS]
    features = model.pyramid(batch())
    proposed = model.rpn(features)
    losses = model.rpn.losses(proposed, boxes)
    rois = add_boxes(model.rpn.propose(proposed, SIZES, 1000, 50), boxes)
    matched = model.roi_head.assign(rois, boxes)
    rois = [r[m >= 0] for r, m in zip(rois, matched, strict=True)]
    matched = [m[m >= 0] for m in matched]
    box_features = model.roi_head.box_features(features[:-1], rois)
    embeddings = model.roi_head.classifier(box_features)
    deltas = model.roi_head.deltas_from(box_features)
    losses |= model.roi_head.box_losses(deltas, rois, matched, boxes)
    assert embeddings.shape == (sum(len(m) for m in matched), 16)
    assert len(embeddings) >= 4
    assert list(losses) == ["loss_rpn_objectness", "loss_rpn_box", "loss_box"]
    (sum(losses.values()) + embeddings.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name


def test_sizes_that_are_no_multiple_of_the_stride():
    model = small_faster_rcnn()
    images, sizes = torch.randn(1, 3, 101, 67), torch.tensor([[101, 67]])
    assert all(v.isfinite() for v in model(images, sizes, [TARGETS[1]]).values())
    assert len(model(images, sizes)) == 1


def test_bfloat16_autocast():
    model = small_faster_rcnn(replace(SMALL, score_threshold=0.0, rpn_samples=10**6))
    full = model(batch(), SIZES, TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch(), SIZES, TARGETS)
        found = model(batch(), SIZES)
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[key], rtol=0.2, atol=0.0)  # RoIs are sampled
    sum(losses.values()).backward()
    assert all(d["boxes"].dtype == d["scores"].dtype == torch.float32 for d in found)


def test_learns_one_box():
    torch.manual_seed(0)
    model = small_faster_rcnn().train()
    model.backbone.freeze(5)
    images, size = torch.randn(1, 3, 64, 64), torch.tensor([[64, 64]])
    goal = target([[8, 12, 50, 44]], [1])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model(images, size, [goal]).values()).backward()
        optimizer.step()
    best = model.eval()(images, size)[0]
    assert best["labels"][0] == 1
    assert best["scores"][0] > 0.5
    assert box_iou(best["boxes"][:1], goal["boxes"]).item() > 0.8


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
