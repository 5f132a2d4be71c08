"""DETR against Hugging Face's, with the same weights.

In float64, where two ways to the same result differ by rounding alone.
"""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import box_convert
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from models.detr import DETR, sides_of
from models.transformer import Attention
from tests.helpers.assertions import same_detections
from tests.helpers.double_precision import double_precision
from tests.helpers.hugging_face_detr import hugging_face_detr, objects_of_layers, our_name
from tests.helpers.random_norms import randomise_norm
from tests.helpers.small_detr import small_detr

pytestmark = pytest.mark.usefixtures("double_precision")

K = 4
SIZES = torch.tensor([[96, 160], [70, 129], [128, 33], [50, 97]])


@pytest.fixture(scope="module")
def models():
    with double_precision():
        ours = small_detr(K, "resnet18", queries=12, decoder_layers=3).eval()
        for module in ours.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                spread(module)
            if isinstance(module, Attention):
                sharpen(module)
        spread_outputs(ours)
        return ours, hugging_face_detr(ours)


def spread(norm: nn.Module) -> None:
    """Norms as after training."""
    if isinstance(norm, nn.BatchNorm2d):
        randomise_norm(norm)
    else:
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(std=0.3)


def sharpen(attention: Attention) -> None:
    """Else each query sees nearly the mean of all cells, and all predict the same."""
    attention.query.weight.data *= 4
    attention.key.weight.data *= 4
    for projection in (attention.query, attention.key, attention.value, attention.output):
        projection.bias.data.normal_(std=0.1)


def spread_outputs(ours: DETR) -> None:
    """Make queries differ in class and box, around 0 before softmax and sigmoid."""
    ours.classifier.weight.data *= 8
    ours.box_regression[-1].weight.data *= 32
    with torch.no_grad():
        output = ours.predictions(padded_images()[0], *SIZES.unbind(1))
    ours.classifier.bias.data -= output.logits[-1].mean(dim=(0, 1))
    ours.box_regression[-1].bias.data -= output.boxes[-1].logit().mean(dim=(0, 1))


def padded_images() -> tuple[torch.Tensor, torch.Tensor]:
    """(4, 3, 128, 160) noise, zero in the padding, and a mask of what is not padding."""
    images = torch.randn(len(SIZES), 3, 128, 160, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(len(SIZES), 128, 160)
    for of_image, (height, width) in zip(mask, SIZES.tolist(), strict=True):
        of_image[:height, :width] = 1
    return images * mask[:, None], mask


def random_targets(counts: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    targets = []
    for count, (height, width) in zip(counts, SIZES.tolist(), strict=True):
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor([width, height])).flatten(1)
        labels = torch.randint(K, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return targets


def their_targets(targets: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """Labels of their loss, normalised by the true image."""
    return [
        {
            "class_labels": target["labels"],
            "boxes": box_convert(target["boxes"], "xyxy", "cxcywh")
            / torch.tensor([width, height, width, height]),
        }
        for target, (height, width) in zip(targets, SIZES.tolist(), strict=True)
    ]


def test_predictions_of_the_last_layer_are_theirs(models):
    ours, theirs = models
    images, mask = padded_images()
    with torch.no_grad():
        expected = theirs(images, mask)
        output = ours.predictions(images, *SIZES.unbind(1))
    torch.testing.assert_close(output.decoded[-1], expected.last_hidden_state, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.logits[-1], expected.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.boxes[-1], expected.pred_boxes, rtol=0, atol=1e-9)
    assert output.boxes[-1].std(dim=1).min() > 0.01  # queries differ


@pytest.mark.parametrize("counts", [(3, 1, 12, 6), (2, 0, 15, 4)])  # 15: more than queries
@pytest.mark.parametrize("aux_losses", [True, False])
def test_losses_and_gradients_are_theirs(models, aux_losses, counts):
    ours, theirs = (copy.deepcopy(model) for model in models)
    object.__setattr__(ours.config, "aux_losses", aux_losses)
    theirs.config.auxiliary_loss = False
    images, mask = padded_images()
    targets = random_targets(counts)
    losses = ours(images, SIZES, targets)
    sum(losses.values()).backward()

    objects = objects_of_layers(theirs, images, mask)
    logits = theirs.class_labels_classifier(objects)
    boxes = theirs.bbox_predictor(objects).sigmoid()
    theirs.config.auxiliary_loss = aux_losses
    loss, terms, _ = ForObjectDetectionLoss(
        logits[-1], their_targets(targets), "cpu", boxes[-1], theirs.config, logits, boxes
    )
    loss.backward()
    torch.testing.assert_close(sum(losses.values()), loss, rtol=1e-9, atol=0)
    parts = {
        "loss_class": ("loss_ce", 1),
        "loss_box": ("loss_bbox", 5),
        "loss_giou": ("loss_giou", 2),
    }
    for key, (name, weight) in parts.items():
        of_layers = [value for term, value in terms.items() if term.startswith(name)]
        assert len(of_layers) == (3 if aux_losses else 1)
        torch.testing.assert_close(losses[key], weight * sum(of_layers), rtol=1e-9, atol=0)
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    theirs_by_name = {our_name(name): p.grad for name, p in theirs.named_parameters()}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs_by_name[name], rtol=1e-7, atol=1e-10, msg=name)


def test_detections_are_their_predictions(models):
    """By the rule of their processor, which does not clip boxes."""
    ours, theirs = models
    images, mask = padded_images()
    with torch.no_grad():
        raw = theirs(images, mask)
        found = ours(images, SIZES)
    scores, labels = raw.logits.softmax(-1)[..., :-1].max(-1)
    boxes = box_convert(raw.pred_boxes, "cxcywh", "xyxy") * sides_of(SIZES)[:, None]
    boxes = boxes.clamp(min=0).minimum(sides_of(SIZES)[:, None])
    expected = [
        {"boxes": b[order], "scores": s[order], "labels": n[order]}
        for b, s, n, order in zip(
            boxes, scores, labels, scores.argsort(descending=True), strict=True
        )
    ]
    same_detections(found, expected, at_least=8)
