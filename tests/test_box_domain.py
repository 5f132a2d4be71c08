"""Both branches of box-domain pre-training: start, gradients, moving average, corner cases."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import models.assign
import models.fcos
import models.retinanet
import models.roi_head
from aligndet.adapters import ADAPTERS
from aligndet.box_domain import BoxDomain, BoxDomainConfig, instance_ids
from models import build_detector
from models.detector import learns_masks
from tests.helpers.small_detectors import BOX_LOSSES, model_config

pytestmark = pytest.mark.usefixtures("small_backbones")

EMPTY = torch.zeros(0, 4)
BOXES = [
    torch.tensor([[4.0, 4, 90, 60], [10, 10, 30, 40], [50, 8, 94, 62]]),
    torch.tensor([[60.0, 30, 80, 50], [0, 0, 96, 64]]),
]


def build(name="fcos", norm="frozen_bn", frozen_stages=2, **changes):
    torch.manual_seed(0)
    model = model_config(name, norm=norm, frozen_stages=frozen_stages)
    config = BoxDomainConfig(embedding_width=16, **changes)
    return BoxDomain(build_detector(model, num_classes=1), name, config).train()


def view(boxes, seed):
    images = torch.randn(len(boxes), 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    # Only Mask R-CNN looks at masks, here all of the image.
    return {
        "images": images,
        "image_sizes": torch.tensor([[64, 96]] * len(boxes)),
        "boxes": boxes,
        "masks": [torch.ones(len(of_image), 64, 96, dtype=torch.uint8) for of_image in boxes],
    }


def batch(boxes=BOXES, seed=0):
    flipped = [b[:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) for b in boxes]
    flipped = [b + torch.tensor([96.0, 0, 96, 0]) for b in flipped]
    return view(boxes, seed), view(flipped, seed + 1)


def step(task, optimizer, number=0, total=10):
    losses, _ = task(batch(seed=number))
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    return task.update_target(number, total)


def sgd(task):
    trainable = [p for p in task.parameters() if p.requires_grad]
    return torch.optim.SGD(trainable, lr=0.01, momentum=0.9)


@pytest.mark.parametrize("name", ADAPTERS)
def test_target_starts_equal_but_shares_no_memory(name):
    task = build(name)
    online, target = task.online.state_dict(), task.target.state_dict()
    assert list(online) == list(target)
    for name, tensor in online.items():
        assert torch.equal(tensor, target[name]), name
        assert tensor.data_ptr() != target[name].data_ptr(), name


def test_backbone_is_frozen_whatever_its_norm():
    task = build(norm="bn", frozen_stages=0)
    before = copy.deepcopy(task.backbone.state_dict())
    optimizer = sgd(task)
    for number in range(2):
        step(task, optimizer, number)
    for name, tensor in task.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad for p in task.backbone.parameters())
    assert not any(m.training for m in task.backbone.modules() if hasattr(m, "running_mean"))


def test_backbone_is_stored_once():
    task = build()
    keys = list(task.state_dict())
    prefixes = ("backbone.", "online.", "target.")
    parts = {prefix: [k for k in keys if k.startswith(prefix)] for prefix in prefixes}
    assert sum(len(part) for part in parts.values()) == len(keys)
    assert len(parts["backbone."]) == len(task.backbone.state_dict())
    assert len(parts["online."]) == len(parts["target."])
    assert not any("backbone" in k for k in parts["online."] + parts["target."])
    pointers = [tensor.data_ptr() for tensor in task.state_dict().values() if tensor.ndim > 0]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("name", ADAPTERS)
def test_weights_are_backbone_neck_and_head_once(name):
    task = build(name)
    detector = build_detector(model_config(name), num_classes=1)
    classifier = ADAPTERS[name].classifier
    expected = {key for key in detector.state_dict() if not key.startswith(classifier)}
    weights = task.weights()
    projector = {key for key in weights if key.startswith("projector.")}
    assert set(weights) - projector == expected
    assert len(projector) == 4  # two layers
    with torch.no_grad():
        for parameter in task.target.parameters():
            parameter.add_(1.0)
    online = {**task.online.state_dict(), **task.online.detector.state_dict()}
    for key, tensor in task.weights().items():
        source = task.backbone.state_dict() if key.startswith("backbone.") else online
        assert torch.equal(tensor, source[key.removeprefix("backbone.")]), key


def test_target_gets_no_gradient_and_moves_by_the_formula():
    task = build(momentum=0.9)
    old = {name: p.detach().double().clone() for name, p in task.target.named_parameters()}
    values = step(task, sgd(task), number=5, total=20)
    momentum = 1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2
    assert values == {"momentum": pytest.approx(momentum)}
    moved = 0.0
    online = dict(task.online.named_parameters())
    for name, parameter in task.target.named_parameters():
        assert parameter.grad is None
        expected = momentum * old[name] + (1 - momentum) * online[name].detach().double()
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-7)
        moved = max(moved, (parameter - old[name]).abs().max().item())
    assert moved > 1e-6


@pytest.mark.usefixtures("double_precision")
def test_view_1_goes_through_online_and_view_2_through_target():
    task = build()
    seen = {}
    task.online.register_forward_pre_hook(lambda m, args: seen.update(online=args))
    task.target.register_forward_pre_hook(lambda m, args: seen.update(target=args))
    view1, view2 = batch()
    task((view1, view2))
    assert seen["online"][1] is view1
    assert seen["target"][1] is view2
    torch.testing.assert_close(seen["online"][0][3], task.backbone(view1["images"])[3])
    torch.testing.assert_close(seen["target"][0][3], task.backbone(view2["images"])[3])
    # Box k has one id in both views, and no id occurs in two images.
    assert [ids.tolist() for ids in seen["online"][2]] == [[0, 1, 2], [3, 4]]
    assert [ids.tolist() for ids in seen["target"][2]] == [[0, 1, 2], [3, 4]]


def test_instance_ids_are_unique_in_the_batch():
    boxes = [torch.zeros(n, 4) for n in (3, 0, 300, 1)]
    ids = instance_ids(boxes)
    assert [len(i) for i in ids] == [3, 0, 300, 1]
    assert torch.cat(ids).tolist() == list(range(304))


@pytest.mark.usefixtures("double_precision")
def test_instance_256_is_not_background():
    """256 proposals that no point is assigned to, then one that is: all the loss is its own."""
    corners = torch.rand(256, 2, generator=torch.Generator().manual_seed(0)) * 0.5 + 1.0
    specks = torch.cat([corners, corners + 0.5], dim=1)  # between the points, which are at 4, 12..
    task = build()
    outputs = []
    task.online.register_forward_hook(lambda m, args, output: outputs.append(output))
    losses, statistics = task(batch([specks, BOXES[1]]))
    assert set(outputs[0].ids.tolist()) == {-1, 256, 257}
    assert statistics["instances"] == 2
    assert losses["loss_contrast"] > 0
    with_both = losses["loss_box"].item()
    losses, _ = task(batch([specks, BOXES[1][:1]]))
    assert set(outputs[1].ids.tolist()) == {-1, 256}
    assert losses["loss_box"] > 0
    assert losses["loss_box"].item() != with_both
    alone, _ = task(batch([EMPTY, BOXES[1][:1]]))
    for name, value in losses.items():
        torch.testing.assert_close(value, alone[name])


@pytest.mark.parametrize("boxes", [[BOXES[0], EMPTY], [EMPTY, BOXES[1]], [EMPTY, EMPTY]])
@pytest.mark.parametrize("name", ADAPTERS)
def test_images_without_proposals(name, boxes):
    task = build(name)
    losses, statistics = task(batch(boxes))
    sum(losses.values()).backward()
    assert losses.keys() == {"loss_contrast"} | BOX_LOSSES[name]
    assert all(torch.isfinite(v) for v in [*losses.values(), *statistics.values()])
    none_at_all = all(len(b) == 0 for b in boxes)
    assert statistics["without_boxes"] == (1.0 if none_at_all else 0.5)
    for key, loss in losses.items():
        # The RPN also learns from images without objects.
        assert (loss == 0) == (none_at_all and key != "loss_rpn_objectness"), key
    for key, parameter in task.online.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key  # DDP reduces it
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key
        if none_at_all and not name.endswith("_rcnn"):
            assert parameter.grad is None or not parameter.grad.any(), key


@pytest.mark.parametrize("name", ADAPTERS)
def test_more_proposals_than_any_cap(name, monkeypatch):
    """320 in one image, on a grid, and each of them counts."""
    y, x = torch.meshgrid(torch.arange(16) * 3.0 + 1, torch.arange(20) * 4.0 + 2, indexing="ij")
    corners = torch.stack((x, y), dim=2).reshape(-1, 2)
    many = torch.cat((corners, corners + torch.tensor([13.0, 14.0])), dim=1)
    task = build(name, samples=100_000)
    outputs, assigned = [], []
    task.online.register_forward_hook(lambda *call: outputs.append(call[2]))
    for assigner in ("assign_points", "assign_by_iou"):
        record = recorded(getattr(models.assign, assigner), assigned)
        for module in (models.fcos, models.retinanet, models.roi_head):
            if hasattr(module, assigner):
                monkeypatch.setattr(module, assigner, record)
    losses, statistics = task(batch([many, BOXES[1]]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in [*losses.values(), *statistics.values()])
    # The online branch comes first; its two images are the first two calls.
    of_images = outputs[0].matched if name == "detr" else assigned[:2]
    expected = {i + first for m, first in zip(of_images, (0, 320), strict=True)
                for i in m.tolist() if i >= 0}  # fmt: skip
    assert {i for i in outputs[0].ids.tolist() if i >= 0} == expected
    assert max(expected) == 321
    # Every box is an RoI; not every box has an anchor or a point; 20 queries have a box each.
    if name == "detr":
        assert all((m >= 0).sum() == 2 * count for m, count in zip(of_images, (20, 2), strict=True))
    else:
        assert len(expected) == 322 if name.endswith("_rcnn") else len(expected) > 50


def recorded(function, results):
    """The function, with its results appended to a list."""

    def call(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    return call


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_contrast_trains_neck_and_class_branch_and_no_box_output(name):
    task = build(name)
    losses, _ = task(batch())
    losses["loss_contrast"].backward()
    reached = {key.removeprefix("detector.") for key, p in task.online.named_parameters()
               if p.ndim > 1 and p.grad is not None and p.grad.any()}  # fmt: skip
    branch = {
        "fcos": ("head.cls_tower.0.", "projector.0.", "projector.2."),
        "retinanet": ("head.cls_tower.0.", "projector.layers.0.", "projector.layers.2"),
        "faster_rcnn": ("roi_head.convs.0.", "roi_head.fcs.0.", "projector.0."),
    }
    branch["mask_rcnn"] = branch["faster_rcnn"]
    neck = ("neck.lateral.0.", "neck.output.0.")
    if name == "detr":
        neck = ("input_projection.", "query_embedding.", "transformer.encoder.0.")
        branch["detr"] = ("transformer.decoder.0.", "projector.0.", "projector.2.")
    for layer in (*neck, *branch[name]):
        assert any(key.startswith(layer) for key in reached), layer
    others = (*ADAPTERS[name].box_outputs, "head.box_tower.", "rpn.", "mask_head.")
    assert not any(key.startswith(others) for key in reached)


@pytest.mark.parametrize("name", ADAPTERS)
def test_all_of_the_online_branch_gets_a_gradient(name):
    task = build(name)
    losses, _ = task(batch())
    sum(losses.values()).backward()
    set_aside = tuple(f"online.detector.{prefix}" for prefix in ADAPTERS[name].classifier)
    for key, parameter in task.named_parameters():
        trained = key.startswith("online.") and not key.startswith(set_aside)
        assert parameter.requires_grad == trained, key
        assert (parameter.grad is not None) == parameter.requires_grad, key
    # And each layer after the neck is reached by a loss; gradients of biases may cancel. DETR's
    # decoder starts from zeros, which its first self-attention cannot tell apart.
    unreached = ("detector.neck.", "detector.transformer.decoder.0.self_attention.")
    for key, parameter in task.online.named_parameters():
        reached = parameter.ndim > 1 and not key.startswith(unreached)
        if parameter.requires_grad and reached:
            assert parameter.grad.any(), key


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_detector_still_detects_while_it_pre_trains(name):
    """Its classifier keeps its place: the head can call all of its layers."""
    task = build(name)
    step(task, sgd(task))
    detector = task.online.detector
    state, fresh = detector.state_dict(), build(name).online.detector.state_dict()
    classifier = [key for key in state if key.startswith(ADAPTERS[name].classifier)]
    assert [torch.equal(state[key], fresh[key]) for key in classifier] == [True, True]
    detector.backbone = task.backbone
    view = batch()[0]
    found = detector(view["images"], view["image_sizes"])
    keys = {"boxes", "scores", "labels"} | ({"masks"} if learns_masks(name) else set())
    assert [set(image) for image in found] == [keys] * len(BOXES)


@pytest.mark.parametrize("name", ADAPTERS)
def test_statistics_change_no_loss(name):
    """Nor the state: a step that logs trains as any other."""
    asked, not_asked = build(name), build(name)
    torch.manual_seed(0)
    losses, statistics = asked(batch())
    torch.manual_seed(0)
    same, nothing = not_asked(batch(), with_statistics=False)
    assert nothing == {}
    assert {"contrast_floor", "positives", "without_boxes"} <= statistics.keys()
    assert losses.keys() == same.keys()
    for key, value in losses.items():
        assert torch.equal(value, same[key]), key
    state = not_asked.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in asked.state_dict().items())


def test_weights_of_the_losses():
    plain, _ = build()(batch())
    weighted, statistics = build(contrast_weight=0.5, box_weight=3.0)(batch())
    torch.testing.assert_close(weighted["loss_contrast"], 0.5 * plain["loss_contrast"])
    torch.testing.assert_close(weighted["loss_box"], 3.0 * plain["loss_box"])
    torch.testing.assert_close(weighted["loss_centerness"], 3.0 * plain["loss_centerness"])
    torch.testing.assert_close(
        statistics["contrast_minus_floor"], plain["loss_contrast"] - statistics["contrast_floor"]
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_bfloat16_autocast(name):
    task = build(name)
    full, _ = task(batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = task(batch())
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[key], rtol=0.1, atol=0.0)
    sum(losses.values()).backward()
    trained = [p for p in task.online.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("name", ADAPTERS)
def test_losses_go_down(name):
    task = build(name)
    optimizer = sgd(task)
    first, _ = task(batch())
    # RoIs change with the RPN, so the losses of the first steps go up and down.
    for number in range(30):
        losses, _ = task(batch())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        task.update_target(number, 30)
    last, _ = task(batch())
    assert last["loss_contrast"] < first["loss_contrast"] - 0.1
    assert last["loss_box"] < first["loss_box"] - 0.002


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"momentum": 1.5}, "momentum"),
        ({"samples": 0}, "samples"),
        ({"embedding_width": 0}, "embedding_width"),
        ({"max_proposals": 0}, "max_proposals"),
    ],
)
def test_values_out_of_range_are_refused(changes, key):
    with pytest.raises(ValueError, match=f"box_domain.{key}"):
        BoxDomainConfig(**changes)


def test_the_backbone_can_be_trained_too_and_the_target_view_gives_it_no_gradient():
    task = build(norm="bn", frozen_stages=0, freeze_backbone=False)
    before = task.backbone.conv1.weight.clone()
    seen = []
    task.backbone.register_forward_hook(lambda *call: seen.append(call[2][0].requires_grad))
    step(task, sgd(task))
    assert seen == [True, False]
    assert not torch.equal(task.backbone.conv1.weight, before)
