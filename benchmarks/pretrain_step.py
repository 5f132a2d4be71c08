"""Time and peak memory of one box-domain pre-training step of each detector, on CPU.

`python benchmarks/pretrain_step.py`: 2 images of 640 x 800 with 300 proposals each, ResNet-50,
the paper's sampling. A step is forward, backward, SGD with momentum and the target's update. Faster
R-CNN and Mask R-CNN get 1000 RPN proposals per image that all overlap a box, the most possible; the
masks of Mask R-CNN are all of a proposal's box.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from peak_memory import PeakMemory, resident
from torch import Tensor

from aligndet.adapters import ADAPTERS
from aligndet.box_domain import BoxDomain, BoxDomainConfig
from models import ModelConfig, build_detector
from models.detector import learns_masks

PAPER = {
    name: {"rpn_samples": 4096, "rpn_positive_fraction": 1.0}
    for name in ("faster_rcnn", "mask_rcnn")
}


def random_boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(count, 4) xyxy as from selective search: 32 px to the whole image, mostly small."""
    random = torch.rand(count, 4, generator=generator)
    size = torch.tensor([width, height])
    sides = 32 * (size / 32) ** random[:, :2]  # log-uniform
    corner = random[:, 2:] * (size - sides)
    return torch.cat((corner, corner + sides), dim=1)


def two_views(images: int, height: int, width: int, boxes: int) -> list[dict[str, Any]]:
    """A batch of noise and its mirror image, with the boxes of each."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(images, 3, height, width, generator=generator)
    found = [random_boxes(boxes, height, width, generator) for _ in range(images)]
    mirror = torch.tensor([-1, 1, -1, 1]), torch.tensor([width, 0, width, 0])
    flipped = [b[:, [2, 1, 0, 3]] * mirror[0] + mirror[1] for b in found]
    sizes = torch.tensor([[height, width]] * images)
    return [
        {"images": pixels, "image_sizes": sizes, "boxes": found},
        {"images": pixels.flip(3), "image_sizes": sizes, "boxes": flipped},
    ]


def filled(boxes: Tensor, height: int, width: int) -> Tensor:
    """(M, H, W) uint8 masks of all pixels in the boxes (M, 4)."""
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    left, top, right, bottom = boxes.T[..., None]
    columns, rows = (x > left) & (x < right), (y > top) & (y < bottom)
    return (rows[:, :, None] & columns[:, None]).to(torch.uint8)


def trained_rpn(boxes: list[Tensor]) -> Callable[..., list[Tensor]]:
    """The case that takes most memory: an RPN whose proposals all overlap a box enough. An
    untrained one finds few boxes, so a first step would say little."""

    def propose(output: Any, image_sizes: Tensor, topk: int, limit: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        near = []
        for its_boxes in boxes:
            chosen = its_boxes[torch.arange(limit) % len(its_boxes)]
            sides = (chosen[:, 2:] - chosen[:, :2]).repeat(1, 2)
            near.append(chosen + 0.05 * sides * torch.randn(limit, 4, generator=generator))
        return near

    return propose


def run(detector: str, images: int, height: int, width: int, boxes: int) -> dict[str, float]:
    """Peak gigabytes and seconds of the second step; called in a fresh process."""
    torch.manual_seed(0)
    options = PAPER.get(detector, {})
    model = build_detector(ModelConfig(detector=detector, backbone="resnet50", options=options), 1)
    task = BoxDomain(model, detector, BoxDomainConfig()).train()
    trainable = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.01, momentum=0.9, weight_decay=1e-4)
    batch = two_views(images, height, width, boxes)
    if learns_masks(detector):
        batch[0]["masks"] = [filled(b, height, width) for b in batch[0]["boxes"]]
    if detector in PAPER:
        for branch, view in zip((task.online, task.target), batch, strict=True):
            branch.detector.rpn.propose = trained_rpn(view["boxes"])
    start = resident()
    with PeakMemory() as peak:
        for step in range(2):  # gradients and momentum exist from the second one on
            with PeakMemory() as of_step:
                losses, statistics_ = task(batch)
                optimizer.zero_grad()
                sum(losses.values()).backward()
                optimizer.step()
                task.update_target(step, 2)
    return {
        "peak": peak.bytes / 1e9,
        "process": (start + peak.bytes) / 1e9,
        "seconds": of_step.seconds,
        "queries": statistics_["queries"].item(),
    }


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 800), metavar=("H", "W"))
    parser.add_argument("--boxes", type=int, default=300, help="proposals per image")
    parser.add_argument("--detectors", nargs="+", choices=ADAPTERS, default=list(ADAPTERS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU")
    print(f"{args.images} images of {args.size[0]} x {args.size[1]}, {args.boxes} boxes each")
    results: dict[str, list[dict[str, float]]] = {name: [] for name in args.detectors}
    spawn = multiprocessing.get_context("spawn")
    for _ in range(args.rounds):
        for name, its_results in results.items():
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                size = (args.images, *args.size, args.boxes)
                its_results.append(pool.submit(run, name, *size).result())
    for name, its_results in results.items():
        peak, process, seconds, queries = (
            statistics.median(r[key] for r in its_results) for key in its_results[0]
        )
        print(
            f"  {name:12} {peak:5.2f} GB above model and images ({process:.2f} GB in all), "
            f"{seconds:5.1f} s per step, {queries:.0f} embeddings with a pair"
        )


if __name__ == "__main__":
    main()
