"""Check what a detector learns from: a wrong label or box is hard to find once it is in the loss.

Legend: N images, M boxes of an image, B boxes of the batch, K foreground classes.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

TOLERANCE = 1.0  # px that a box may stick out of its image: rounding, or whole-pixel annotations


def check_targets(
    targets: Sequence[Mapping[str, Tensor]],
    images: Tensor,
    image_sizes: Tensor | Sequence[tuple[int, int]],
    num_classes: int,
) -> None:
    """Check the targets of a batch; on a GPU this waits for it once if the sizes are on the host.

    Args:
        targets: see a detector's `forward`.
        images: (N, 3, H, W).
        image_sizes: (N, 2) true (height, width), in pixels.
        num_classes: K.

    Raises:
        ValueError: one sentence that names the image by its index, for another number of targets
            than of images, wrong shapes, dtypes or devices, labels outside 0..K-1, boxes that are
            not xyxy (or not finite) or lie outside their image.
    """
    if len(targets) != len(images):
        raise ValueError(f"{len(targets)} targets for {len(images)} images; give one per image")
    for index, target in enumerate(targets):
        check_form(f"targets[{index}]", target, images.device)
    boxes = torch.cat([target["boxes"] for target in targets])  # (B, 4)
    labels = torch.cat([target["labels"] for target in targets])  # (B,)
    sizes = torch.as_tensor(image_sizes).cpu()  # (N, 2)
    counts = torch.tensor([len(target["labels"]) for target in targets])
    of_box = sizes.repeat_interleave(counts, dim=0)  # (B, 2)
    of_box = of_box.to(images.device, non_blocking=True)
    sound = sound_boxes(boxes, labels, of_box, num_classes)  # (B,)
    if not sound.all():
        complain(targets, sizes, num_classes, int(sound.logical_not().nonzero()[0]))


def check_masks(
    targets: Sequence[Mapping[str, Tensor]], image_sizes: Tensor | Sequence[tuple[int, int]]
) -> None:
    """Check the masks of targets that have passed `check_targets`; sizes on the host cost no wait.

    Args:
        targets: each with masks (M, H, W) uint8 or bool.
        image_sizes: (N, 2) true (height, width), in pixels.

    Raises:
        ValueError: one sentence that names the image by its index, for masks that are missing or of
            another shape, dtype or device.
    """
    sizes = torch.as_tensor(image_sizes).tolist()
    for index, (target, (height, width)) in enumerate(zip(targets, sizes, strict=True)):
        name, masks, boxes = f"targets[{index}]", target.get("masks"), target["boxes"]
        if not isinstance(masks, Tensor):
            raise ValueError(
                f"{name}: masks is not a tensor; give a mask per box, all zeros if it has none"
            )
        if masks.device != boxes.device:
            raise ValueError(
                f"{name}: masks are on {masks.device}, the images are on {boxes.device}; move them"
            )
        if masks.shape != (len(boxes), height, width):
            raise ValueError(
                f"{name}: masks have the shape {tuple(masks.shape)} instead of "
                f"({len(boxes)}, {height}, {width}), the number of boxes and the size of the image "
                "before padding"
            )
        if masks.dtype not in (torch.uint8, torch.bool):
            raise ValueError(f"{name}: masks are {masks.dtype}; make them uint8, 0 or 1")


def check_form(name: str, target: Mapping[str, Tensor], device: torch.device) -> None:
    """Check all that is known without looking at values: keys, shapes, dtypes and devices."""
    for key in ("boxes", "labels"):
        if not isinstance(target, Mapping) or not isinstance(target.get(key), Tensor):
            raise ValueError(f"{name}: {key} is not a tensor; a target is a dict of boxes, labels")
        if target[key].device != device:
            raise ValueError(
                f"{name}: {key} is on {target[key].device}, the images are on {device}; move it"
            )
    boxes, labels = target["boxes"], target["labels"]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"{name}: boxes have the shape {tuple(boxes.shape)} instead of (M, 4); no boxes are "
            "torch.zeros(0, 4)"
        )
    if labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{name}: labels have the shape {tuple(labels.shape)}, but there are {len(boxes)} "
            "boxes; give one label per box"
        )
    if not boxes.is_floating_point() or labels.dtype != torch.int64:
        raise ValueError(
            f"{name}: boxes are {boxes.dtype}, labels {labels.dtype}; "
            "make boxes float32 and labels int64"
        )


def sound_boxes(boxes: Tensor, labels: Tensor, sizes: Tensor, num_classes: int) -> Tensor:
    """Which boxes (B, 4) of images (B, 2) and labels (B,) can be learned from: (B,) bool."""
    first, second = boxes[:, :2], boxes[:, 2:]
    inside = (first >= -TOLERANCE) & (second <= sizes.flip(1) + TOLERANCE)  # no if NaN
    return ((second > first) & inside).all(dim=1) & (labels >= 0) & (labels < num_classes)


def complain(
    targets: Sequence[Mapping[str, Tensor]], sizes: Tensor, num_classes: int, bad: int
) -> typing.NoReturn:
    """Say what is wrong with box `bad` of the batch."""
    image = 0
    while bad >= len(targets[image]["labels"]):
        bad -= len(targets[image]["labels"])
        image += 1
    box, label = targets[image]["boxes"][bad].tolist(), int(targets[image]["labels"][bad])
    name = f"targets[{image}]: box {bad}, ({', '.join(f'{side:g}' for side in box)}),"
    if not 0 <= label < num_classes:
        raise ValueError(
            f"{name} has the label {label}; for {num_classes} classes they are "
            f"0 to {num_classes - 1}, without background"
        )
    if not (box[2] > box[0] and box[3] > box[1]):
        raise ValueError(
            f"{name} has no area; boxes are (left, top, right, bottom) in pixels: "
            "torchvision.ops.box_convert makes them from xywh"
        )
    height, width = sizes[image].tolist()
    raise ValueError(
        f"{name} lies outside its image, which is {width} px wide and {height} px high; boxes are "
        "(left, top, right, bottom) in pixels of the image as the detector gets it, before padding"
    )
