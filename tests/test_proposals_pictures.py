"""Pictures of proposals: they can be decoded, and each box is where it should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.proposals.command import main
from data.proposals.pictures import (
    BOLD,
    BOXES,
    draw_ranked,
    draw_sample,
    evenly_spaced,
    rank_colour,
    tint,
)
from tests.helpers.two_rectangles import draw


def test_lines_of_the_best_are_thick_and_their_ranks_are_beside_them() -> None:
    image = Image.new("RGB", (900, 600))
    boxes = np.array([[30.0 + 80 * i, 50, 90 + 80 * i, 150] for i in range(BOLD + 1)])
    pixels = np.asarray(draw_ranked(image, boxes))
    for rank in range(BOLD + 1):
        left, colour = 30 + 80 * rank, rank_colour(rank)
        across = (pixels[120, left - 5 : left + 20] == colour).all(axis=1)
        assert np.flatnonzero(across).tolist() == ([5, 6, 7, 8] if rank < BOLD else [5])
        patch = pixels[30:50, left : left + 20]  # above the box: a number for the best
        assert ((patch == colour).all(axis=2).sum() > 50) == (rank < BOLD)
    assert not np.asarray(image).any()  # the original is untouched


def test_the_best_are_on_top_and_small_images_have_no_ranks() -> None:
    boxes = np.array([[30.0, 20, 60, 50]] * BOXES)
    boxes[BOLD] = [5, 5, 25, 25]
    pixels = np.asarray(draw_ranked(Image.new("RGB", (90, 60)), boxes))
    assert tuple(pixels[35, 30]) == rank_colour(0)
    assert tuple(pixels[15, 5]) == rank_colour(BOLD)
    drawn = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}
    assert drawn == {(0, 0, 0), rank_colour(0), rank_colour(BOLD)}


def test_colours_of_the_best_differ_from_each_other_and_from_the_others() -> None:
    colours = [rank_colour(rank) for rank in range(BOXES)]
    for rank in range(BOLD):
        others = np.array(colours[:rank] + colours[rank + 1 :])
        assert np.abs(others - colours[rank]).max(axis=1).min() > 60
    brightness = [max(colour) for colour in colours[BOLD:]]
    assert brightness == sorted(brightness, reverse=True)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4000, 10), (2000, 1500)])
def test_any_size_and_boxes_at_the_edge(size: tuple[int, int]) -> None:
    boxes = np.array([[0.0, 0, *size], [size[0] - 0.4, size[1] - 0.4, *size]])
    picture = draw_ranked(Image.new("RGB", size), boxes)
    assert picture.size == size
    assert picture.getpixel((0, size[1] - 1)) == rank_colour(0)
    assert draw_ranked(Image.new("RGB", size), np.zeros((0, 4))).getextrema() == ((0, 0),) * 3


def test_masks_are_tinted_the_best_on_top() -> None:
    masks = np.zeros((2, 4, 6), np.uint8)
    masks[0, :, :3] = masks[1, :, 2:5] = 1
    found = np.array(tint(Image.fromarray(np.full((4, 6, 3), 100, np.uint8)), masks))

    def mixed(below: list[int], rank: int) -> list[int]:
        pairs = zip(below, rank_colour(rank), strict=True)
        return [round(0.6 * under + 0.4 * over) for under, over in pairs]

    grey = [100, 100, 100]
    best, second = mixed(grey, 0), mixed(grey, 1)
    assert found[0].tolist() == [best, best, mixed(second, 0), second, second, grey]


def test_evenly_spaced_by_hand() -> None:
    files = [str(i) for i in range(10)]
    assert evenly_spaced(files, 4) == ["0", "3", "6", "9"]
    assert evenly_spaced(files, 12) == files
    assert evenly_spaced(files, 10) == files
    many = evenly_spaced([str(i) for i in range(10_000)], 12)
    steps = np.diff([int(file) for file in many])
    assert len(many) == 12
    assert set(steps.tolist()) == {909}


def test_pictures_stay_in_their_folder(tmp_path: Path) -> None:
    images, pictures = tmp_path / "images", tmp_path / "pictures"
    (images / "sub").mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(tmp_path / "up.png")
    Image.new("RGB", (20, 10)).save(images / "sub" / "a.png")
    files = ["sub/a.png", "../up.png", str(tmp_path / "up.png")]
    paths = draw_sample(images, files, lambda file: np.zeros((0, 4)), pictures)
    assert paths[0] == pictures / "sub" / "a.png.jpg"
    assert paths[1] == pictures / "__" / "up.png.jpg"
    assert len(set(paths)) == 3
    for path in paths:
        assert path.resolve().is_relative_to(pictures)
        with Image.open(path) as picture:
            assert picture.size == (20, 10)


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in (*arguments, "--workers", "1")])


def test_the_command_draws_the_boxes_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, pictures, output = tmp_path / "images", tmp_path / "pictures", tmp_path / "out.json"
    images.mkdir()
    for i in range(15):
        Image.fromarray(draw(i, width=80 + i)).save(images / f"{i:02d}.png")
    (images / "bad.png").touch()
    assert run("--images", images, "--output", output, "--draw", pictures, "--skip-bad") == 0
    assert f"12 pictures: {pictures}" in capsys.readouterr().out
    files = sorted(path.name for path in pictures.iterdir())
    assert files == [f"{i * 14 // 11:02d}.png.jpg" for i in range(12)]
    content = json.loads(output.read_text())
    for image in content["images"]:
        path = pictures / f"{image['file_name']}.jpg"
        if not path.exists():
            continue
        best = next(a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"])
        with Image.open(path) as picture:
            assert picture.size == (image["width"], image["height"])
            pixels = np.asarray(picture).astype(int)
        x, y, w, h = (round(value) for value in best)
        for edge in (pixels[y, x : x + w], pixels[y : y + h, x]):
            assert np.abs(edge - rank_colour(0)).max(axis=1).mean() < 40  # a JPEG: not exact


def test_pictures_among_the_images_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(draw(0)).save(images / "a.png")
    for directory in (images, images / "pictures"):
        assert run("--images", images, "--output", tmp_path / "o.json", "--draw", directory) == 1
        assert "lies in the folder of the images" in capsys.readouterr().err
    assert [path.name for path in images.iterdir()] == ["a.png"]
