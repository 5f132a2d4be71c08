"""A folder of images instead of a file of proposals."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from PIL import Image

from data.atomic_files import cannot_write
from data.coco import CocoDataset
from data.errors import DataError
from data.images import ImageReading
from data.proposals import cache as proposal_cache
from data.proposals.cache import ProposalCache
from data.proposals.command import main
from data.proposals.propose import ProposalSettings
from data.proposals.searched_images import SearchedImages
from tests.helpers.assertions import assert_clean
from tests.helpers.two_rectangles import draw
from tests.helpers.without_tensors import sent


@pytest.fixture
def folder(tmp_path):
    """Landscape, portrait, one in a subfolder; one large enough to be shrunk for the search."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    large = draw(1).repeat(13, axis=0).repeat(13, axis=1)[:771, :1003]
    for name, pixels in {
        "b.png": draw(0),
        "a.png": draw(2).transpose(1, 0, 2),
        "large.png": large,
        "sub/c.bmp": draw(3),
        "grey.jpg": draw(4)[:, :, 0],
    }.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(images / name)
    (images / "notes.txt").touch()
    return images


@pytest.fixture
def source(folder, tmp_path):
    return SearchedImages(folder, ProposalCache(tmp_path / "cache", ProposalSettings()))


def test_all_images_are_listed_with_their_shapes(source):
    assert len(source) == 5
    assert source.notes == ("left out: 1 .txt",)
    assert source.files == ["a.png", "b.png", "grey.jpg", "large.png", "sub/c.bmp"]
    assert source.aspect_ratios == [80 / 60, 60 / 80, 60 / 80, 771 / 1003, 60 / 80]


def test_equal_to_a_file_of_proposals_in_every_bit(source, folder, tmp_path):
    path = tmp_path / "proposals.json"
    assert main(["--images", str(folder), "--output", str(path), "--workers", "1"]) == 0
    coco = CocoDataset(folder, path)
    assert len(coco) == len(source)
    assert coco.aspect_ratios == source.aspect_ratios
    for index in range(len(coco)):
        (theirs, expected), (ours, record) = coco.read(index), source.read(index)
        assert np.array_equal(np.array(ours), np.array(theirs))
        assert len(record.boxes) > 0
        assert torch.equal(record.boxes, expected.boxes)
        assert torch.equal(record.labels, expected.labels)
        assert (record.image_id, record.file_name) == (expected.image_id, expected.file_name)
        assert (record.height, record.width) == (expected.height, expected.width)


@pytest.mark.parametrize("reading", [ImageReading("apply"), ImageReading("stored", (0, 4095))])
def test_equal_to_a_file_that_was_made_with_the_same_options(folder, tmp_path, reading):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw(0)).save(folder / "b.png", exif=exif)
    Image.fromarray(draw(5)[:, :, 0].astype(np.uint16) * 16).save(folder / "deep.png")
    path, options = tmp_path / "proposals.json", ["--exif", reading.exif]
    if reading.value_range:
        options += ["--value-range", *map(str, reading.value_range)]
    else:
        (folder / "deep.png").unlink()
    command = ["--images", str(folder), "--output", str(path), "--workers", "1"]
    assert main([*command, *options]) == 0
    coco = CocoDataset(folder, path, reading=reading)
    source = SearchedImages(folder, ProposalCache(tmp_path, ProposalSettings(), reading))
    assert coco.aspect_ratios == source.aspect_ratios
    for index in range(len(coco)):
        (theirs, expected), (ours, record) = coco.read(index), source.read(index)
        assert np.array_equal(np.array(ours), np.array(theirs))
        assert len(record.boxes) > 0
        assert torch.equal(record.boxes, expected.boxes)
    assert source.read(1)[0].size == ((60, 80) if reading.exif == "apply" else (80, 60))
    with pytest.raises(DataError, match="find the boxes again"):
        CocoDataset(folder, path)


def test_a_renamed_image_keeps_its_boxes(source, folder, monkeypatch):
    _, before = source.read(1)
    (folder / "b.png").rename(folder / "sub" / "z.png")
    renamed = SearchedImages(folder, source.cache)
    assert renamed.files[-1] == "sub/z.png"

    def never(images, settings):
        raise AssertionError("searched again")

    monkeypatch.setattr(proposal_cache, "find_proposals", never)
    assert torch.equal(renamed.read(4)[1].boxes, before.boxes)


def test_a_changed_image_gets_other_boxes(source, folder):
    _, before = source.read(1)
    Image.fromarray(np.ascontiguousarray(draw(0)[:, ::-1])).save(folder / "b.png")
    _, after = source.read(1)
    assert before.boxes.shape != after.boxes.shape or not torch.equal(before.boxes, after.boxes)


def test_unusable_images_are_named_before_training(folder, source):
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as error:
        SearchedImages(folder, source.cache)
    assert_clean(error, folder / "b.png", "truncated or unreadable", "replace it or remove")
    (folder / "b.png").write_bytes(bytes(50) + whole[-20:])  # its end is whole, its header is not
    with pytest.raises(DataError) as error:
        SearchedImages(folder, source.cache)
    assert_clean(error, folder / "b.png", "not an image")
    with pytest.raises(DataError, match="no such directory"):
        SearchedImages(folder / "nowhere", source.cache)


def test_an_image_that_disappears_during_training_is_named(folder, source):
    (folder / "b.png").unlink()
    with pytest.raises(DataError) as error:
        source.read(1)
    assert_clean(error, folder / "b.png", "missing")


def test_a_complete_cache_that_cannot_be_written_is_used(source, folder, monkeypatch):
    expected = [source.read(index)[1].boxes for index in range(len(source))]
    directory = source.cache.directory

    def refuse(path, **options):
        error = OSError(errno.EROFS, "Read-only file system")
        raise cannot_write(path, error) from error

    monkeypatch.setattr(proposal_cache, "open_atomic", refuse)
    again = SearchedImages(folder, ProposalCache(directory, ProposalSettings()))
    found = [again.read(index)[1].boxes for index in range(len(again))]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    entry = source.cache.path((folder / "b.png").read_bytes())
    entry.write_bytes(entry.read_bytes()[:-1])  # damaged boxes cannot be found anew
    Image.fromarray(draw(9)).save(folder / "a.png")
    with pytest.raises(DataError) as error:
        SearchedImages(folder, ProposalCache(directory, ProposalSettings()))
    problem = "cannot be written (Read-only file system) and lacks the boxes of 2 of 5 images"
    assert_clean(error, directory, problem, f"{folder / 'a.png'}; set data.proposal_cache to")


def test_it_is_sent_to_workers_without_tensors(source):
    (theirs, expected), (ours, record) = source.read(1), sent(source).read(1)
    assert np.array_equal(np.array(ours), np.array(theirs))
    assert torch.equal(record.boxes, expected.boxes)
    assert source.path(4) == source.images / "sub/c.bmp"
