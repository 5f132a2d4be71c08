from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

from models import ModelConfig, build_detector
from models.backbone import build_backbone
from models.faster_rcnn import FasterRCNN
from models.mask_head import paste_masks
from models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from tests.helpers.assertions import assert_finite_gradients
from tests.helpers.cuda_runs import on_stand_in
from tests.helpers.labelled_batch import NOTHING, SIZES, TARGETS, K, batch, target

SMALL = MaskRCNNConfig(
    **{"channels": 32, "box_features": 64, "mask_convs": 1},
    **{"proposals_train": 60, "proposals_test": 40, "roi_samples": 64},
)
NO_MASKS = [{**t, "masks": torch.zeros_like(t["masks"])} for t in TARGETS]
LOSSES = ["loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"]


def small_mask_rcnn(config: MaskRCNNConfig = SMALL, num_classes: int = K) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(build_backbone("resnet18"), config, num_classes)


@pytest.mark.parametrize(
    ("targets", "some"),
    [
        (TARGETS, True),
        ([TARGETS[0], NOTHING[1]], True),
        ([TARGETS[0], NO_MASKS[1]], True),
        (NO_MASKS, False),
        (NOTHING, False),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_class_agnostic": False, "mask_norm": "bn"},
        {"mask_norm": "none", "box_head": "2fc", "box_norm": "none", "mask_convs": 4},
    ],
)
def test_every_trained_parameter_gets_a_finite_gradient(targets, some, options):
    model = small_mask_rcnn(replace(SMALL, **options)).train()
    losses = model(batch(), SIZES, targets)
    assert list(losses) == LOSSES
    assert all(v.shape == () and v.isfinite() for v in losses.values())
    assert all(v.dtype == torch.float32 for v in losses.values())
    assert (losses["loss_mask"] > 0) == some
    sum(losses.values()).backward()
    assert_finite_gradients(model)


def test_all_but_the_masks_is_faster_rcnn():
    """With the same weights and samples, whether the boxes have masks or not."""
    ours = small_mask_rcnn(replace(SMALL, score_threshold=0.0)).eval()
    faster = FasterRCNN(ours.backbone, ours.config, K).eval()
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("mask_head.")}
    faster.load_state_dict(state)
    found, expected = ours(batch(), SIZES), faster(batch(), SIZES)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)
        assert one.keys() == {*other, "masks"}
    for targets in (TARGETS, NO_MASKS):
        torch.manual_seed(3)
        losses = ours(batch(), SIZES, targets)
        torch.manual_seed(3)
        assert all(torch.equal(losses[k], v) for k, v in faster(batch(), SIZES, TARGETS).items())


def test_the_mask_head_sees_positives_in_training_and_final_boxes_in_detection(monkeypatch):
    model, seen = small_mask_rcnn(replace(SMALL, score_threshold=0.0)), []
    forward = model.mask_head.forward

    def record(features, rois):
        assert len(features) == 4
        seen.append(rois)
        return forward(features, rois)

    monkeypatch.setattr(model.mask_head, "forward", record)
    model(batch(), SIZES, TARGETS)
    for rois, goal in zip(seen[-1], TARGETS, strict=True):
        overlap = box_iou(rois, goal["boxes"])
        assert (overlap.amax(dim=1) >= 0.5).all()
        assert (overlap == 1).any(dim=0).all()  # the boxes themselves are among them
    found = model(batch(), SIZES)
    for rois, of_image in zip(seen[-1], found, strict=True):
        assert torch.equal(rois, of_image["boxes"])
        assert 0 < len(rois) <= 100
        assert of_image["masks"].shape == (len(rois), 28, 28)
        assert of_image["masks"].dtype == torch.float32
        assert of_image["masks"].min() >= 0
        assert of_image["masks"].max() <= 1


def test_nothing_above_the_threshold():
    found = small_mask_rcnn(replace(SMALL, score_threshold=0.999))(batch(), SIZES)
    assert [tuple(d["masks"].shape) for d in found] == [(0, 28, 28)] * 2


def test_bfloat16_autocast():
    model = small_mask_rcnn(replace(SMALL, score_threshold=0.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch(), SIZES, TARGETS)
        found = model(batch(), SIZES)
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    sum(losses.values()).backward()
    assert_finite_gradients(model)
    assert all(d["masks"].dtype == torch.float32 for d in found)


def test_learns_one_mask():
    """A triangle, from the box as the only RoI."""
    model = small_mask_rcnn(replace(SMALL, roi_samples=64), num_classes=2).train()
    model.backbone.freeze(5)
    images, size = torch.randn(1, 3, 64, 64), torch.tensor([[64, 64]])
    features = [f.detach() for f in model.pyramid(images)]
    goal = target([[8, 12, 52, 56]], [1])
    inside = torch.zeros(64, 64, dtype=torch.uint8)
    inside[12:56, 8:52] = torch.ones(44, 44).tril()
    goal["masks"] = inside[None]
    optimizer = torch.optim.Adam(model.mask_head.parameters(), lr=2e-3)
    matched = [torch.zeros(1, dtype=torch.int64)]
    for _ in range(100):
        optimizer.zero_grad()
        logits = model.mask_head(features[:-1], [goal["boxes"]])
        lost = model.mask_head.losses(logits, [goal["boxes"]], matched, [goal["masks"]])
        lost["loss_mask"].backward()
        optimizer.step()
    (found,) = model.mask_head.detections(features[:-1], [goal])
    pasted = paste_masks(found["masks"].detach(), goal["boxes"], size[0].tolist())[0]
    overlap = (pasted & inside).sum() / (pasted | inside).sum()
    assert overlap > 0.9


WRONG = {
    "none": (None, "masks is not a tensor; give a mask per box"),
    "of the batch": (
        torch.zeros(1, 128, 160).byte(),
        r"\(1, 128, 160\) instead of \(1, 100, 130\)",
    ),
    "one too many": (torch.zeros(2, 100, 130).byte(), r"\(2, 100, 130\) instead of"),
    "floats": (torch.zeros(1, 100, 130), "masks are torch.float32; make them uint8, 0 or 1"),
    "elsewhere": (torch.zeros(1, 100, 130, device="meta").byte(), "masks are on meta, the images"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("sizes", [SIZES, SIZES.tolist()])
def test_wrong_masks_are_one_sentence(case, sizes):
    masks, words = WRONG[case]
    with pytest.raises(ValueError, match=words) as caught:
        small_mask_rcnn()(batch(), sizes, [TARGETS[0], {**TARGETS[1], "masks": masks}])
    assert str(caught.value).startswith("targets[1]: ")
    assert "\n" not in str(caught.value)


def test_masks_may_be_bool():
    model, losses = small_mask_rcnn(), []
    for goals in (TARGETS, [{**t, "masks": t["masks"].bool()} for t in TARGETS]):
        torch.manual_seed(3)
        losses.append(model(batch(), SIZES, goals)["loss_mask"])
    assert torch.equal(*losses)


def test_masks_cost_two_waits_for_the_device_per_step_and_one_in_detection():
    def waits(kind, config):
        with on_stand_in() as gpu:
            model = kind(build_backbone("resnet18"), config, K).to("cuda")
            images, goals = batch().to("cuda"), []
            for goal in TARGETS:
                goals.append({key: value.to("cuda") for key, value in goal.items()})
            model(images, SIZES.tolist(), goals)  # which also fills caches
            for gpu.step, targets in ((1, goals), (2, None)):
                model(images, SIZES.tolist(), targets)
        return [sum(n for w, n in gpu.waits.items() if w.step == step) for step in (1, 2)]

    faster, masked = waits(FasterRCNN, SMALL), waits(MaskRCNN, SMALL)
    assert [more - few for more, few in zip(masked, faster, strict=True)] == [2, 1]


def test_options_of_all_parts_reach_them():
    options = {"channels": 32, "rpn_convs": 2, "box_head": "2fc", "mask_convs": 2, "fpn_norm": "gn"}
    model = build_detector(ModelConfig("mask_rcnn", "resnet18", options=options), K)
    assert isinstance(model, MaskRCNN)
    assert model.config == MaskRCNNConfig(**options)
    assert len(model.rpn.tower) == 4
    assert len(model.roi_head.convs) == 0
    assert len(model.mask_head.convs) == 6
    assert model.mask_head.predictor.out_channels == 1
    assert len(set(MaskRCNNConfig.NETWORK)) == len(MaskRCNNConfig.NETWORK)
    assert {"fpn_norm", "rpn_convs", "box_head", "mask_convs"} < set(MaskRCNNConfig.NETWORK)
    for options, words in (
        ({"mask_norm": "ln"}, "mask_norm is 'ln'"),
        ({"box_head": "1fc"}, "box_head is '1fc'"),
        ({"fpn_norm": "ln"}, "fpn_norm is 'ln'"),
    ):
        with pytest.raises(ValueError, match=words):
            MaskRCNNConfig(**options)
