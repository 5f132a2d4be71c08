"""Selective search side by side: ours, OpenCV's (contrib) and scikit-image's over-segmentation.

    pip install -r benchmarks/requirements.txt
    python benchmarks/proposals.py --images DIR --annotations FILE.json --output DIR

Quality: recall at IoU 0.5 and mean best IoU of objects larger than 32 x 32 px, for the first k
boxes of every image, as a table and as a picture. Time: one thread each, in turns on the same
chunks of images; ratios are of medians. All boxes pass the same filter: an aspect ratio of at most
3 : 1, sides of at least 16 px, and an extent of at most 0.8 of the image's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from skimage.measure import regionprops
from skimage.segmentation import felzenszwalb
from torch import Tensor
from tqdm import tqdm

from data.images import read_image
from data.proposals.box_filter import BoxFilter, filter_boxes
from data.proposals.propose import ProposalSettings, propose
from data.proposals.recall import measure_recall
from data.proposals.sources import objects_by_file

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend is chosen first)

CURVE = (10, 20, 40, 80, 159, 250, 400, 600, 820, 1200)
RIVALS = {"ours, fast": "OpenCV, single", "ours, thorough": "OpenCV, fast"}
SCALES = (50, 100, 200, 400, 800)  # of scikit-image's over-segmentations
Search = Callable[[list[Tensor]], list[Tensor]]


def ours(search: str, images: list[Tensor], device: str = "cpu") -> list[Tensor]:
    """Every box of our search, ranked."""
    settings = ProposalSettings(box_filter=None, nms_iou=1, search=search)
    return propose(images, settings, torch.device(device))


def opencv(mode: str, images: list[Tensor]) -> list[Tensor]:
    """Every box of OpenCV's search, in its order."""
    found = []
    for image in images:
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(image.permute(1, 2, 0).numpy()[..., ::-1]))
        getattr(search, f"switchTo{mode}")()
        corner, extent = torch.from_numpy(search.process()).float().split(2, dim=1)
        found.append(torch.cat([corner, corner + extent], dim=1))
    return found


def skimage(images: list[Tensor]) -> list[Tensor]:
    """Boxes of the regions of five over-segmentations, large regions first; nothing is grouped."""
    found = []
    for image in images:
        regions = []
        for scale in SCALES:
            labels = felzenszwalb(image.permute(1, 2, 0).numpy(), scale=scale, min_size=50)
            regions += regionprops(labels + 1)
        regions.sort(key=lambda region: -region.area)
        boxes = [[r.bbox[1], r.bbox[0], r.bbox[3], r.bbox[2]] for r in regions]
        found.append(torch.tensor(boxes).float())
    return found


METHODS: dict[str, Search] = {
    "ours, fast": partial(ours, "fast"),
    "OpenCV, single": partial(opencv, "SingleStrategy"),
    "ours, thorough": partial(ours, "thorough"),
    "OpenCV, fast": partial(opencv, "SelectiveSearchFast"),
    "scikit-image, regions": skimage,
}


def run_in_turns(
    images: list[Tensor], chunk: int
) -> tuple[dict[str, list[Tensor]], dict[str, list[float]]]:
    """For each method, filtered boxes of every image, and milliseconds per image of every chunk."""
    boxes: dict[str, list[Tensor]] = {name: [] for name in METHODS}
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for search in METHODS.values():  # first calls load and allocate
        search(images[:1])
    for start in tqdm(range(0, len(images), chunk), unit="chunk"):
        batch = images[start : start + chunk]
        for name, search in METHODS.items():
            begin = time.perf_counter()
            found = search(batch)
            times[name].append((time.perf_counter() - begin) / len(batch) * 1000)
            boxes[name] += [passing(b, i) for b, i in zip(found, batch, strict=True)]
    return boxes, times


def passing(boxes: Tensor, image: Tensor) -> Tensor:
    """The boxes of an image that pass the filter."""
    height, width = image.shape[1:]
    return filter_boxes(boxes, height, width, BoxFilter(min_side=16 * 640 / max(height, width)))


def quality(boxes: list[Tensor], objects: list[Tensor], k: int | None) -> dict[str, float]:
    """Recall and mean best IoU of large objects by the first k boxes of each image."""
    return measure_recall([b[:k] for b in boxes], objects)


def print_quality(boxes: dict[str, list[Tensor]], objects: list[Tensor]) -> None:
    """Print the quality of each rival's boxes, and of as many of ours on average."""
    print(f"{'':24s} boxes/image  recall@0.5  mean best IoU")
    for rival in RIVALS.values():
        k = round(quality(boxes[rival], objects, None)["boxes_per_image"])
        for name, limit in ((rival, None), *((ours_, k) for ours_ in RIVALS)):
            report = quality(boxes[name], objects, limit)
            print(
                f"{name:24s} {report['boxes_per_image']:11.0f}  {report['large_recall']:10.3f}  "
                f"{report['large_mean_best_iou']:13.3f}"
            )
        print()


def print_times(times: dict[str, list[float]]) -> None:
    """Print medians, and ours as a multiple of the rival's."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        rival = RIVALS.get(name)
        ratio = f"   {median / medians[rival]:.2f} x {rival}" if rival else ""
        print(f"{name:24s} {median:7.1f} ms per image{ratio}")


def print_gpu(images: list[Tensor], times: dict[str, list[float]]) -> None:
    """Images a second in batches of 64 on a GPU, against OpenCV's single strategy on one core."""
    if not torch.cuda.is_available():
        print("GPU: not measured, as there is none")
        return
    single = 1000 / statistics.median(times["OpenCV, single"])
    batch = (images * (64 // len(images) + 1))[:64]
    for search in ("fast", "thorough"):
        seconds = []
        for _ in range(6):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            ours(search, batch, "cuda")
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        rate = 64 / statistics.median(seconds[1:])
        print(f"GPU, {search}: {rate:.0f} images a second, {rate / single:.1f} x OpenCV, single")


def draw_curves(boxes: dict[str, list[Tensor]], objects: list[Tensor], path: Path) -> None:
    """Recall and mean best IoU against the number of boxes."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    keys = {"large_recall": "recall at IoU 0.5", "large_mean_best_iou": "mean best IoU"}
    for name, found in boxes.items():
        most = max(map(len, found))
        ks = [k for k in CURVE if k < most]
        reports = [quality(found, objects, k) for k in (*ks, None)]
        places = [report["boxes_per_image"] for report in reports]
        for panel, key in zip(panels, keys, strict=True):
            style = "-o" if name in RIVALS else "--s"
            panel.plot(places, [r[key] for r in reports], style, markersize=4, label=name)
    for panel, title in zip(panels, keys.values(), strict=True):
        panel.set(xscale="log", xlabel="boxes per image", ylabel=title, ylim=(0, 1))
        panel.set_xticks([10, 40, 159, 400, 820], ["10", "40", "159", "400", "820"])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle("Objects larger than 32 × 32 px, covered by the first boxes of each search")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", required=True, type=Path, help="folder of photographs")
    parser.add_argument("--annotations", required=True, help="COCO JSON with their objects")
    parser.add_argument("--output", type=Path, default=Path("runs/proposals"), help="for the curve")
    parser.add_argument("--count", type=int, help="use only so many images")
    parser.add_argument("--chunk", type=int, default=8, help="images per turn (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    truth = objects_by_file(options.annotations, options.images)
    large = {
        name for name, b in truth.items() if ((b[:, 2:] - b[:, :2]).prod(dim=1) > 32**2).any()
    }
    names = sorted(large)[: options.count]
    pixels = [np.array(read_image(options.images / name)) for name in names]
    images = [torch.from_numpy(image).permute(2, 0, 1) for image in pixels]
    objects = [truth[name] for name in names]
    print(f"{len(images)} images with large objects, one thread, OpenCV {cv2.__version__}")
    boxes, times = run_in_turns(images, options.chunk)
    print_quality(boxes, objects)
    print_times(times)
    print_gpu(images, times)
    options.output.mkdir(parents=True, exist_ok=True)
    draw_curves(boxes, objects, options.output / "recall.png")
    print(f"picture: {options.output / 'recall.png'}")


if __name__ == "__main__":
    main()
