"""Does the data side hold at COCO's size? Start-up, memory, resuming, evaluation.

`python benchmarks/coco_scale.py --folder DIR` makes a synthetic COCO below DIR (118,287 images that
are hard links of one JPEG, 860,001 labelled boxes, 20 million proposals; 3.5 GB, kept for the next
time), then starts real runs of two processes with two loader processes each, of a small detector on
small views. `--scale 0.01` tries it with a hundredth of everything. One JSON line comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from aligndet.evaluate import score
from data import checked_files
from data.build import DataConfig, SplitConfig, build_train, build_two_views
from data.coco_file import SUFFIX
from data.kept_beside import places
from data.loaders import GroupedBatchSampler, iterate, train_loader
from data.views import collate_detection, collate_views

IMAGES, LABELLED, PROPOSALS, CLASSES = 118_287, 860_001, 20_000_000, 80
EVALUATED, DETECTIONS = 5_000, 100  # images, and detections in each
WIDTH, HEIGHT = 640, 480
RESUMED_AT = 80_000  # step
RANKS, WORKERS = 2, 2
BATCHES = 10  # that a rank takes before its memory is measured
RUN = (
    "data.short_sides=[64]", "data.max_side=96", "data.batch_size=2", f"data.workers={WORKERS}",
    "model.detector=fcos", "model.backbone=resnet18", "model.backbone_weights=null", "seed=0",
    "loop.log_every=1", "schedule.iterations=100000", "device=cpu",
)  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for the synthetic COCO")
    parser.add_argument("--scale", type=float, default=1.0, help="1 is COCO")
    parser.add_argument("--rank", choices=("train", "proposals"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder / f"coco_{args.scale:g}"
    if args.rank:
        be_a_rank(folder, args.rank)
        return
    make(folder, args.scale)
    results: dict[str, Any] = {}
    for kind in ("train", "proposals"):
        kept = places(folder / f"{kind}.json", SUFFIX)
        for path in kept + places(folder / "images", checked_files.SUFFIX, hidden=True):
            path.unlink(missing_ok=True)
        for start in ("first", "second"):
            results[f"{kind}, {start} start"] = two_ranks(folder, args.scale, kind)
            show(f"{kind}, {start} start", results)
    results["sampler"] = time_sampler(folder)
    show("sampler", results)
    results["evaluation"] = time_evaluation(folder)
    show("evaluation", results)
    results |= time_runs(folder)
    print(json.dumps(results))


def show(name: str, results: dict[str, Any]) -> None:
    """Print a result."""
    print(f"{name}: {results[name]}", flush=True)


def make(folder: Path, scale: float) -> None:
    """Write the images and both JSON files, if they are not there."""
    images, start = max(8, round(IMAGES * scale)), time.perf_counter()
    pictures = folder / "images"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        pictures.mkdir(parents=True)
        picture = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
        Image.fromarray(picture).resize((WIDTH, HEIGHT)).save(folder / "shared.jpg")
        source = folder / "shared.jpg"
        for number in range(images):
            if number % 30_000 == 0:  # file systems limit the links of a file
                source = Path(shutil.copy(source, folder / f"shared{number}.jpg"))
            os.link(source, pictures / f"{number:012}.jpg")
        for name, boxes, classes in (
            ("train", round(LABELLED * scale), CLASSES),
            ("proposals", round(PROPOSALS * scale), 1),
        ):
            with open(folder / f"{name}.json", "w") as file:
                write_json(file, images, boxes, classes)
        (folder / "done").touch()
        print(f"made {folder} in {time.perf_counter() - start:.0f} s", flush=True)
    sizes = {name: (folder / f"{name}.json").stat().st_size for name in ("train", "proposals")}
    shown = ", ".join(f"{name}.json {size / 1e6:,.0f} MB" for name, size in sizes.items())
    print(f"{images:,} images, {shown}", flush=True)


def write_json(file: IO[str], images: int, boxes: int, classes: int) -> None:
    """A COCO JSON with the fields that COCO's own files and ours have; the boxes of an image lie
    together, as in ours, and those of labels do not, as in COCO's."""
    rng = np.random.default_rng(boxes)
    file.write('{"info": {}, "images": [')
    file.write(
        ", ".join(
            f'{{"id": {i}, "file_name": "{i - 1:012}.jpg", "width": {WIDTH}, "height": {HEIGHT}}}'
            for i in range(1, images + 1)
        )
    )
    file.write('], "annotations": [')
    number = 0
    while number < boxes:
        count = min(100_000, boxes - number)
        sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
        corners = (rng.random((count, 2)) * ((WIDTH, HEIGHT) - sides).clip(1)).round(2)
        sides = np.minimum(sides, (WIDTH, HEIGHT) - corners).round(2)
        if classes == 1:
            image = (np.arange(number, number + count) * images // boxes) + 1
        else:
            image = rng.integers(1, images + 1, count)
        category = rng.integers(1, classes + 1, count)
        outline = rng.random((count, 24)).round(2)
        for row in range(count):
            x, y = corners[row].tolist()
            w, h = sides[row].tolist()
            more = f'"segmentation": [{outline[row].tolist()}]' if classes > 1 else '"score": 0.5'
            file.write(
                f'{", " if number else ""}{{"id": {number + 1}, "image_id": {image[row]}, '
                f'"category_id": {category[row]}, "bbox": [{x}, {y}, {w}, {h}], '
                f'"area": {round(w * h, 2)}, "iscrowd": 0, {more}}}'
            )
            number += 1
    listed = [{"id": number, "name": f"class {number}"} for number in range(1, classes + 1)]
    file.write(f'], "categories": {json.dumps(listed)}}}')


def two_ranks(folder: Path, scale: float, kind: str) -> dict[str, Any]:
    """Start both ranks as torchrun would; the slower one's times, the larger one's memory."""
    command = [sys.executable, __file__, "--folder", str(folder.parent), "--scale", f"{scale:g}"]
    ranks = []
    for rank in range(RANKS):
        environment = os.environ | {"LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        ranks.append(
            subprocess.Popen(
                [*command, "--rank", kind], env=environment, stdout=subprocess.PIPE, text=True
            )
        )
    found = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    return {key: max(one[key] for one in found) for key in found[0]}


def be_a_rank(folder: Path, kind: str) -> None:
    """Build the dataset, load a few batches, and print times and memory."""
    before = unique_memory(os.getpid())
    start = time.perf_counter()
    split = SplitConfig(
        str(folder / "images"), str(folder / "train.json"), str(folder / "proposals.json")
    )
    config = DataConfig(train=split, short_sides=(64,), max_side=96)
    dataset = build_train(config) if kind == "train" else build_two_views(config, 50)
    source = dataset.coco if kind == "train" else dataset.source
    collate = collate_detection if kind == "train" else collate_views
    built = time.perf_counter() - start
    data = unique_memory(os.getpid()) - before  # workers will share what there is by then
    sampler = GroupedBatchSampler(source.aspect_ratios, 16, seed=0)
    loader = train_loader(dataset, sampler, collate, WORKERS)
    batches = iterate(loader)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(BATCHES):
        next(batches)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    workers = [unique_memory(int(child)) for child in children]
    result = {
        "dataset built, s": round(built, 2),
        "first batch, s": round(first, 2),
        "peak resident, MB": peak_resident(),
        "USS of a rank, beyond its imports, MB": data,
        "USS of a worker, MB": max(workers),
    }
    batches.close()
    print(json.dumps(result))


def unique_memory(process: int) -> int:
    """USS in MB: what the system would get back if the process ended."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return sum(int(fields[f"Private_{kind}"].split()[0]) for kind in ("Clean", "Dirty")) // 1000


def peak_resident() -> int:
    """The most memory that was resident in this process, MB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) // 1000


def time_sampler(folder: Path) -> dict[str, float]:
    """Milliseconds for a batch in the midst of a long run, and for the first one of an epoch."""
    images = sum(1 for _ in (folder / "images").iterdir())
    ratios = np.where(np.arange(images) % 3, 0.75, 1.33)
    start = time.perf_counter()
    batches = iter(GroupedBatchSampler(ratios, 2, 0, 8, seed=0, start_step=RESUMED_AT))
    next(batches)
    first = time.perf_counter() - start
    times = []
    for _ in range(2000):
        start = time.perf_counter()
        next(batches)
        times.append(time.perf_counter() - start)
    return {
        f"first batch from step {RESUMED_AT:,}, ms": round(1000 * first, 1),
        "next batch, median ms": round(1000 * statistics.median(times), 3),
    }


def time_evaluation(folder: Path) -> dict[str, float]:
    """Seconds to score detections in COCO's form, of an evaluation set of COCO's size."""
    rng = np.random.default_rng(0)
    images = range(1, EVALUATED + 1)

    def entries(per_image: int) -> list[dict[str, Any]]:
        boxes = rng.random((EVALUATED * per_image, 4)) * (400, 300, 200, 150) + (0, 0, 4, 4)
        classes = rng.integers(1, CLASSES + 1, len(boxes)).tolist()
        scores = rng.random(len(boxes)).tolist()
        return [
            {"image_id": n // per_image + 1, "category_id": c, "bbox": b, "score": s}
            for n, (b, c, s) in enumerate(zip(boxes.tolist(), classes, scores, strict=True))
        ]

    truth = {
        "images": [{"id": i, "file_name": "", "width": WIDTH, "height": HEIGHT} for i in images],
        "annotations": [
            {**entry, "id": n, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
            for n, entry in enumerate(entries(7), start=1)
        ],
        "categories": [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)],
    }
    detections = entries(DETECTIONS)
    start = time.perf_counter()
    score(truth, detections)
    return {"scoring, s": round(time.perf_counter() - start, 1), "detections": len(detections)}


def time_runs(folder: Path) -> dict[str, Any]:
    """Seconds of real runs of two processes until they have done a step: a new one, and one that
    resumes far into its schedule."""
    output = folder / "run"
    shutil.rmtree(output, ignore_errors=True)
    results = {"pretrain.py, to the first step, s": time_run(folder, output)}
    state = torch.load(output / "last.pt", weights_only=True)
    del state["checksum"]  # of what it was
    torch.save(state | {"step": RESUMED_AT}, output / "last.pt")
    (output / "metrics.jsonl").unlink()
    results[f"pretrain.py, resumed at step {RESUMED_AT:,}, s"] = time_run(folder, output)
    for name, seconds in results.items():
        print(f"{name}: {seconds}", flush=True)
    return results


def time_run(folder: Path, output: Path) -> float:
    """Start a run and stop it after its first step."""
    command = [
        "torchrun", f"--nproc-per-node={RANKS}", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0", "pretrain.py", "--config", "configs/own_fcos_pretrain.yaml",
        *RUN, "data.root=null", f"data.train.images={folder / 'images'}",
        f"data.train.proposals={folder / 'proposals.json'}", f"output_dir={output}",
    ]  # fmt: skip
    start = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = folder / "run.log"
    with open(log, "w") as file:
        run = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        if run.poll() is not None:
            raise SystemExit(f"the run has ended, see {log}")
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    run.terminate()  # saves its state
    run.wait()
    return round(seconds, 1)


if __name__ == "__main__":
    main()
