"""Images per second and loader process, against torchvision.transforms.v2 in torch's DataLoader.

`python benchmarks/loader.py`: labelled images (fine-tuning) and pairs of views (box domain), from
JPEGs of 640 x 480 and 1200 x 800 pixels. Both sides draw the same sizes, flips and photometric
operations (Pillow's filter and torchvision's are bilinear with anti-aliasing), pad to multiples of
32, and decode an image once for both of its views. torchvision's side runs twice, on Pillow images
and on tensors, and ours is compared with the quicker one. Their floats are made in the loader
process; ours are made on the device (`data.normalise`), which is timed apart, on this processor.

The three take turns; figures are medians over the rounds, ratios medians of the rounds' ratios. The
wall clock counts the processes' start. Processor time per image, of all processes together, is what
to look at where something else runs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from data.images import read_image
from data.loaders import GroupedBatchSampler, Loader
from data.normalise import MEAN, STD, normalise_batch
from data.records import Record
from data.transforms import PHOTOMETRIC, Augment, resized_size
from data.views import (
    DetectionDataset,
    SampleKey,
    TwoViewDataset,
    collate_detection,
    collate_views,
)

FILES = 8  # different pictures
BOXES = 10  # in each picture
RATES = (20, 50, 100, 200, 400)  # images per second of a GPU


class Photographs:
    """JPEGs of smooth noise with grain, which take about the bytes per pixel of photographs."""

    def __init__(self, folder: Path, width: int, height: int, side: int | None) -> None:
        self.folder, self.width, self.height = folder, width, height
        self.side = side  # short side of views, if ours may decode the pictures smaller
        self.aspect_ratios = [height / width] * 1000
        for number in range(FILES):
            rng = np.random.default_rng(number)
            coarse = rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            grain = np.asarray(smooth) + rng.normal(0, 4, (height, width, 1))
            picture = Image.fromarray(grain.clip(0, 255).astype(np.uint8))
            picture.save(self.path(number), quality=90)

    def __len__(self) -> int:
        return len(self.aspect_ratios)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / f"{self.width}_{index % FILES}.jpg"

    def record(self, index: int) -> Record:
        """An image with boxes of its own."""
        corners = torch.rand(BOXES, 2, 2, generator=torch.Generator().manual_seed(index))
        corners *= torch.tensor([self.width, self.height])
        boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        labels = torch.zeros(BOXES, dtype=torch.int64)
        return Record(index, self.path(index).name, self.height, self.width, boxes, labels)

    def read(self, index: int) -> tuple[Image.Image, Record]:
        """The picture, decoded as in training, and its record."""
        height, width = resized_size(self.height, self.width, self.side or 10**6, 10**6)
        return read_image(self.path(index), least=(width, height)), self.record(index)


def on_pillow(path: Path) -> Image.Image:
    """How torchvision's datasets read an image."""
    with Image.open(path) as image:
        return image.convert("RGB")


def on_tensors(path: Path) -> tv_tensors.Image:
    """What torchvision recommends for speed: bytes to the end, by its own decoder."""
    return tv_tensors.Image(decode_image(str(path), ImageReadMode.RGB))


# The operations of `data.transforms.PHOTOMETRIC`, by torchvision.
THEIR_PHOTOMETRIC: dict[str, Callable[[Any, float], Any]] = {
    "identity": lambda image, m: image,
    "auto_contrast": lambda image, m: functional.autocontrast(image),
    "equalize": lambda image, m: functional.equalize(image),
    "solarize": lambda image, m: functional.solarize(image, round(256 * (1 - m))),
    "colour": lambda image, m: functional.adjust_saturation(image, 0.1 + 1.8 * m),
    "contrast": lambda image, m: functional.adjust_contrast(image, 0.1 + 1.8 * m),
    "brightness": lambda image, m: functional.adjust_brightness(image, 0.1 + 1.8 * m),
    "sharpness": lambda image, m: functional.adjust_sharpness(image, 0.1 + 1.8 * m),
    "posterize": lambda image, m: functional.posterize(image, 8 - round(4 * m)),
}


class Theirs(Dataset[list[dict[str, Any]]]):
    """Views of images as a user of torchvision.transforms.v2 would make them."""

    def __init__(
        self, source: Photographs, augment: Augment, views: int, read: Callable[[Path], Any]
    ) -> None:
        self.source, self.augment, self.views, self.read = source, augment, views, read

    def __getitem__(self, key: SampleKey) -> list[dict[str, Any]]:
        image, record = self.read(self.source.path(key.index)), self.source.record(key.index)
        rng = random.Random(key.seed)
        return [self.view(image, record, rng) for _ in range(self.views)]

    def view(self, image: Any, record: Record, rng: random.Random) -> dict[str, Any]:
        """One view, drawn as by `Augment`."""
        size = (record.height, record.width)
        boxes = tv_tensors.BoundingBoxes(record.boxes, format="XYXY", canvas_size=size)
        new = list(resized_size(*size, rng.choice(self.augment.short_sides), self.augment.max_side))
        image, boxes = functional.resize(image, new), functional.resize(boxes, new)
        if rng.random() < self.augment.flip:
            image, boxes = functional.horizontal_flip(image), functional.horizontal_flip(boxes)
        if self.augment.photometric:
            image = THEIR_PHOTOMETRIC[rng.choice(list(PHOTOMETRIC))](image, rng.random())
        pixels = functional.to_dtype(functional.to_image(image), torch.float32, scale=True)
        image = functional.normalize(pixels, list(MEAN), list(STD), inplace=True)
        return {"image": image.as_subclass(torch.Tensor), "boxes": boxes.as_subclass(torch.Tensor)}


def their_collate(samples: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Batches of each view, padded as torchvision's detectors pad them."""
    batches = []
    for view in zip(*samples, strict=True):
        images = [sample["image"] for sample in view]
        height, width = (math.ceil(max(i.shape[k] for i in images) / 32) * 32 for k in (1, 2))
        batch = images[0].new_zeros(len(images), 3, height, width)
        for padded, image in zip(batch, images, strict=True):
            padded[:, : image.shape[1], : image.shape[2]].copy_(image)
        batches.append({"images": batch, "boxes": [sample["boxes"] for sample in view]})
    return batches


def one_thread(_: int) -> None:
    """What our own workers do as well."""
    torch.set_num_threads(1)


def loaders(source: Photographs, side: int, views: int, args: argparse.Namespace) -> dict[str, Any]:
    """Functions that start each loader over the same samples."""
    augment = Augment((side,), max_side=round(side * 1333 / 800), photometric=views == 2)
    if views == 2:
        dataset, collate = TwoViewDataset(source, augment, None), collate_views
    else:
        dataset, collate = DetectionDataset(source, augment), collate_detection
    keys = list(itertools.islice(GroupedBatchSampler(source.aspect_ratios, 2), args.batches))
    makers: dict[str, Any] = {"ours": lambda: Loader(dataset, keys, collate, args.workers)}
    for read in (on_pillow, on_tensors):
        theirs = Theirs(source, augment, views, read)
        makers[read.__name__] = lambda theirs=theirs: DataLoader(
            theirs,
            batch_sampler=keys,
            collate_fn=their_collate,
            num_workers=args.workers,
            worker_init_fn=one_thread,
        )
    return makers


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def views_of(batch: Any) -> list[dict[str, Any]]:
    """A list of one or two dicts."""
    return [batch] if isinstance(batch, dict) else list(batch)


def timed(loader: Any, images: int) -> tuple[float, float]:
    """Wall-clock and processor seconds per image, to the end of the loader's processes."""
    start, before = time.perf_counter(), processor_seconds()
    for batch in loader:
        for view in views_of(batch):
            view["images"][:, 0, ::8, ::8].sum()  # so that it counts if pages must be mapped
    seconds = time.perf_counter() - start, processor_seconds() - before
    return seconds[0] / images, seconds[1] / images


def normalising(loader: Loader) -> float:
    """Processor seconds per image that the device spends on floats, were it this processor."""
    batch, repeats = next(iter(loader)), 5
    images = len(views_of(batch)[0]["images"])
    normalise_batch(batch)
    start = time.process_time()
    for _ in range(repeats):
        normalise_batch(batch)
    return (time.process_time() - start) / (repeats * images)


def measure(makers: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Figures of one kind of samples."""
    images = 2 * args.batches
    wall: dict[str, list[float]] = {name: [] for name in makers}
    processor: dict[str, list[float]] = {name: [] for name in makers}
    for number in range(args.rounds):
        for name in list(makers)[:: 1 if number % 2 else -1]:
            seconds = timed(makers[name](), images)
            wall[name].append(seconds[0])
            processor[name].append(seconds[1])
    best = min(("on_pillow", "on_tensors"), key=lambda name: statistics.median(processor[name]))
    rates = {n: 1 / (args.workers * statistics.median(times)) for n, times in wall.items()}
    cost = {n: 1000 * statistics.median(times) for n, times in processor.items()}
    floats = 1000 * normalising(makers["ours"]())
    return {
        **{f"rate_{name}": rates[name] for name in makers},
        **{f"ms_{name}": cost[name] for name in makers},
        "ms_floats": floats,
        "ratio_wall": _ratio(wall[best], wall["ours"]),
        "ratio": _ratio(processor[best], processor["ours"]),
        "ratio_with_floats": cost[best] / (cost["ours"] + floats),
    }


def _ratio(theirs: list[float], ours: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def workers_needed(images_per_second: float, per_worker: float) -> int:
    """Loader processes per GPU that keep up with it.

    Args:
        images_per_second: that the GPU trains on.
        per_worker: images per second that one process loads, on the machine of the GPU.
    """
    return math.ceil(images_per_second / per_worker)


def lines(results: dict[str, dict[str, float]]) -> Iterator[str]:
    """A table of the figures, and of the processes that a GPU needs."""
    yield f"{'images/s and worker':34}{'ours':>7}{'v2 Pillow':>11}{'v2 tensors':>12}{'ratio':>7}"
    for title, r in results.items():
        rates = (r["rate_ours"], r["rate_on_pillow"], r["rate_on_tensors"], r["ratio_wall"])
        yield f"{title:34}{rates[0]:7.1f}{rates[1]:11.1f}{rates[2]:12.1f}{rates[3]:7.2f}"
    yield ""
    yield f"{'processor ms per image':34}{'ours':>7}{'v2 Pillow':>11}{'v2 tensors':>12}{'ratio':>7}"
    for title, r in results.items():
        cost = (r["ms_ours"], r["ms_on_pillow"], r["ms_on_tensors"], r["ratio"])
        floats = f"; {r['ratio_with_floats']:.2f} with {r['ms_floats']:.1f} ms of floats here"
        yield f"{title:34}{cost[0]:7.1f}{cost[1]:11.1f}{cost[2]:12.1f}{cost[3]:7.2f}{floats}"
    yield f"\n{'workers for images/s of a GPU':34}" + "".join(f"{rate:7}" for rate in RATES)
    for title, r in results.items():
        per_worker = 1000 / r["ms_ours"]
        needed = (workers_needed(rate, per_worker) for rate in RATES)
        yield f"{title:34}" + "".join(f"{number:7}" for number in needed)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes of each loader (1)")
    parser.add_argument("--rounds", type=int, default=5, help="of each loader, in turns (5)")
    parser.add_argument("--batches", type=int, default=40, help="of 2 images, per round (40)")
    parser.add_argument("--sides", type=int, nargs="+", default=(800,), help="short sides (800)")
    parser.add_argument("--scaled", action="store_true", help="ours: data.scaled_decoding=true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for (width, height), side in itertools.product(((640, 480), (1200, 800)), args.sides):
            source = Photographs(Path(folder), width, height, side if args.scaled else None)
            for views, kind in ((1, "fine-tuning"), (2, "two views")):
                makers = loaders(source, side, views, args)
                results[f"{width} x {height} to {side}, {kind}"] = measure(makers, args)
    print(f"torch {torch.__version__}, {args.workers} workers, {args.rounds} rounds")
    for line in lines(results):
        print(line)
    rounded = {t: {k: round(v, 3) for k, v in r.items()} for t, r in results.items()}
    settings = {"workers": args.workers, "scaled": args.scaled}
    print(json.dumps({"benchmark": "loader", **settings, "results": rounded}))


if __name__ == "__main__":
    main()
