"""Pre-training with pseudo-classes of the proposals: the classification layer learns them."""

from __future__ import annotations

import json

import pytest
import torch

from aligndet.adapters import ADAPTERS
from aligndet.box_domain import BoxDomain, BoxDomainConfig
from models import build_detector
from tests.helpers.small_detectors import BOX_LOSSES, OPTIONS, model_config

pytestmark = pytest.mark.usefixtures("small_backbones")

K = 5
BOXES = [torch.tensor([[8.0, 8, 40, 56], [50, 10, 90, 40]]), torch.tensor([[20.0, 4, 84, 60]])]
LABELS = [torch.tensor([3, 0]), torch.tensor([4])]


def build(name, more=(), **options):
    torch.manual_seed(0)
    config = model_config(name, options={**OPTIONS[name], **dict(more)})
    detector = build_detector(config, num_classes=K)
    config = BoxDomainConfig(embedding_width=16, **{"cluster_weight": 1.0, **options})
    return BoxDomain(detector, name, config)


def batch(labels=LABELS, boxes=BOXES):
    generator = torch.Generator().manual_seed(0)
    views = [
        {
            "images": torch.randn(2, 3, 64, 96, generator=generator),
            "image_sizes": torch.tensor([(64, 96)] * 2),
            "boxes": boxes,
            "masks": [torch.ones(len(b), 64, 96, dtype=torch.uint8) for b in boxes],
            "labels": labels,
        }
        for _ in range(2)
    ]
    return tuple(views)


def losses(task, *views):
    torch.manual_seed(0)
    return task(views or batch())[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_loss_is_that_of_fine_tuning_on_the_pseudo_classes(name):
    task, seen = build(name), {}
    found = losses(task)
    assert found.keys() == {"loss_contrast", "loss_class"} | BOX_LOSSES[name]
    detector = task.online.detector
    if not name.endswith("_rcnn"):  # over all predictions, as in fine-tuning
        targets = [{"boxes": b, "labels": y} for b, y in zip(BOXES, LABELS, strict=True)]
        detector.backbone = task.backbone
        expected = detector(batch()[0]["images"], [(64, 96)] * 2, targets)["loss_class"]
        torch.testing.assert_close(found["loss_class"], expected)
    else:  # over the positive RoIs
        layer = detector.roi_head.classifier
        layer.register_forward_hook(lambda m, args, logits: seen.update(logits=logits))
        losses(task)
        assert len(seen["logits"]) > 3
        # All RoIs of a wrong class would cost more: each has the label of its box.
        swapped = losses(task, *batch([torch.tensor([0, 3]), torch.tensor([2])]))
        assert swapped["loss_class"] != found["loss_class"]


@pytest.mark.parametrize(
    ("name", "option", "loss"),
    [
        ("faster_rcnn", "class_agnostic", "loss_box"),
        ("mask_rcnn", "class_agnostic", "loss_box"),
        ("mask_rcnn", "mask_class_agnostic", "loss_mask"),
    ],
)
def test_a_box_and_a_mask_for_each_pseudo_class(name, option, loss):
    task = build(name, more={option: False})
    found = losses(task)
    found[loss].backward()
    layer = "roi_head.box_regression" if loss == "loss_box" else "mask_head.predictor"
    weights = dict(task.online.detector.named_parameters())
    (gradient,) = [w.grad for n, w in weights.items() if layer in n and n.endswith("bias")]
    learned = gradient.reshape(K, -1).abs().sum(dim=1) > 0
    assert learned.tolist() == [True, False, False, True, True]  # the labels that there are


@pytest.mark.parametrize("name", OPTIONS)
def test_the_classification_layer_learns_and_stays_behind(name):
    task = build(name)
    before = losses(task)["loss_class"].item()
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(8):
        optimizer.zero_grad()
        losses(task)["loss_class"].backward()
        optimizer.step()
    assert losses(task)["loss_class"].item() < 0.9 * before
    assert not any(key.startswith(ADAPTERS[name].classifier) for key in task.weights())


@pytest.mark.parametrize("name", OPTIONS)
def test_without_proposals_all_that_trains_gets_a_gradient(name):
    """As two ranks need it, of which only one has boxes."""
    empty = [torch.zeros(0, 4)] * 2
    task = build(name)
    found = losses(task, *batch([torch.zeros(0, dtype=torch.int64)] * 2, empty))
    assert all(loss.isfinite() for loss in found.values())
    torch.stack(list(found.values())).sum().backward()
    for key, parameter in task.online.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


def test_the_weight():
    plain, half = losses(build("fcos")), losses(build("fcos", cluster_weight=0.5))
    torch.testing.assert_close(half["loss_class"], 0.5 * plain["loss_class"])
    torch.testing.assert_close(half["loss_box"], plain["loss_box"])
    assert "loss_class" not in losses(build("fcos", cluster_weight=0.0))


def metrics(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def test_clusters_are_found_at_the_start_and_kept(tmp_path, write_config, script, error_of):
    """And a run that is resumed goes on with them."""
    changes = {"box_domain__cluster_weight": 1.0, "box_domain__clusters": 4}
    whole = write_config(tmp_path / "whole", **changes)
    script("pretrain", "--config", whole)
    assert all("loss_class" in line for line in metrics(tmp_path / "whole"))

    resume = ("--resume", tmp_path / "whole" / "last.pt.1")
    script("pretrain", "--config", write_config(tmp_path / "on", **changes), *resume)
    assert metrics(tmp_path / "on")[-1] == metrics(tmp_path / "whole")[-1]
    (tmp_path / "whole" / "clusters.pt").unlink()
    lost = write_config(tmp_path / "lost", **changes)
    message = error_of("pretrain", "--config", lost, *resume)
    assert "clusters.pt: is not there" in message
    assert "--resume none" in message


def test_clusters_of_a_file(tmp_path, write_config, script, dataset):
    """There are as many classes as it has."""
    content = json.loads((dataset / "proposals.json").read_text())
    content["info"] = {"clusters": 3}
    content["categories"] = [{"id": i, "name": f"cluster {i}"} for i in (1, 2, 3)]
    for number, annotation in enumerate(content["annotations"]):
        annotation["category_id"] = 1 + number % 3
    path = tmp_path / "clusters.json"
    path.write_text(json.dumps(content))
    changes = {"box_domain__cluster_weight": 1.0, "box_domain__clusters": 9}
    config = write_config(tmp_path / "run", data__train__proposals=str(path), **changes)
    script("pretrain", "--config", config)
    assert all(line["loss_class"] > 0 for line in metrics(tmp_path / "run"))
    assert not (tmp_path / "run" / "clusters.pt").exists()
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert state["online.detector.head.cls_logits.weight"].shape[0] == 3
