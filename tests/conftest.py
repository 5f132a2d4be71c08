"""A tiny dataset on disk, a tiny config, and the scripts called in this process."""

from __future__ import annotations

import importlib
import json
import os
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.helpers.double_precision import double_precision as in_double_precision
from tests.helpers.narrow_backbones import narrow_backbones

# Runs are compared bit by bit, some in this process and some in another.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


# The files that take longest, first: of two processes, none waits for the other's last file.
LONGEST = (
    *("two_ranks", "on_cuda", "resume", "every_detector", "signals", "scripts", "walkthrough"),
    *("export", "replay", "box_domain", "two_agents", "image_stage", "documented_commands"),
)


def pytest_collection_modifyitems(items):
    """Whole files change places, nothing within them."""
    rank = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Seed each test, before its fixtures of any scope: what it draws without its own seed must not
    depend on the tests before it, which differ between workers."""
    torch.manual_seed(0)


@pytest.fixture
def double_precision():
    """The test computes in float64; the helper says why."""
    with in_double_precision():
        yield


@pytest.fixture(scope="module")
def small_backbones():
    """For files that train in this process, where no size of the backbone matters."""
    with narrow_backbones():
        yield


HEIGHT, WIDTH = 64, 96  # of all images, so that all batches are padded alike
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
COLOURS = {3: (200, 40, 40), 7: (40, 60, 210)}
# xywh boxes and categories of each image; different numbers, and images without boxes.
TRAIN = [
    [([8, 8, 30, 24], 3), ([40, 12, 36, 40], 7), ([66, 4, 20, 20], 3)],
    [([20, 10, 50, 48], 7)],
    [],
    [([2, 2, 90, 60], 3), ([10, 10, 18, 20], 7), ([50, 30, 24, 26], 3), ([70, 6, 22, 22], 7)],
    [([30, 20, 40, 30], 3), ([4, 30, 24, 28], 7)],
    [([12, 16, 60, 36], 7), ([74, 40, 20, 20], 3)],
    [([6, 6, 40, 50], 3)],
    [([44, 8, 44, 44], 7), ([4, 4, 28, 28], 3), ([8, 38, 30, 22], 7)],
]
VAL = [
    [([10, 12, 40, 30], 3), ([56, 20, 30, 36], 7)],
    [([30, 8, 50, 50], 7)],
    [],
    [([4, 4, 24, 24], 3), ([34, 20, 24, 36], 3), ([64, 6, 28, 50], 7)],
    [([20, 20, 60, 30], 3)],
]


def write_images(folder, layout, seed):
    """One PNG per image: coloured boxes on noise."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number, boxes in enumerate(layout):
        pixels = rng.integers(90, 160, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        for (x, y, w, h), category in boxes:
            pixels[y : y + h, x : x + w] = COLOURS[category]
        Image.fromarray(pixels).save(folder / f"{number}.png")


def diamond(x, y, w, h):
    """The polygon between the middles of a box's sides, which only detectors with masks read."""
    return [x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]


def coco_content(layout, categories):
    images = [
        {"id": 100 + i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH}
        for i in range(len(layout))
    ]
    entries = [(100 + i, box, c) for i, boxes in enumerate(layout) for box, c in boxes]
    names = {c["id"] for c in categories}
    annotations = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category if category in names else 1,
            "bbox": box,
            "segmentation": [diamond(*box)],
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for number, (image_id, box, category) in enumerate(entries, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """Folder with train/ and val/ images, train.json, val.json and proposals.json."""
    folder = tmp_path_factory.mktemp("dataset")
    write_images(folder / "train", TRAIN, seed=1)
    write_images(folder / "val", VAL, seed=2)
    for name, layout, categories in (
        ("train", TRAIN, CATEGORIES),
        ("val", VAL, CATEGORIES),
        ("proposals", TRAIN, [{"id": 1, "name": "object"}]),
    ):
        (folder / f"{name}.json").write_text(json.dumps(coco_content(layout, categories)))
    return folder


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory):
    """Folder with train/ and val/, each with images in red/ and blue/."""
    folder = tmp_path_factory.mktemp("classes")
    for seed, (split, count) in enumerate((("train", 6), ("val", 3))):
        for category in CATEGORIES:
            layout = [[([4 + 6 * i, 4 + 3 * i, 50, 40], category["id"])] for i in range(count)]
            write_images(folder / split / category["name"], layout, seed + category["id"])
    return folder


@pytest.fixture(scope="session")
def content(dataset):
    """Nested config of a tiny run on `dataset`; every call gives a copy, with dotted changes."""

    def make(output_dir, **changes):
        result = {
            "output_dir": str(output_dir),
            "device": "cpu",
            "data": {
                "train": {
                    "images": str(dataset / "train"),
                    "annotations": str(dataset / "train.json"),
                    "proposals": str(dataset / "proposals.json"),
                },
                "val": {
                    "images": str(dataset / "val"),
                    "annotations": str(dataset / "val.json"),
                },
                "batch_size": 2,
                "workers": 0,
                "short_sides": [64],
                "max_side": 96,
            },
            "model": {"backbone": "resnet18", "options": {"channels": 32, "num_convs": 1}},
            "optim": {"lr": 0.01},
            "schedule": {"iterations": 4, "warmup_iterations": 0},
            "loop": {"log_every": 1, "checkpoint_every": 2, "report": False},
            "box_domain": {"embedding_width": 32},
        }
        for key, value in changes.items():
            *sections, last = key.split("__")
            section = result
            for name in sections:
                section = section.setdefault(name, {})
            section[last] = value
        return result

    return make


@pytest.fixture(scope="session")
def write_config(content):
    """Write such a config to `FILE.yaml` beside its output directory; returns the path."""

    def write(output_dir, **changes):
        path = output_dir.parent / f"{output_dir.name}.yaml"
        path.write_text(yaml.safe_dump(content(output_dir, **changes)))
        return path

    return write


@pytest.fixture(scope="session")
def script():
    """Call `main()` of a script in this process: `script("pretrain", "--config", path)`."""

    def call(module, *arguments):
        argv = sys.argv
        sys.argv = [module, *map(str, arguments)]
        try:
            importlib.import_module(module).main()
        finally:
            sys.argv = argv

    return call


@pytest.fixture
def error_of(script, capsys):
    """The message of a script that must end with status 1 and one `error:` line on stderr."""

    def call(module, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            script(module, *arguments)
        stderr = capsys.readouterr().err
        assert exit_info.value.code == 1
        assert "Traceback" not in stderr
        lines = [line for line in stderr.splitlines() if "error: " in line]
        assert len(lines) == 1, stderr
        assert lines[0].startswith("error: "), stderr
        return lines[0].removeprefix("error: ")

    return call
