"""The shapes dataset: outlines redrawn by PIL, COCO files read back by pycocotools."""

from __future__ import annotations

import colorsys
import json
import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw
from pycocotools.coco import COCO

from data import shapes
from data.errors import DataError

SCALE = 4  # the oracle draws at this resolution
KINDS = len(shapes.CLASSES)


def corners(kind: str) -> list[tuple[float, float]]:
    """Corners of the polygonal shapes in local coordinates, written down by hand."""

    def regular(sides: int, radius: float, turn: float) -> list[tuple[float, float]]:
        angles = [turn + 2 * math.pi * i / sides for i in range(sides)]
        return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]

    if kind == "star":
        tips, dents = regular(5, 1.0, 0.0), regular(5, 0.45, math.pi / 5)
        return [corner for pair in zip(tips, dents, strict=True) for corner in pair]
    return {
        "circle": regular(180, 0.95, 0.0),
        "triangle": regular(3, 1.1, math.pi / 3),
    }[kind]  # fmt: skip


def redrawn(shape: shapes.Shape, height: int, width: int, margin: int = 0) -> np.ndarray:
    """The shape's mask drawn with PIL's polygons, (H + 2 margin, W + 2 margin) bool."""

    def polygon(points):
        image = Image.new("L", (SCALE * (width + 2 * margin), SCALE * (height + 2 * margin)))
        placed = []
        for x, y in points:
            x, y = x * math.sqrt(shape.stretch), y / math.sqrt(shape.stretch)
            cos, sin = math.cos(shape.angle), math.sin(shape.angle)
            right, down = x * cos - y * sin, x * sin + y * cos
            placed.append(
                (
                    SCALE * (shape.x + margin + shape.radius * right),
                    SCALE * (shape.y + margin + shape.radius * down),
                )
            )
        ImageDraw.Draw(image).polygon(placed, fill=255)
        return image

    def disc(radius):
        steps = np.linspace(0, 2 * math.pi, 180, endpoint=False)
        return polygon([(radius * math.cos(a), radius * math.sin(a)) for a in steps])

    if shape.kind == "ring":
        image = ImageChops.subtract(disc(0.97), disc(0.53))
    else:
        image = polygon(corners(shape.kind))
    return np.asarray(image.reduce(SCALE)) > 127


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def picture(index: int, size: int = 160):
    return shapes.draw_image(np.random.default_rng([0, 0, index]), size)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    output = tmp_path_factory.mktemp("shapes") / "set"
    shapes.generate(output, train=40, val=12, size=160, seed=0)
    return output


@pytest.mark.parametrize("kind", shapes.CLASSES)
@pytest.mark.parametrize(("stretch", "angle"), [(1.0, 0.0), (1.4, 0.5), (0.7, 4.0)])
def test_silhouette_equals_polygons_drawn_by_pil(kind, stretch, angle):
    shape = shapes.Shape(kind, x=61.3, y=48.9, radius=34.0, stretch=stretch, angle=angle)
    mask, area = shapes.silhouette(shape, 100, 120)
    assert mask.shape == (100, 120)
    assert iou(mask, redrawn(shape, 100, 120)) > 0.95
    assert area == mask.sum()


def test_area_counts_the_pixels_outside_the_image():
    inside = shapes.Shape("circle", x=50.0, y=50.0, radius=20.0, stretch=1.0, angle=0.0)
    corner = shapes.Shape("circle", x=0.0, y=0.0, radius=20.0, stretch=1.0, angle=0.0)
    mask, area = shapes.silhouette(corner, 100, 100)
    assert area == shapes.silhouette(inside, 100, 100)[1]
    assert area == pytest.approx(math.pi * 19**2, rel=0.02)
    assert mask.sum() == pytest.approx(area / 4, rel=0.05)


def test_masks_are_what_later_shapes_leave_and_at_least_two_fifths():
    checked = covered = 0
    for index in range(24):
        pixels, placed, masks = picture(index)
        height, width = pixels.shape[:2]
        margin = 120  # more than any shape reaches beyond the image
        whole = [redrawn(shape, height, width, margin) for shape in placed]
        for i, mask in enumerate(masks):
            visible = whole[i].copy()
            for later in whole[i + 1 :]:
                visible &= ~later
            visible = visible[margin:-margin, margin:-margin]
            edge = 2 * math.sqrt(whole[i].sum()) / whole[i].sum()  # small shapes are mostly edge
            assert iou(mask, visible) > 0.9 - edge
            assert visible.sum() / whole[i].sum() > shapes.MIN_VISIBLE - edge
            checked += 1
            covered += mask.sum() < 0.9 * whole[i].sum()
    assert checked > 40
    assert covered > 8


def test_painting_changes_exactly_the_pixels_of_the_mask():
    shape = shapes.Shape("star", x=30.0, y=6.0, radius=22.0, stretch=1.2, angle=1.0)
    canvas = np.full((64, 72, 3), 128.0, dtype=np.float32)
    window = shapes.window_around(shape)
    distance = shapes.OUTLINES["star"](window.u, window.v) * shape.radius
    shapes.paint(np.random.default_rng(3), canvas, window, distance, shapes.Look(0.4, 2))
    changed = np.abs(canvas - 128).max(axis=-1) > 30  # contrast is at least 70, edges half of it
    mask, _ = shapes.silhouette(shape, 64, 72)
    assert iou(changed, mask) > 0.85
    assert (canvas[~redrawn(shape, 64, 72)] == 128).mean() > 0.9


def test_classes_sizes_and_numbers_are_varied(dataset):
    coco = json.loads((dataset / "annotations" / "train.json").read_text())
    kinds = Counter(a["category_id"] for a in coco["annotations"])
    assert sorted(kinds) == list(range(1, KINDS + 1))
    assert max(kinds.values()) < 4 * min(kinds.values())
    assert len({(i["height"], i["width"]) for i in coco["images"]}) >= 4
    counts = Counter(a["image_id"] for a in coco["annotations"])
    assert len(counts) == 40
    assert set(counts.values()) == {1, 2, 3, 4, 5}
    sides = [math.sqrt(a["area"]) for a in coco["annotations"]]
    assert min(sides) < 25
    assert max(sides) > 50


def test_hue_hints_at_the_class_but_does_not_give_it_away():
    right = total = 0
    for index in range(60):
        pixels, placed, masks = picture(index)
        for shape, mask in zip(placed, masks, strict=True):
            red, green, blue = np.median(pixels[mask], axis=0) / 255
            nearest = round(colorsys.rgb_to_hsv(red, green, blue)[0] * KINDS) % KINDS
            right += shapes.CLASSES[nearest] == shape.kind
            total += 1
    assert 0.4 < right / total < 0.85  # a quarter by chance


@pytest.mark.parametrize(("split", "count"), [("train", 40), ("val", 12)])
def test_files_are_valid_coco_and_boxes_fit_the_masks(dataset, split, count):
    coco = COCO(str(dataset / "annotations" / f"{split}.json"))
    assert len(coco.imgs) == count
    assert [c["name"] for c in coco.loadCats(range(1, KINDS + 1))] == list(shapes.CLASSES)
    for image in coco.imgs.values():
        with Image.open(dataset / "images" / split / image["file_name"]) as file:
            assert file.size == (image["width"], image["height"])
            assert file.mode == "RGB"
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)  # decoded by pycocotools, not by our code
        x, y, w, h = annotation["bbox"]
        assert mask.sum() == annotation["area"] == mask[y : y + h, x : x + w].sum()
        for strip in (mask[y, :], mask[y + h - 1, :], mask[:, x], mask[:, x + w - 1]):
            assert strip.any()


def test_masks_of_one_image_do_not_overlap(dataset):
    coco = COCO(str(dataset / "annotations" / "train.json"))
    for image_id in coco.imgs:
        masks = [coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))]
        assert np.sum(masks, axis=0).max() == 1


def test_files_hold_the_pictures_that_were_drawn(dataset):
    names = sorted((dataset / "images" / "val").iterdir())
    for index, name in enumerate(names):
        drawn, _, _ = shapes.draw_image(np.random.default_rng([0, 1, index]), 160)
        with Image.open(name) as file:
            error = np.abs(np.asarray(file, dtype=float) - drawn).mean()
        assert error < 12  # what JPEG loses of the grain


def test_smaller_dataset_is_the_beginning_of_a_larger_one(dataset, tmp_path):
    shapes.generate(tmp_path / "small", train=5, val=3, size=160, seed=0)
    for split, count in (("train", 5), ("val", 3)):
        small, large = (
            json.loads((folder / "annotations" / f"{split}.json").read_text())
            for folder in (tmp_path / "small", dataset)
        )
        assert small["images"] == large["images"][:count]
        assert small["annotations"] == large["annotations"][: len(small["annotations"])]
        for image in small["images"]:
            path = f"images/{split}/{image['file_name']}"
            assert (tmp_path / "small" / path).read_bytes() == (dataset / path).read_bytes()


def test_seed_and_split_give_other_pictures(tmp_path):
    shapes.generate(tmp_path / "a", train=1, val=1, size=64, seed=0)
    shapes.generate(tmp_path / "b", train=1, val=1, size=64, seed=1)
    found = [(tmp_path / s / "images" / p / "000000.jpg") for s in "ab" for p in ("train", "val")]
    assert len({path.read_bytes() for path in found}) == 4


def test_same_dataset_is_left_alone_and_another_refused(tmp_path):
    output = tmp_path / "set"
    output.mkdir()  # an empty folder is fine
    shapes.generate(output, train=2, val=1, size=64)
    stamp = (output / "images" / "train" / "000001.jpg").stat().st_mtime_ns
    shapes.generate(output, train=2, val=1, size=64)
    assert (output / "images" / "train" / "000001.jpg").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="other settings"):
        shapes.generate(output, train=3, val=1, size=64)
    (output / "images" / "train" / "000001.jpg").unlink()
    with pytest.raises(DataError, match="train files are gone"):
        shapes.generate(output, train=2, val=1, size=64)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not a shapes dataset"):
        shapes.generate(tmp_path, train=1, val=1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupted(rng, size):
        calls.append(size)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(rng, size)

    original = shapes.draw_image
    monkeypatch.setattr(shapes, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path / "set", train=4, val=1, size=64)
    assert list(tmp_path.iterdir()) == []


def test_faster_process_wins(tmp_path, monkeypatch):
    output, write = tmp_path / "set", shapes._write_split

    def overtaken(*arguments):
        monkeypatch.setattr(shapes, "_write_split", write)
        shapes.generate(output, train=2, val=1, size=64)  # the other process, meanwhile
        write(*arguments)

    monkeypatch.setattr(shapes, "_write_split", overtaken)
    shapes.generate(output, train=2, val=1, size=64)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(list((output / "images" / "train").iterdir())) == 2


def test_command_line(tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "set"), "--train", "2", "--val", "1", "--size", "64"]
    assert shapes.main(arguments) == 0
    assert "2 training and 1 validation images" in capsys.readouterr().out
    assert shapes.main([*arguments, "--seed", "5"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert shapes.main(["--output", str(tmp_path / "other"), "--train", "0"]) == 1
    assert "train is 0" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    output = str(tmp_path / "file" / "shapes")
    assert shapes.main(["--output", output, "--train", "1", "--val", "1"]) == 1
    assert "file/shapes: cannot be written (" in capsys.readouterr().err
