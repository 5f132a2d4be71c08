"""Folders of other settings are told from those in use, listed and removed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from data.images import ImageReading, decode_image
from data.proposals.cache import ProposalCache, settings_digest
from data.proposals.cache_folders import list_folders, main
from data.proposals.propose import ProposalSettings
from tests.helpers.two_rectangles import draw

PLAIN = ProposalSettings()


def fill(cache: ProposalCache, *seeds: int) -> ProposalCache:
    for seed in seeds:
        stream = io.BytesIO()
        Image.fromarray(draw(seed)).save(stream, format="PNG")
        cache.boxes(stream.getvalue(), decode_image(stream.getvalue(), "scene", cache.reading))
    return cache


@pytest.fixture
def used(tmp_path: Path) -> list[ProposalCache]:
    """Of this version's settings, which any config can ask for."""
    return [
        fill(ProposalCache(tmp_path, PLAIN), 0, 1),
        fill(ProposalCache(tmp_path, PLAIN, ImageReading("apply")), 0),
        fill(ProposalCache(tmp_path, PLAIN, ImageReading(value_range=(0, 9))), 0),
        fill(ProposalCache(tmp_path, ProposalSettings(masks=True)), 0),
    ]


@pytest.fixture
def old(tmp_path: Path) -> list[ProposalCache]:
    fast = fill(ProposalCache(tmp_path, ProposalSettings(search="fast")), 0)
    unknown = tmp_path / "0123456789abcdef" / "ab"  # of a version that wrote no settings
    unknown.mkdir(parents=True)
    (unknown / f"{'cd' * 19}.npy").write_bytes(bytes(1000))
    earlier = fill(ProposalCache(tmp_path, ProposalSettings(search_side=40)), 1)
    settings = json.loads((earlier.folder / "settings.json").read_text())
    assert settings["version"] > 0
    (earlier.folder / "settings.json").write_text(json.dumps({**settings, "version": 0}))
    return [fast, unknown.parent, earlier]


def test_the_list(tmp_path, used, old, capsys) -> None:
    assert main([str(tmp_path)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == sorted(lines)
    told = {line.split(": ")[0]: line.split(": ")[1:] for line in lines}
    folder = [told[str(cache.folder)] for cache in used]
    assert folder[0] == ["2 images, 0.0 MB; in use, exif stored"]
    assert folder[1] == ['1 image, 0.0 MB; in use, exif "apply", value_range null']
    assert folder[2] == ['1 image, 0.0 MB; in use, exif "stored", value_range [0.0, 9.0]']
    assert folder[3] == ["1 image, 0.0 MB; in use, exif stored, with masks"]
    fast, unknown, earlier = old
    assert told[str(fast.folder)] == ['1 image, 0.0 MB; old, search "fast", not "thorough"']
    assert told[str(unknown)] == ["1 image, 0.0 MB; old, of unknown settings"]
    assert "search_side 40, not 320; version 0, not" in told[str(earlier.folder)][0]
    assert last.startswith("3 old folders, 0.0 MB: --remove-old")


def test_old_ones_are_removed_and_the_others_stay(tmp_path, used, old, capsys) -> None:
    before = {path: path.read_bytes() for cache in used for path in cache.folder.rglob("*.npy")}
    assert main([str(tmp_path), "--remove-old"]) == 0
    assert capsys.readouterr().out.count("deleted: 1 image of") == 3
    assert sorted(tmp_path.iterdir()) == sorted(cache.folder for cache in used)
    assert {path: path.read_bytes() for path in before} == before
    assert main([str(tmp_path), "--remove-old"]) == 0
    assert capsys.readouterr().out.endswith("no folder is old: nothing is deleted\n")


def test_a_folder_of_an_earlier_version_is_known_by_its_name(tmp_path, used) -> None:
    for cache in used[:2]:
        (cache.folder / "settings.json").unlink()
    told = {folder.path: folder.what for folder in list_folders(tmp_path)}
    assert told[tmp_path / settings_digest(PLAIN)] == "in use, exif stored"
    assert told[tmp_path / settings_digest(PLAIN, ImageReading("apply"))] == "in use, exif apply"


def test_only_files_of_the_cache_are_deleted(tmp_path, old, capsys) -> None:
    unknown = old[1]
    rest = unknown / "ab" / f".{'cd' * 19}.npy.{'0' * 32}.tmp"  # of a killed process
    mine = [unknown / "notes.npy", unknown / "ab" / "a.npy", unknown / "sub" / f"{'cd' * 19}.npy"]
    other = tmp_path / "photos" / "a.npy"
    for path in (rest, *mine, other):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "fedcba9876543210").symlink_to(tmp_path / "photos")
    assert main([str(tmp_path), "--remove-old"]) == 0
    assert "the folder stays, it holds files that are not the cache's" in capsys.readouterr().out
    assert sorted(p for p in unknown.rglob("*") if p.is_file()) == sorted(mine)
    assert other.exists()


def test_a_directory_that_is_not_there_is_named(tmp_path, capsys) -> None:
    assert main([str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'}: no such directory")
