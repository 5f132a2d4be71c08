"""Boxes kept on disk: found by content and settings, searched again when the file is damaged."""

from __future__ import annotations

import dataclasses
import errno
import io
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from data.atomic_files import cannot_write
from data.errors import DataError
from data.images import ImageReading, decode_image
from data.proposals import cache as proposal_cache
from data.proposals.cache import ProposalCache, settings_digest
from data.proposals.propose import Proposals, ProposalSettings, find_proposals, propose
from tests.helpers.assertions import assert_clean
from tests.helpers.two_rectangles import draw


def encoded(seed, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(draw(seed)).save(stream, format=kind)
    return stream.getvalue()


def boxes_of(cache, content):
    return cache.boxes(content, decode_image(content, "scene"))


@pytest.fixture
def searches(monkeypatch):
    """The settings of every search, in order."""
    made = []

    def counted(images, settings):
        made.append(settings)
        return find_proposals(images, settings)

    monkeypatch.setattr(proposal_cache, "find_proposals", counted)
    return made


@pytest.fixture
def cache(tmp_path):
    return ProposalCache(tmp_path / "new" / "cache", ProposalSettings())


def files(cache):
    """All files of the cache but the one that tells the settings."""
    found = [path for path in cache.directory.rglob("*") if path.is_file()]
    return sorted(path for path in found if path.name != "settings.json")


def test_the_boxes_are_those_of_the_search(cache):
    content = encoded(0)
    boxes = boxes_of(cache, content)
    image = torch.from_numpy(draw(0)).permute(2, 0, 1)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, propose([image])[0], rtol=0, atol=0.00501)
    assert len(boxes) > 2


def test_coordinates_are_rounded_and_clipped_as_in_a_file_of_proposals(cache, monkeypatch):
    found = torch.tensor([[0.004, 1.006, 80.0001, 60.02], [3.333, 4.0, 9.995, 50.126]])
    monkeypatch.setattr(proposal_cache, "find_proposals", lambda *given: [Proposals(found)])
    boxes = boxes_of(cache, encoded(0))
    # 9.995 is 9.9949999 as float32
    expected = torch.tensor([[0.0, 1.01, 80.0, 60.0], [3.33, 4.0, 9.99, 50.13]])
    assert torch.equal(boxes, expected)
    assert torch.equal(boxes_of(cache, encoded(0)), expected)


def test_a_hit_searches_nothing(cache, searches):
    content = encoded(0)
    first = boxes_of(cache, content)
    assert len(searches) == 1
    for again in (cache, ProposalCache(cache.directory, ProposalSettings())):
        assert torch.equal(boxes_of(again, content), first)
    assert len(searches) == 1
    first.zero_()  # what a caller does with its boxes does not reach the cache
    assert boxes_of(cache, content).any()


def test_other_content_is_another_image(cache, searches):
    boxes_of(cache, encoded(0))
    boxes_of(cache, encoded(1))
    boxes_of(cache, encoded(0, "BMP"))  # the same pixels, but only the bytes are compared
    assert len(searches) == 3
    assert len(files(cache)) == 3


def test_a_file_is_where_its_digest_says(cache):
    content = encoded(0)
    boxes = boxes_of(cache, content)
    (path,) = files(cache)
    assert path == cache.path(content)
    settings, letters, name = path.relative_to(cache.directory).parts
    assert settings == settings_digest(ProposalSettings())
    assert len(letters) == 2
    assert len(letters + name) == 40 + len(".npy")
    assert np.array_equal(np.load(path), boxes.numpy())  # readable by anyone's numpy


def other_settings():
    plain = ProposalSettings()
    narrow = dataclasses.replace(plain.box_filter, max_ratio=2.0)
    changes = ({"box_filter": None}, {"box_filter": narrow}, {"nms_iou": 0.7}, {"max_boxes": 1})
    changes += ({"search_side": 40}, {"search": "fast"})
    return [dataclasses.replace(plain, **c) for c in (*changes, {"search_side": 40})]


def test_other_ways_to_read_images_need_another_search(cache, searches):
    content, settings = encoded(0), ProposalSettings()
    readings = [
        ImageReading("apply"),
        ImageReading(value_range=(0, 9)),
        ImageReading("apply", (0, 9)),
    ]
    for number, reading in enumerate([ImageReading(), *readings], start=1):
        other = ProposalCache(cache.directory, settings, reading)
        for _ in range(2):
            other.boxes(content, decode_image(content, "scene", reading))
        assert len(searches) == number
    # Boxes that were found before there was a choice are still of use: this is their digest.
    assert settings_digest(settings) == settings_digest(settings, ImageReading("stored", None))
    assert settings_digest(settings) == "d9932a05c1540454"


@pytest.mark.parametrize("settings", other_settings())
def test_other_settings_need_another_search(cache, searches, settings):
    content = encoded(0)
    boxes_of(cache, content)
    other = ProposalCache(cache.directory, settings)
    boxes = boxes_of(other, content)
    assert searches == [ProposalSettings(), settings]
    assert torch.equal(boxes_of(other, content), boxes)
    assert len(searches) == 2


def test_each_setting_counts():
    digests = {settings_digest(settings) for settings in (ProposalSettings(), *other_settings())}
    assert len(digests) == 7


def test_another_version_of_the_search_searches_again(cache, searches, monkeypatch):
    boxes_of(cache, encoded(0))
    monkeypatch.setattr(proposal_cache, "SEARCH_VERSION", proposal_cache.SEARCH_VERSION + 1)
    boxes_of(ProposalCache(cache.directory, ProposalSettings()), encoded(0))
    assert len(searches) == 2


def test_an_image_without_boxes_is_kept_too(cache, searches):
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, format="PNG")
    for _ in range(2):
        boxes = boxes_of(cache, stream.getvalue())
        assert boxes.shape == (0, 4)
        assert boxes.dtype == torch.float32
    assert len(searches) == 1


def as_file(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


BOX = np.array([[1, 2, 30, 40]], dtype=np.float32)
DAMAGE = {
    "empty": lambda whole: b"",
    "cut in the header": lambda whole: whole[:60],
    "cut after the header": lambda whole: whole[:128],
    "cut in the checksum": lambda whole: whole[:-3],
    "cut in the boxes": lambda whole: whole[:-7],
    "cut after a box": lambda whole: whole[:-20],
    "longer": lambda whole: whole + bytes(16),
    "zeros": lambda whole: bytes(len(whole)),
    "zeros for boxes": lambda whole: whole[:128] + bytes(len(whole) - 128),
    "no numpy file": lambda whole: b"<html>" + whole[6:],
    "zip": lambda whole: b"PK\x03\x04" + whole[4:],
    "pickle": lambda whole: as_file(np.array([{}], dtype=object)),
    "float64": lambda whole: as_file(BOX.astype(np.float64)),
    "big-endian": lambda whole: as_file(BOX.astype(">f4")),
    "one dimension": lambda whole: as_file(BOX[0]),
    "five columns": lambda whole: as_file(np.ones((4, 5), dtype=np.float32)),
    "nan": lambda whole: as_file(BOX * np.array([1, 1, np.nan, 1], dtype=np.float32)),
    "infinite": lambda whole: as_file(BOX * np.array([1, 1, np.inf, 1], dtype=np.float32)),
    "outside": lambda whole: as_file(BOX * 3),  # 120 high, in an image of 60
    "negative": lambda whole: as_file(BOX * np.array([-1, 1, 1, 1], dtype=np.float32)),
    "no area": lambda whole: as_file(BOX[:, [0, 1, 0, 3]]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_searched_again_and_replaced(cache, searches, name):
    content = encoded(0)
    boxes = boxes_of(cache, content)
    path = cache.path(content)
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[name](whole))
    assert path.read_bytes() != whole
    assert torch.equal(boxes_of(cache, content), boxes)
    assert len(searches) == 2
    assert path.read_bytes() == whole
    assert files(cache) == [path]


def test_any_flipped_bit_is_noticed(cache, monkeypatch):
    content = encoded(0)
    boxes = torch.tensor([[0.0, 1.01, 80.0, 60.0], [3.33, 4.0, 9.99, 50.13]])
    monkeypatch.setattr(proposal_cache, "find_proposals", lambda *given: [Proposals(boxes)])
    boxes_of(cache, content)
    path = cache.path(content)
    whole = path.read_bytes()
    assert len(whole) == 128 + 2 * 16 + 4
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert cache.kept(content, 60, 80) is None, bit
    assert torch.equal(boxes_of(cache, content), boxes)
    assert path.read_bytes() == whole


def test_files_of_earlier_versions_have_no_checksum_and_are_taken(cache, searches):
    content = encoded(0)
    boxes = boxes_of(cache, content)
    path = cache.path(content)
    stream = io.BytesIO()
    np.save(stream, boxes.numpy())
    assert stream.getvalue() == path.read_bytes()[:-4]
    path.write_bytes(stream.getvalue())
    assert torch.equal(boxes_of(cache, content), boxes)
    assert len(searches) == 1


def test_any_damaged_byte_of_the_header_is_noticed(cache, monkeypatch):
    content = encoded(0)
    boxes = boxes_of(cache, content)
    path = cache.path(content)
    whole = path.read_bytes()
    monkeypatch.setattr(proposal_cache, "find_proposals", lambda *given: [Proposals(boxes)])
    for place in range(128):
        for value in {0, ord("9"), ord("'"), whole[place] ^ 1} - {whole[place]}:
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            assert torch.equal(boxes_of(cache, content), boxes)
            assert path.read_bytes() == whole, (place, value)


def fill(directory):
    """Called in a process of its own."""
    torch.set_num_threads(1)
    cache = ProposalCache(directory, ProposalSettings())
    return [boxes_of(cache, encoded(seed)).numpy() for seed in range(4)]


def test_two_processes_at_once(tmp_path, cache, searches):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = list(pool.map(fill, [cache.directory] * 2))
    kept = fill(cache.directory)
    assert not searches
    for results in found:
        assert all(np.array_equal(a, b) for a, b in zip(results, kept, strict=True))
    assert files(cache) == sorted(cache.path(encoded(seed)) for seed in range(4))  # no leftovers


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError) as error:
            ProposalCache(directory, ProposalSettings())
        assert_clean(error, directory, "cannot be kept there", "set data.proposal_cache to")


def read_only(monkeypatch):
    """As on a disk that is mounted so; folders' permissions do not stop root."""

    def refuse(path, **options):
        error = OSError(errno.EROFS, "Read-only file system")
        raise cannot_write(path, error) from error

    monkeypatch.setattr(proposal_cache, "open_atomic", refuse)


def test_a_cache_that_cannot_be_written_is_used(cache, searches, monkeypatch):
    assert cache.problem is None
    boxes = boxes_of(cache, encoded(0))
    read_only(monkeypatch)
    again = ProposalCache(cache.directory, ProposalSettings())
    assert again.problem == "Read-only file system"
    assert torch.equal(boxes_of(again, encoded(0)), boxes)
    assert len(searches) == 1
    with pytest.raises(DataError) as error:
        boxes_of(again, encoded(1))
    assert_clean(error, cache.directory, "Read-only file system", "set data.proposal_cache to")


def test_without_boxes_of_these_settings_it_is_refused_at_once(cache, monkeypatch):
    boxes_of(cache, encoded(0))
    read_only(monkeypatch)
    with pytest.raises(DataError, match="cannot be kept there"):
        ProposalCache(cache.directory, ProposalSettings(search="fast"))


def test_a_full_disk_is_named_and_leaves_nothing(cache, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DataError) as error:
        boxes_of(cache, encoded(0))
    assert_clean(error, cache.directory, "No space left on device", "has space")
    assert not files(cache)


def test_a_file_that_cannot_be_read_is_named(cache):
    cache.path(encoded(0)).mkdir(parents=True)
    with pytest.raises(DataError) as error:
        boxes_of(cache, encoded(0))
    assert_clean(error, cache.directory, "directory", "set data.proposal_cache")
