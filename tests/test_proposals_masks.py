"""`python -m data.proposals --masks`, and the cache of boxes found while training, with masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from data import coco_file
from data.coco import CocoDataset
from data.coco_file import open_coco
from data.coco_masks import open_masks
from data.errors import DataError
from data.masks import decode
from data.packed_file import is_packed
from data.proposals import cache as proposal_cache
from data.proposals.cache import ProposalCache, settings_digest
from data.proposals.journal import Journal
from data.proposals.propose import ProposalSettings, find_proposals, propose
from data.proposals.searched_images import SearchedImages
from data.proposals.workers import FileState, Found
from tests.helpers.proposal_command import journal_of, run, three_images
from tests.helpers.two_rectangles import draw

MASKS = ProposalSettings(search="fast", masks=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_images(tmp_path / "images")


def make(folder: Path, name: str, *options: str | Path | int) -> Path:
    output = folder.parent / name
    common = ("--images", folder, "--output", output, "--search", "fast", "--nms", "0.9")
    assert run(*common, "--workers", 1, *options) == 0
    return output


def annotations(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["annotations"]


def tight_box(mask: np.ndarray) -> np.ndarray:
    """xyxy, right and bottom exclusive."""
    ys, xs = mask.nonzero()
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


@pytest.mark.parametrize("side", [64, 320])  # the images have 80 x 60 pixels
def test_boxes_are_those_without_masks_and_tight_around_them(folder: Path, side: int) -> None:
    options = ("--search-side", side)
    plain = annotations(make(folder, "plain.json", *options))
    found = annotations(make(folder, "masks.json", "--masks", *options))
    masks = [annotation.pop("segmentation") for annotation in found]
    assert found == plain
    assert len(found) > 10
    for annotation, mask in zip(found, masks, strict=True):
        assert mask["size"] == [60, 80]
        x, y, w, h = annotation["bbox"]
        box = tight_box(coco_mask.decode(mask))
        assert abs(box - [x, y, x + w, y + h]).max() <= 0.51  # to the next pixel, and 0.01


def test_without_masks_nothing_is_built_or_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.proposals.propose.selective_search_with_regions", None)
    monkeypatch.setattr("data.proposals.propose.encode_enlarged", None)
    assert "masks" not in make(folder, "plain.json").read_text()


def test_only_masks_of_chosen_boxes_are_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    monkeypatch.setattr(
        "data.proposals.propose.encode_enlarged", lambda *given: built.append(given) or b"0"
    )
    make(folder, "masks.json", "--masks", "--max-boxes", 2)
    assert len(built) == 6


def test_packed_files_hold_the_same_masks(folder: Path) -> None:
    written = annotations(make(folder, "masks.json", "--masks"))
    output = make(folder, "masks.packed", "--masks", "--format", "packed")
    assert is_packed(output)
    masks = open_masks(output, open_coco(output))
    expected = [a["segmentation"]["counts"].encode() for a in written]
    assert [masks.rle(row) for row in range(len(masks))] == expected
    for path in (output, folder.parent / "masks.json"):
        records = CocoDataset(folder, path, with_masks=True).records
        assert [mask for record in records for mask in record.masks] == expected
        assert all(record.masks is None for record in CocoDataset(folder, path).records)
    plain = make(folder, "plain.packed", "--format", "packed")
    with pytest.raises(DataError, match="packed without masks; write it again with --masks"):
        CocoDataset(folder, plain, with_masks=True)


def test_large_files_keep_their_masks_beside_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coco_file, "LARGE_FILE", 1)
    output = make(folder, "masks.json", "--masks")
    expected = [a["segmentation"]["counts"].encode() for a in annotations(output)]
    monkeypatch.setattr(coco_file, "pack_coco", None)  # the JSON is not read
    masks = open_masks(output, open_coco(output))
    assert [masks.rle(row) for row in range(len(masks))] == expected


@pytest.mark.parametrize("options", [("--batch", "1"), ("--workers", "2"), ("--batch", "2")])
def test_resuming_gives_the_same_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    whole = make(folder, "whole.json", "--masks")
    add, output = Journal.add, folder.parent / "masks.json"

    def add_two(journal: Journal, found: Found) -> None:
        if len(journal) == 2:
            raise KeyboardInterrupt
        add(journal, found)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add_two)
        with pytest.raises(KeyboardInterrupt):
            make(folder, "masks.json", "--masks")
    assert len(journal_of(output).read_text().splitlines()) == 3
    make(folder, "masks.json", "--masks", *options)
    assert output.read_bytes() == whole.read_bytes()


def test_a_journal_without_masks_is_not_taken_for_one_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("data.proposals.command.write_proposals", None)
        with pytest.raises(TypeError):
            make(folder, "out.json")
    make(folder, "out.json", "--masks")
    assert "was made with other settings; starting over" in capsys.readouterr().err
    make(folder, "out.json")
    assert "was made with masks true, not null; searching again" in capsys.readouterr().err
    make(folder, "out.json")
    assert "nothing is searched" in capsys.readouterr().err


def test_masks_survive_the_journal(tmp_path: Path) -> None:
    boxes = np.array([[0.0, 0, 4, 4], [1, 1, 3, 2]])
    for name, masks in (("with", [b"a\\0o", b""]), ("without", None)):
        found = Found(name, FileState(1, 2), 60, 80, boxes, masks)
        path = tmp_path / f"{name}.jsonl"
        for _ in range(2):
            with Journal(path, "d", pytest.fail) as journal:
                if not len(journal):
                    journal.add(found)
                assert journal.masks(name) == masks
                assert np.array_equal(journal.boxes(name), boxes)
    text = path.read_text().replace('"boxes"', '"masks":["a"],"boxes"')
    path.write_text(text[: text.index(',"crc32"')] + "}\n")  # one mask for two boxes
    said: list[str] = []
    with Journal(path, "d", said.append) as journal:
        assert len(journal) == 0
    assert "1 damaged line" in said[0]


SQUARE = {"size": [60, 80], "counts": [0, 20, 40, 20, 4720]}  # of two columns, 20 pixels high
IMAGE = {"id": 7, "file_name": "a.png", "width": 80, "height": 60}


def labels(path: Path, *segmentations: Any) -> Path:
    boxes = [[0, 0, 2, 20], [90, 0, 5, 5], [40, 20, 20, 10], [5, 30, 20, 20]]
    entries = [
        {"id": i, "image_id": 7, "category_id": 1, "bbox": box, "score": i / 10}
        for i, box in enumerate(boxes, start=1)
    ]
    for entry, segmentation in zip(entries, segmentations, strict=False):
        entry["segmentation"] = segmentation
    content = {"images": [IMAGE], "categories": [{"id": 1, "name": "x"}], "annotations": entries}
    path.write_text(json.dumps(content))
    return path


def test_given_boxes_keep_their_own_masks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    polygon = [[40, 20, 60, 20, 60, 30, 40, 30]]
    truth = labels(tmp_path / "truth.json", SQUARE, polygon, polygon)  # the second lies outside
    for source, order in (("gt", [0, 1, 2]), (truth, [2, 1, 0])):
        options = ("--masks", "--filter", "none", "--source", source, "--annotations", truth)
        found = annotations(make(folder, "masks.json", *options))
        first, second, third = (found[place] for place in order)
        square = coco_mask.decode(first["segmentation"])
        assert tight_box(square).tolist() == [0, 0, 2, 20]
        assert square.sum() == 40
        assert tight_box(coco_mask.decode(second["segmentation"])).tolist() == [40, 20, 60, 30]
        assert "segmentation" not in third
        assert first["area"] == 40
        assert f"--source {source}: 1 of 3 boxes have no 'segmentation'" in capsys.readouterr().err
        assert "segmentation" not in make(folder, "masks.json", *options[1:]).read_text()


def test_recall_and_pictures_show_the_masks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of a file that is there already."""
    truth = labels(tmp_path / "truth.json", SQUARE, SQUARE, SQUARE)  # the second lies outside
    pictures = []
    for number, options in enumerate([["--masks"], ["--masks"], []]):
        draw_to = tmp_path / f"pictures{number}"
        capsys.readouterr()
        make(folder, "out.json", "--recall", truth, "--draw", draw_to, *options)
        said = capsys.readouterr()
        assert ("2 objects with a mask: recall at mask IoU 0.5" in said.out) == bool(options)
        assert ("nothing is searched" in said.err) == (number == 1)
        pictures.append((draw_to / "a.png.jpg").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


def test_a_malformed_mask_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = labels(tmp_path / "truth.json", {**SQUARE, "size": [80, 60]})
    options = ("--images", folder, "--output", tmp_path / "out.json", "--annotations", truth)
    assert run(*options, "--source", "gt", "--masks") == 1
    said = capsys.readouterr().err
    assert "the box [0, 0, 2, 20] of image 7: its segmentation has the size [80, 60]" in said
    assert run(*options, "--source", "gt") == 0


def test_the_cache_holds_what_a_file_holds(folder: Path, tmp_path: Path) -> None:
    settings = ProposalSettings(search="fast", nms_iou=0.9, masks=True)
    source = SearchedImages(folder, ProposalCache(tmp_path / "cache", settings))
    written = annotations(make(folder, "masks.json", "--masks"))
    for _ in range(2):  # searched, then read
        records = [source.read(index)[1] for index in range(3)]
        masks = [mask for record in records for mask in record.masks]
        assert masks == [a["segmentation"]["counts"].encode() for a in written]
        for record in records:
            assert len(record.masks) == len(record.boxes) > 0
            assert decode(record.masks, record.height, record.width).any(axis=(1, 2)).all()


def scene(seed: int) -> tuple[bytes, Image.Image]:
    pixels = np.ascontiguousarray(draw(seed))
    content = b"content %d" % seed
    return content, Image.fromarray(pixels)


def test_caches_with_and_without_masks_are_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ProposalSettings(search="fast")
    assert settings_digest(plain) != settings_digest(MASKS)
    content, image = scene(0)
    boxes = ProposalCache(tmp_path, plain).proposals(content, image)
    assert boxes.masks is None
    found = ProposalCache(tmp_path, MASKS).proposals(content, image)
    assert torch.equal(found.boxes, boxes.boxes)
    monkeypatch.setattr(proposal_cache, "find_proposals", None)
    again = ProposalCache(tmp_path, MASKS).proposals(content, image)
    assert again.masks == found.masks
    assert torch.equal(again.boxes, found.boxes)
    assert ProposalCache(tmp_path, plain).proposals(content, image).masks is None
    # a file of the other kind is not taken for one with masks, wherever it comes from
    caches = ProposalCache(tmp_path, MASKS), ProposalCache(tmp_path, plain)
    caches[0].path(content).write_bytes(caches[1].path(content).read_bytes())
    assert caches[0].kept(content, 60, 80) is None


def test_damage_to_a_file_with_masks_is_noticed(tmp_path: Path) -> None:
    cache = ProposalCache(tmp_path, MASKS)
    content, image = scene(1)
    found = cache.proposals(content, image)
    assert found.masks
    path = cache.path(content)
    whole = path.read_bytes()
    assert np.array_equal(np.load(path), found.boxes.numpy())  # by other programs
    for place in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert cache.kept(content, 60, 80) is None
        path.write_bytes(whole[:place])
        assert cache.kept(content, 60, 80) is None
    assert cache.proposals(content, image).masks == found.masks
    assert path.read_bytes() == whole


def test_an_image_without_proposals_has_no_masks(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20), "red")
    found = ProposalCache(tmp_path, MASKS).proposals(b"red", image)
    assert len(found.boxes) == 0
    assert found.masks == []
    assert ProposalCache(tmp_path, MASKS).kept(b"red", 20, 20).masks == []


def test_masks_of_large_images_are_scaled_like_their_boxes() -> None:
    pixels = draw(0).repeat(7, axis=0).repeat(5, axis=1)[:401, :397]
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    settings = ProposalSettings(box_filter=None, search_side=90, masks=True)
    (found,) = find_proposals([image], settings)
    assert torch.equal(found.boxes, propose([image], settings)[0])
    for box, mask in zip(found.boxes.numpy(), decode(found.masks, 401, 397), strict=True):
        assert abs(tight_box(mask) - box).max() <= 0.5001


def test_images_are_read_as_turned(tmp_path: Path) -> None:
    """A mask is in the pixels of the image as it is read."""
    exif = Image.Exif()
    exif[0x0112] = 6
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(draw(0)).save(images / "a.png", exif=exif)
    found = annotations(make(images, "out.json", "--masks", "--exif", "apply"))
    assert found[0]["segmentation"]["size"] == [80, 60]
