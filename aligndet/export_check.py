"""Whether an exported detector finds what the detector itself finds, and how fast.

Legend: D detections, E expected ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aligndet.export_formats import Run
from data.counting import count
from data.normalise import normalise
from data.views import pad_images

BOX_TOLERANCE = 1.0  # px; detections that differ more are not the same
SCORE_TOLERANCE = 0.01
# Of detections that only one of both may have: where a score is as high as the threshold, or an
# overlap as large as that of non-maximum suppression, to the last bit, rounding decides.
UNMATCHED_SHARE = 0.02


@dataclass
class Comparison:
    """What differs; it grows with every batch."""

    images: int = 0
    matched: int = 0  # detections
    unmatched: int = 0  # detections of one of both
    box: float = 0.0  # px, the largest difference of a coordinate of matched ones
    score: float = 0.0
    mask: float | None = None  # of a probability; None: there are no masks
    seconds: float = 0.0  # of PyTorch
    exported_seconds: float = 0.0
    timed: int = 0  # images

    @property
    def same(self) -> bool:
        """Whether both find the same, but for rounding."""
        return self.unmatched <= UNMATCHED_SHARE * (2 * self.matched + self.unmatched)

    def add(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
        """Compare the detections of an image, dicts of boxes, scores, labels and maybe masks."""
        pairs = matches(found, expected)
        ours, theirs = ({k: v[index] for k, v in both.items()} for both, index in pairs)
        self.images += 1
        self.matched += len(ours["scores"])
        total = len(found["scores"]) + len(expected["scores"])
        self.unmatched += total - 2 * len(ours["scores"])
        largest = {k: float((ours[k] - theirs[k]).abs().max()) for k in ours if ours[k].numel()}
        self.box = max(self.box, largest.get("boxes", 0.0))
        self.score = max(self.score, largest.get("scores", 0.0))
        if "masks" in expected:
            self.mask = max(self.mask or 0.0, largest.get("masks", 0.0))

    def summary(self, name: str) -> str:
        """A few lines for the terminal; `name` is the format."""
        masks = "" if self.mask is None else f", masks {self.mask:.1e}"
        lines = [
            f"{count(self.images, 'image')}, {count(self.matched, 'detection')} as in PyTorch; "
            f"largest difference: boxes {self.box:.1e} px, scores {self.score:.1e}{masks}"
        ]
        if self.unmatched:
            lines.append(f"in only one of both, by rounding: {count(self.unmatched, 'detection')}")
        threads = count(torch.get_num_threads(), "thread")
        ours, theirs = (1000 * s / self.timed for s in (self.seconds, self.exported_seconds))
        lines.append(f"{ours:.0f} ms per image in PyTorch, {theirs:.0f} as {name}, with {threads}")
        return "\n".join(lines)


@torch.no_grad()
def compare(detector: nn.Module, run: Run, images: Sequence[Tensor]) -> Comparison:
    """Compare an exported detector with the detector, image by image, then two images at a time.

    Args:
        detector: in eval mode, on the CPU.
        run: the exported one.
        images: (3, h, w) uint8 each, RGB, of the size at which the detector looks at them.
    """
    result = Comparison()
    _both(detector, run, images[:1])  # the first time takes longer
    for image in images:
        expected, found, seconds = _both(detector, run, [image])
        result.add(found[0], expected[0])
        result.seconds += seconds[0]
        result.exported_seconds += seconds[1]
        result.timed += 1
    if len(images) > 1:
        expected, found, _ = _both(detector, run, images[:2])
        for pair in zip(found, expected, strict=True):
            result.add(*pair)
        result.images -= 2  # which were counted already
    return result


Detections = list[dict[str, Tensor]]


def _both(
    detector: nn.Module, run: Run, images: Sequence[Tensor]
) -> tuple[Detections, Detections, tuple[float, float]]:
    """Detections of the detector and the exported one, and the seconds that each took."""
    batch, sizes = pad_images(images)
    start = time.perf_counter()
    expected = detector(normalise(batch, sizes), sizes)
    middle = time.perf_counter()
    found = run(batch, sizes)
    end = time.perf_counter()
    return expected, by_image(found, len(images)), (middle - start, end - middle)


def by_image(found: Sequence[Tensor], number: int) -> Detections:
    """What `ExportedDetector` returns for a batch of so many images as one dict per image."""
    boxes, scores, labels, image, *masks = found
    values = {"boxes": boxes, "scores": scores, "labels": labels}
    if masks:
        values["masks"] = masks[0]
    return [{k: v[image == n] for k, v in values.items()} for n in range(number)]


def matches(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[tuple[Mapping[str, Tensor], list[int]], tuple[Mapping[str, Tensor], list[int]]]:
    """Both, each with the indices of the detections that are in the other one, too, pair by pair.

    Rounding can change the order of detections that score alike.
    """
    box = (found["boxes"][:, None] - expected["boxes"]).abs().amax(dim=2)  # (D, E)
    score = (found["scores"][:, None] - expected["scores"]).abs()
    same = (box <= BOX_TOLERANCE) & (score <= SCORE_TOLERANCE)
    same &= found["labels"][:, None] == expected["labels"]
    cost = (box + score).masked_fill(~same, torch.inf)
    ours, theirs = [], []
    for number in range(cost.shape[1]):
        if len(cost) and cost[:, number].min() < torch.inf:
            nearest = int(cost[:, number].argmin())
            cost[nearest] = torch.inf
            ours.append(nearest)
            theirs.append(number)
    return (found, ours), (expected, theirs)
