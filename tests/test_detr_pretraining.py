"""Box-domain pre-training of DETR against plain loops: whose queries, which box each answers for,
and what they lose.

Legend: L decoder layers, N images, Q queries, M boxes, C channels, D embedding width.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from aligndet.box_domain import BoxDomain, BoxDomainConfig
from models import build_detector
from tests.helpers.small_detectors import OPTIONS, model_config

SIZES = torch.tensor([[64, 96], [50, 73], [64, 96]])
BOXES = [
    torch.tensor([[4.0, 4, 90, 60], [10, 10, 30, 40], [50, 8, 94, 62]]),
    torch.tensor([[51.0, 20, 70, 43], [1, 2, 72, 49]]),
    torch.zeros(0, 4),
]
IDS = [[0, 1, 2], [3, 4], []]

pytestmark = pytest.mark.usefixtures("double_precision")


def build(num_classes=1, detector_options=(), **options):
    torch.manual_seed(0)
    config = model_config("detr", options={**OPTIONS["detr"], **dict(detector_options)})
    detector = build_detector(config, num_classes)
    return BoxDomain(detector, "detr", BoxDomainConfig(embedding_width=16, **options))


def mirrored(boxes):
    """The boxes in views that are flipped left to right."""
    found = []
    for of, width in zip(boxes, SIZES[:, 1].tolist(), strict=True):
        x1, y1, x2, y2 = of.unbind(1)
        found.append(torch.stack([width - x2, y1, width - x1, y2], dim=1))
    return found


def views():
    """The second one is mirrored, as one of two is where each has a flip of its own."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        {
            "images": torch.randn(3, 3, 64, 96, generator=generator),
            "image_sizes": SIZES,
            "boxes": boxes,
        }
        for boxes in (BOXES, mirrored(BOXES))
    )


def outputs_of(task, batch):
    """What the online and the target branch make of a batch."""
    seen = {}
    for name in ("online", "target"):
        branch = getattr(task, name)
        branch.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
    task(batch)
    return seen["online"], seen["target"]


def matches(output, of_images, labels=None):
    """(layer, image, query) of each box, by the equation, one assignment at a time."""
    result = {}
    boxes = output.boxes.double()
    logits = output.logits.softmax(dim=3)
    for n, (height, width) in enumerate(SIZES.tolist()):
        if not len(of_images[n]):
            continue
        sides = torch.tensor([width, height, width, height])
        goals = box_convert(of_images[n] / sides, "xyxy", "cxcywh")
        for layer in range(len(boxes)):
            found = boxes[layer, n]
            costs = 5 * (found[:, None] - goals).abs().sum(dim=2) - 2 * generalized_box_iou(
                box_convert(found, "cxcywh", "xyxy"), box_convert(goals, "cxcywh", "xyxy")
            )
            if labels is not None:
                costs = costs - logits[layer, n][:, labels[n]]
            for query, box in zip(*linear_sum_assignment(costs.detach().numpy()), strict=True):
                result[layer, n, query] = box
    return result


def decoded_by(branch, features, queries):
    return branch.detector.decode(features, *SIZES.unbind(1), queries)


def as_rows(found, ids):
    """Embeddings with their ids, in an order of their own."""
    return sorted(zip(ids.tolist(), found.tolist(), strict=True))


def expected_rows(branch, output, matched):
    rows = []
    for (layer, n, query), box in matched.items():
        embedding = F.normalize(branch.projector(output.decoded[layer, n, query]), dim=0)
        rows.append((IDS[n][box], embedding.tolist()))
    return sorted(rows)


@pytest.mark.parametrize(("classes", "anchors"), [(0, False), (5, False), (0, True)])
def test_both_branches_embed_the_online_queries_that_answer_for_the_boxes_of_their_view(
    classes, anchors
):
    """The target's own queries, which are others here, do not matter."""
    task = build(classes or 1, {"anchors": anchors}, cluster_weight=float(classes > 0))
    with torch.no_grad():
        for parameter in task.target.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    labels = None
    batch = views()
    if classes:
        labels = [torch.tensor([4, 0, 0]), torch.tensor([2, 3]), torch.zeros(0).long()]
        batch = tuple({**view, "labels": labels} for view in batch)
    online, target = outputs_of(task, batch)
    queries = task.online.detector.query_embedding.weight
    features1, features2 = (task.backbone(view["images"]) for view in batch)
    decoded = decoded_by(task.online, features1, queries)
    matched = matches(decoded, BOXES, labels)
    assert len(matched) == 2 * 5  # layers and boxes
    expected = expected_rows(task.online, decoded, matched)
    assert [row[0] for row in expected] == [i for i in range(5) for _ in range(2)]
    torch.testing.assert_close(as_rows(online.embeddings, online.ids), expected)
    decoded = decoded_by(task.target, features2, queries)
    in_view2 = matches(decoded, batch[1]["boxes"], labels)
    expected = expected_rows(task.target, decoded, in_view2)
    torch.testing.assert_close(as_rows(target.embeddings, target.ids), expected)
    assert in_view2 != matched
    # As the authors do it, the target would have queries of its own.
    own = decoded_by(task.target, features2, None)
    assert matches(own, batch[1]["boxes"], labels) != in_view2


def test_an_instance_is_the_same_one_in_a_mirrored_view():
    """Anchors look for objects where they are: the query of a box in one view is that of the
    mirrored place in the other, even before anything is learned."""
    task = build(detector_options={"anchors": True, "queries": 64})
    online, target = outputs_of(task, views())
    anchors = task.online.detector.query_embedding.weight.detach().sigmoid()
    for n, of in enumerate(BOXES[:2]):
        for box in range(len(of)):
            left, right = (
                anchors[(branch.matched[n].view(-1, 64)[-1] == box).nonzero()[0, 0], 0]
                for branch in (online, target)
            )
            assert left + right == pytest.approx(1.0, abs=0.25)


def test_losses_are_those_of_fine_tuning_without_classes():
    """Of all decoder layers; boxes alone decide who answers for which."""
    task = build()
    losses, _ = task(views())
    detector = build(detector_options={"class_weight": 0.0}).online.detector
    detector.load_state_dict(task.online.detector.state_dict())
    detector.backbone = task.backbone
    targets = [{"boxes": b, "labels": torch.zeros(len(b)).long()} for b in BOXES]
    expected = detector(views()[0]["images"], SIZES, targets)
    assert losses.keys() == {"loss_contrast", "loss_box", "loss_giou"}
    for name in ("loss_box", "loss_giou"):
        assert losses[name] > 0
        torch.testing.assert_close(losses[name], expected[name])


def test_without_auxiliary_losses_the_last_layer_alone_is_embedded():
    task = build(detector_options={"aux_losses": False})
    online, target = outputs_of(task, views())
    assert sorted(online.ids.tolist()) == sorted(target.ids.tolist()) == [0, 1, 2, 3, 4]


def test_more_boxes_than_queries_leave_boxes_without_any():
    task = build(detector_options={"queries": 2})
    online, _ = outputs_of(task, views())
    counts = torch.bincount(online.ids, minlength=5)
    assert counts[:3].sum() == 2 * 2
    assert counts[3:].tolist() == [2, 2]


def test_the_number_of_samples_is_limited_in_each_image():
    online, target = outputs_of(build(samples=3), views())
    for ids in (online.ids, target.ids):
        assert (ids < 3).sum() == (ids >= 3).sum() == 3
