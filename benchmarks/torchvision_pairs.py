"""The detectors that the side-by-side timings compare: torchvision's and ours, with equal weights.

Both have a ResNet-50 with fixed BatchNorm whose first two stages are frozen, the default of both
projects. Both get images that are normalised and padded already: the transform that torchvision
puts in front, which also resizes, is left out.

Legend: N images, M boxes of an image, K foreground classes, A points or anchors, R RoIs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from models.backbone import build_backbone
from models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from models.fcos import FCOS, FCOSConfig
from models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from models.retinanet import RetinaNet, RetinaNetConfig
from models.torchvision_weights import (
    faster_rcnn_from_torchvision,
    fcos_from_torchvision,
    mask_rcnn_from_torchvision,
    retinanet_from_torchvision,
)

K = 80  # as in COCO
FROZEN_STAGES = 2  # stem and C2
CANDIDATES = 1000  # (prediction, class) pairs per image that pass the score threshold
DETECTORS = {
    "fcos": (detection.FCOS, FCOS, FCOSConfig, fcos_from_torchvision),
    "retinanet": (detection.RetinaNet, RetinaNet, RetinaNetConfig, retinanet_from_torchvision),
    "faster_rcnn": (
        *(detection.FasterRCNN, FasterRCNN, FasterRCNNConfig),
        faster_rcnn_from_torchvision,
    ),
    "mask_rcnn": (detection.MaskRCNN, MaskRCNN, MaskRCNNConfig, mask_rcnn_from_torchvision),
}
TWO_STAGES = (FasterRCNN, MaskRCNN)


@dataclass(frozen=True)
class Batch:
    """What both detectors see."""

    images: Tensor  # (N, 3, H, W), normalised
    image_sizes: list[tuple[int, int]]  # (h, w)
    # boxes (M, 4) xyxy, labels (M,) in 0..K-1, masks (M, H, W) uint8, which fill their boxes
    targets: list[dict[str, Tensor]]


def random_batch(images: int, side: int, boxes: int, device: torch.device) -> Batch:
    """Noise with `boxes` boxes per image, from 16 px to the whole image."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, 3, side, side, generator=generator)
    targets = []
    for _ in range(images):
        random = torch.rand(boxes, 4, generator=generator)
        sides = 16 * (side / 16) ** random[:, :2]  # log-uniform
        corner = random[:, 2:] * (side - sides)
        labels = torch.randint(K, (boxes,), generator=generator)
        target = {"boxes": torch.cat((corner, corner + sides), dim=1), "labels": labels}
        target["masks"] = filled(target["boxes"], side)
        targets.append({key: value.to(device) for key, value in target.items()})
    return Batch(pixels.to(device), [(side, side)] * images, targets)


def filled(boxes: Tensor, side: int) -> Tensor:
    """Masks (M, side, side) of all pixels of the boxes (M, 4)."""
    pixels = torch.arange(side) + 0.5
    first, second = boxes[:, :2, None], boxes[:, 2:, None]  # (M, 2, 1)
    across, down = ((pixels > first) & (pixels < second)).unbind(1)  # (M, side) each
    return (down[:, :, None] & across[:, None, :]).to(torch.uint8)


class Theirs(nn.Module):
    """Torchvision's detector, called like ours."""

    def __init__(self, name: str) -> None:
        super().__init__()
        dense = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
        self.label_shift = int(DETECTORS[name][1] in TWO_STAGES)  # its class 0 is the background
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            trainable_layers=5 - FROZEN_STAGES,
            **({} if self.label_shift else dense),
        )
        for module in backbone.body.modules():
            if hasattr(module, "bn3"):  # otherwise the maps of a random ResNet grow with its depth
                module.bn3.weight.fill_(0.2)
        self.detector = DETECTORS[name][0](backbone, K + self.label_shift)
        self.detector.transform = NoTransform()

    def forward(
        self, images: Tensor, image_sizes: object, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in train mode, detections in eval mode."""
        if targets is not None:
            targets = [{**t, "labels": t["labels"] + self.label_shift} for t in targets]
        return self.detector(images, targets)


class NoTransform(nn.Module):
    """Stands for torchvision's transform where images are normalised and padded already."""

    def forward(self, images: Tensor, targets: object = None) -> tuple[ImageList, object]:
        """All images have the size of the batch."""
        return ImageList(images, [tuple(images.shape[-2:])] * len(images)), targets

    def postprocess(self, result: list, *_: object) -> list:
        """Boxes are in pixels of these images."""
        return result


def build_pair(name: str) -> tuple[Theirs, nn.Module]:
    """Torchvision's detector `name` and ours, with equal weights, on the CPU."""
    torch.manual_seed(0)
    theirs = Theirs(name)
    _, build, config, renamed = DETECTORS[name]
    ours = build(build_backbone("resnet50", "frozen_bn", FROZEN_STAGES), config.torchvision(), K)
    ours.load_state_dict(renamed(theirs.detector.state_dict()), strict=False)  # no step counters
    return theirs, ours.to(memory_format=torch.channels_last)  # as `train.fit` keeps it


@torch.no_grad()
def share_threshold(theirs: Theirs, ours: nn.Module, batch: Batch) -> None:
    """Let `CANDIDATES` pairs per image pass the score threshold, as with trained weights; at
    initialisation none would, and there would be no duplicates to suppress."""
    scores = scores_of(ours, batch).flatten()
    threshold = float(scores.topk(CANDIDATES * len(batch.images)).values[-1])
    for module in (theirs.detector, getattr(theirs.detector, "roi_heads", None)):
        if hasattr(module, "score_thresh"):
            module.score_thresh = threshold
    for module in (ours, getattr(ours, "roi_head", None)):
        if module is not None:
            module.config = replace(module.config, score_threshold=threshold)


def scores_of(ours: nn.Module, batch: Batch) -> Tensor:
    """The scores (N, A, K) or (R, K) that are compared with the threshold."""
    features = ours.pyramid(batch.images)
    if isinstance(ours, TWO_STAGES):
        c = ours.config
        proposed = ours.rpn(features)
        rois = ours.rpn.propose(proposed, batch.image_sizes, c.topk_test, c.proposals_test)
        return ours.roi_head(features[:-1], rois).logits.softmax(dim=1)[:, :-1]
    output = ours.head(features)
    scores = output.logits.sigmoid()
    if isinstance(ours, FCOS):
        scores = (scores * output.centerness.sigmoid()[..., None]).sqrt()
    return scores
