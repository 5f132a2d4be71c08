"""What every detector must do, whatever is inside it, and the way through the scripts."""

from __future__ import annotations

import json

import pytest
import torch
from torchvision.ops import box_iou

from aligndet.adapters import ADAPTERS
from aligndet.evaluate import AP_KEYS, MASK_AP_KEYS
from models import build_detector
from models.detector import learns_masks
from tests.helpers.assertions import assert_finite_gradients
from tests.helpers.labelled_batch import NOTHING, SIZES, TARGETS, K, batch, target, with_masks
from tests.helpers.narrow_backbones import narrow_backbones
from tests.helpers.small_detectors import BOX_LOSSES, OPTIONS, model_config

every_detector = pytest.mark.parametrize("name", OPTIONS)


def small_detector(name, **options):
    torch.manual_seed(0)
    return build_detector(model_config(name, options={**OPTIONS[name], **options}), K)


@every_detector
@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], NOTHING[1]], NOTHING])
def test_every_trained_parameter_gets_a_finite_gradient(name, targets):
    model = small_detector(name).train()
    losses = model(batch(), SIZES, targets)
    assert losses.keys() == {"loss_class"} | BOX_LOSSES[name]
    assert all(v.shape == () and v.isfinite() for v in losses.values())
    assert (losses["loss_box"] > 0) == (targets is not NOTHING)
    sum(losses.values()).backward()
    assert_finite_gradients(model)


@every_detector
@pytest.mark.parametrize("training", [True, False])
def test_targets_alone_choose_what_forward_returns(name, training):
    model = small_detector(name).train(training)
    assert isinstance(model(batch(), SIZES, TARGETS), dict)
    assert isinstance(model(batch(), SIZES), list)


@every_detector
def test_image_sizes_may_be_a_tensor_or_pairs_of_numbers(name):
    model = small_detector(name, score_threshold=0.0).eval()
    pairs = [tuple(size) for size in SIZES.tolist()]
    for one, other in zip(model(batch(), SIZES), model(batch(), pairs), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    torch.manual_seed(0)
    losses = model(batch(), SIZES, TARGETS)
    torch.manual_seed(0)
    same = model(batch(), pairs, TARGETS)
    assert all(torch.equal(losses[key], same[key]) for key in losses)


@every_detector
def test_it_can_be_built_on_another_device(name):
    """What it keeps beside parameters and buffers is not left there."""
    torch.manual_seed(0)
    expected = small_detector(name, score_threshold=0.0).eval()
    with torch.device("meta"):
        model = small_detector(name, score_threshold=0.0).eval()
    model.to_empty(device="cpu").load_state_dict(expected.state_dict())
    for one, other in zip(model(batch(), SIZES), expected(batch(), SIZES), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@every_detector
def test_detections_lie_in_the_true_image(name):
    found = small_detector(name, score_threshold=0.0)(batch(), SIZES)
    assert len(found) == 2
    for detections, (height, width) in zip(found, SIZES.tolist(), strict=True):
        boxes, scores, labels = (detections[k] for k in ("boxes", "scores", "labels"))
        assert 0 < len(boxes) <= 100
        assert boxes.shape == (len(scores), 4)
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1
        assert (scores[:-1] >= scores[1:]).all()
        assert scores.max() <= 1
        assert labels.dtype == torch.int64
        assert labels.min() >= 0
        assert labels.max() < K


@every_detector
def test_nothing_above_the_threshold(name):
    found = small_detector(name, score_threshold=0.999)(batch(), SIZES)
    assert [len(d["boxes"]) for d in found] == [0, 0]
    assert all(d["boxes"].shape == (0, 4) for d in found)


@every_detector
def test_sizes_that_are_not_multiples_of_the_stride(name):
    model = small_detector(name)
    images, sizes = torch.randn(1, 3, 101, 67), torch.tensor([[101, 67]])
    goals = with_masks([target([[10, 30, 60, 77.5]], [1])], sizes)
    assert all(v.isfinite() for v in model(images, sizes, goals).values())
    assert len(model(images, sizes)) == 1


@pytest.mark.usefixtures("double_precision")  # rounding alone took the IoU from 0.66 to 0.93
@pytest.mark.parametrize("name", ["fcos", "retinanet", "faster_rcnn"])  # and test_learns_one_mask
def test_learns_one_box(name):
    two_stages = name == "faster_rcnn"
    options = {"distance_bias": 1.0} if name == "fcos" else {}
    options |= {"roi_samples": 64} if two_stages else {}
    model = small_detector(name, **{"channels": 64, **options}).train()
    model.backbone.freeze(5)
    images, size = torch.randn(1, 3, 64, 64), torch.tensor([[64, 64]])
    maps = model.backbone(images)
    model.backbone.forward = lambda _: maps  # it is frozen, so they stay the same
    (goal,) = with_masks([target([[8, 12, 50, 44]], [1])], size)
    trained = [p for p in model.parameters() if p.requires_grad]
    # The regions of interest change as the proposals learn, which needs smaller steps.
    optimizer = torch.optim.Adam(trained, lr=1e-3 if two_stages else 2e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=80)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model(images, size, [goal]).values()).backward()
        optimizer.step()
        decay.step()
    best = model.eval()(images, size)[0]
    assert best["labels"][0] == 1
    assert best["scores"][0] > 0.5
    assert box_iou(best["boxes"][:1], goal["boxes"]).item() > 0.6  # 0.67 or more with 4 seeds


@every_detector
@narrow_backbones()
def test_scripts_take_it_all_the_way(name, tmp_path, write_config, script, capsys):
    """With a Swin: the runs of other tests have a ResNet."""
    model = {"model__detector": name, "model__options": OPTIONS[name]}
    model["model__backbone"] = "swin_t"
    path = write_config(tmp_path / "pretrain", box_domain__freeze_backbone=False, **model)
    script("pretrain", "--config", path)
    assert "the backbone is random; of its 5 stages, 2 do not train" in capsys.readouterr().out
    weights = tmp_path / "pretrain" / "weights.pt"
    path = write_config(tmp_path / "finetune", **model)
    script("finetune", "--config", path, "--init", weights)
    written = json.loads((tmp_path / "pretrain" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"loss_contrast", *BOX_LOSSES[name]} == {k for k in written if "loss_" in k}
    assert ("feature_growth" in written) == (
        name not in ("fcos", "detr")  # what their projectors read is always normalised
    )
    manifest = json.loads((tmp_path / "finetune" / "manifest.json").read_text())
    assert manifest["source"] == str(weights)
    assert all(key.startswith(ADAPTERS[name].classifier) for key in manifest["fresh"])
    assert len(manifest["fresh"]) == 2  # weight and bias of the classifier
    scores = json.loads((tmp_path / "finetune" / "results.json").read_text())
    assert tuple(scores) == AP_KEYS + (MASK_AP_KEYS if learns_masks(name) else ())
    assert "loaded" in capsys.readouterr().out
