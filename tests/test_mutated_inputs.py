"""Damaged input files: one clear sentence, or exactly what the file says; never anything else.

Each case changes a good file in one place. A change that is taken without a word at the start must
leave boxes that are those of the file.
"""

from __future__ import annotations

import json
import random
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml

from aligndet.config import load_config
from aligndet.evaluate import average_precision
from data.coco import CocoDataset, load_coco
from data.coco_json import clean_coco
from data.convert import convert, images_folder
from data.convert_options import ReadOptions
from data.errors import DataError
from data.labelled_images import to_coco
from data.proposals.sources import list_work
from tests.helpers.coco_quirks import plain, write
from tests.helpers.labelled_folder import voc_xml, write_image, write_text
from tests.helpers.mutations import mutated_json, mutated_text

SEED = 23


@pytest.fixture
def rng() -> random.Random:
    return random.Random(SEED)


def assert_refused(error: ValueError, content: bytes | str, *names: object) -> None:
    """An error is one line that names the file or the key."""
    message = str(error)
    assert message.isprintable(), content
    assert any(str(name) in message for name in names), content
    assert len(message) < 1500, content


def boxes_of_file(content) -> list[tuple]:
    """(image, class, xyxy) of each ordinary box, as the file says it, as text or numbers."""

    def same(value) -> str:
        value = int(value) if isinstance(value, float) else value
        return str(value).strip().lstrip("0") or "0"

    sizes = {same(e["id"]): (float(e["width"]), float(e["height"])) for e in content["images"]}
    names = {same(e["id"]): str(e["name"]) for e in content["categories"]}
    rows = []
    for entry in content["annotations"]:
        image = same(entry["image_id"])
        x, y, w, h = map(float, entry["bbox"])
        corners = np.clip([x, y, x + w, y + h], 0, sizes[image] * 2)
        rows.append((image, names[same(entry["category_id"])], *corners))
    return sorted(rows)


def boxes_trained_on(dataset: CocoDataset) -> list[tuple]:
    names = dataset.categories.names
    return sorted(
        (str(r.image_id).strip().lstrip("0") or "0", names[label], *box)
        for r in dataset.records
        for label, box in zip(r.labels.tolist(), r.boxes.tolist(), strict=True)
    )


def assert_same_rows(found: list[tuple], expected: list[tuple]) -> None:
    assert [row[:-4] for row in found] == [row[:-4] for row in expected]
    ours, theirs = ([row[-4:] for row in rows] for rows in (found, expected))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_coco(tmp_path: Path, rng: random.Random) -> None:
    images, path = write(tmp_path, plain())
    told = CocoDataset(images, path).contents.lines()[1:]
    taken = 0
    for content in mutated_json(plain(), rng, 350, 150):
        path.write_bytes(content)
        try:
            dataset = CocoDataset(images, path)
        except DataError as error:
            assert_refused(error, content, path, images)
            continue
        taken += 1
        labels = load_coco(path)
        perfect = [{**entry, "score": 0.9} for entry in labels["annotations"]]
        assert average_precision(labels, perfect)["AP"] in (None, pytest.approx(100)), content
        lines = dataset.contents.lines()
        assert all(map(str.isprintable, lines))
        if lines[1:] == told:  # nothing was corrected or left out
            assert_same_rows(boxes_trained_on(dataset), boxes_of_file(json.loads(content)))
    assert taken > 10


def test_results_of_a_detector(tmp_path: Path, rng: random.Random) -> None:
    images, annotations = write(tmp_path, plain())
    rows = [
        {"image_id": i, "category_id": 3, "bbox": [x, 2, 20, 21.5], "score": s}
        for i, x, s in ((1, 1, 0.5), (1, 30, 0.75), (2, 3.25, 0.25))
    ]
    path, taken = tmp_path / "results.json", 0
    for content in mutated_json(rows, rng, 150, 50):
        path.write_bytes(content)
        try:
            work = list_work(images, str(annotations), str(path))
        except DataError as error:
            assert_refused(error, content, path)
            continue
        taken += 1
        found = {job.file: job.boxes for job in work.jobs}
        assert all(np.isfinite(boxes).all() for boxes in found.values())
        if work.left_out is None:
            said = sorted(json.loads(content), key=lambda row: -row["score"])
            for file, number in (("sub/a.png", "1"), ("b.png", "2")):
                boxes = [r["bbox"] for r in said if str(r["image_id"]).split(".")[0] == number]
                xyxy = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes]).reshape(-1, 4)
                limits = [64, 48] * 2 if number == "1" else [40, 50] * 2
                np.testing.assert_allclose(found[file], xyxy.clip(0, limits), atol=0.0051)
    assert taken > 10


def converted(source: Path) -> tuple[list[dict], list[str]]:
    """The COCO dicts of a labelled folder, and all that was said about it."""
    labelled = convert(source, ReadOptions(first_pixel=1))
    base = images_folder(source, labelled)
    contents = [to_coco(split, labelled.classes, base) for split in labelled.splits]
    said = [line for split in labelled.splits for line in split.findings.lines()]
    for content in contents:
        clean_coco(source, json.loads(json.dumps(content)))
    return contents, labelled.remarks + said


def test_voc(tmp_path: Path, rng: random.Random) -> None:
    root = tmp_path / "voc"
    write_image(root / "a.jpg", 20, 10)
    good = voc_xml([("dog", 2, 1, 10, 5), ("cat", 3, 4, 18, 9)])
    write_text(root / "a.xml", good)
    told, taken = converted(root)[1], 0
    for content in mutated_text(good, rng, 300):
        (root / "a.xml").write_bytes(content)
        try:
            contents, said = converted(root)
        except DataError as error:
            assert_refused(error, content, root)
            continue
        taken += 1
        if said != told:
            continue
        tree = ElementTree.fromstring(content)
        rows = []
        for entry in tree.findall("object"):
            tags = ("xmin", "ymin", "xmax", "ymax")
            x1, y1, x2, y2 = (float(entry.find("bndbox").find(tag).text) for tag in tags)
            corners = np.clip([x1 - 1, y1 - 1, x2, y2], 0, [20, 10] * 2)
            rows.append((entry.find("name").text.strip(), *corners))
        assert_same_rows(sorted(rows_of(contents)), sorted(rows))
    assert taken > 10


def rows_of(contents: list[dict]) -> list[tuple]:
    rows = []
    for content in contents:
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            rows.append((names[entry["category_id"]], x, y, x + w, y + h))
    return rows


def yolo_folder(root: Path) -> tuple[str, str]:
    write_image(root / "images/train/a.jpg", 20, 10)
    description = "path: .\ntrain: images/train\nnc: 2\nnames: [cat, dog]\n"
    labels = "0 0.5 0.5 0.25 0.5\n1 0.25 0.375 0.125 0.25\n"
    write_text(root / "data.yaml", description)
    write_text(root / "labels/train/a.txt", labels)
    return description, labels


def test_yolo_texts(tmp_path: Path, rng: random.Random) -> None:
    _, good = yolo_folder(tmp_path)
    path = tmp_path / "labels/train/a.txt"
    told, taken = converted(tmp_path)[1], 0
    for content in mutated_text(good, rng, 250):
        path.write_bytes(content)
        try:
            contents, said = converted(tmp_path)
        except DataError as error:
            assert_refused(error, content, tmp_path)
            continue
        taken += 1
        if said != told:
            continue
        rows = []
        for line in content.decode().split("\n"):
            if line.strip():
                number, x, y, w, h = map(float, line.split())
                corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clip(0, 1)
                rows.append((["cat", "dog"][int(number)], *(corners * [20, 10, 20, 10])))
        assert_same_rows(sorted(rows_of(contents)), sorted(rows))
    assert taken > 10


def test_yolo_descriptions(tmp_path: Path, rng: random.Random) -> None:
    good, _ = yolo_folder(tmp_path)
    path, taken = tmp_path / "data.yaml", 0
    expected = sorted(rows_of(converted(tmp_path)[0]))
    for content in mutated_text(good, rng, 250):
        path.write_bytes(content)
        try:
            contents, _ = converted(path)
        except DataError as error:
            assert_refused(error, content, tmp_path)
            continue
        taken += 1
        names = yaml.load(content, yaml.BaseLoader)["names"]
        if isinstance(names, list):
            old = {"cat": names[0].strip(), "dog": names[1].strip()}
            rows = sorted((old[name], *box) for name, *box in expected)
            assert_same_rows(sorted(rows_of(contents)), rows)
    assert taken > 10


CONFIG = """output_dir: run
seed: 3
data: {batch_size: 2, short_sides: [64, 96], flip: 0.5}
model: {detector: fcos, backbone: resnet18, options: {channels: 32}}
optim: {lr: 0.005, clip_norm: 1.0}
schedule: {iterations: 20, warmup_iterations: 0}
"""
KEYS = ("output_dir", "seed", "data.", "model.", "optim.", "schedule.", "unknown config key")


def test_configs(tmp_path: Path, rng: random.Random) -> None:
    path, taken = tmp_path / "run.yaml", 0
    for content in mutated_text(CONFIG, rng, 250):
        path.write_bytes(content)
        try:
            config = load_config(path)
        except ValueError as error:
            assert_refused(error, content, path, *KEYS)
            continue
        taken += 1
        said = yaml.safe_load(content)
        assert config.seed == said.get("seed", 0)
        assert config.optim.lr == float(said.get("optim", {}).get("lr", config.optim.lr))
    assert taken > 10


ODD_TEXTS = ["-1", "0", "1e30", "nan", ".inf", "null", "''", "abc", "[]", "{}", "{a: 1}", "'\\0'"]
ODD_TEXTS += ["2001-13-01", "!!int x", "&a [*a]", "[" * 2000, "9" * 5000, "\x1b[31m", "a\nb"]


@pytest.mark.parametrize(
    "key", ["seed", "optim.lr", "data.short_sides", "data.flip", "model.options", "device", "data"]
)
def test_overrides(tmp_path: Path, key: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    for text in ODD_TEXTS:
        try:
            config = load_config(path, [f"{key}={text}"])
        except ValueError as error:
            assert_refused(error, text, key, "override")
        else:
            assert np.isfinite(config.optim.lr)
            assert isinstance(config.seed, int)
