"""Whole runs with damaged images: data.on_bad_image=error stops them, skip goes on, in all stages,
and gives the same with workers, after a stop and on two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.image_files import encoded, photo

pytestmark = pytest.mark.usefixtures("small_backbones")

STEPS = 6  # 8 images in batches of 2: an epoch and a half
STAGES = {
    "finetune": ("finetune",),
    "box": ("pretrain",),
    "searched": ("pretrain", "--stage", "box"),
    "image": ("pretrain", "--stage", "image"),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, dataset):
    """A copy of the dataset: train/1.png ends early, which is seen at the start; train/4.png and
    val/3.png have a changed bit, which is seen when they are read."""
    folder = tmp_path_factory.mktemp("damaged") / "data"
    shutil.copytree(dataset, folder)
    cut = folder / "train" / "1.png"
    cut.write_bytes(cut.read_bytes()[:-500])
    for file in (folder / "train" / "4.png", folder / "val" / "3.png"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def config_of(write_config, damaged, tmp_path_factory):
    """The config of a run of a stage."""
    cache = str(tmp_path_factory.mktemp("cache"))

    def write(stage, output, **changes):
        images = str(damaged / "train")
        proposals = None if stage == "searched" else str(damaged / "proposals.json")
        labels = str(damaged / "train.json") if stage == "finetune" else None
        return write_config(
            output,
            data__train={"images": images, "annotations": labels, "proposals": proposals},
            data__val={"images": str(damaged / "val"), "annotations": str(damaged / "val.json")},
            data__proposal_cache=cache,
            data__skip_empty=False,
            **{"data__on_bad_image": "skip", **changes},
            schedule__iterations=STEPS,
            image={"crop_size": 32, "norm_groups": 1, "moco": {"queue": 8, "embedding_width": 8}},
        )

    return write


@pytest.fixture(scope="module")
def runs(config_of, script, tmp_path_factory):
    """A run of each stage."""
    folder = tmp_path_factory.mktemp("runs")
    for stage, (name, *options) in STAGES.items():
        script(name, *options, "--config", config_of(stage, folder / stage))
    return folder


def skipped(run):
    lines = (run / "skipped_images.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert all(entry["reason"].startswith(entry["file"]) for entry in entries)
    return ["/".join(Path(entry["file"]).parts[-2:]) for entry in entries]


def weights(run):
    return torch.load(run / "weights.pt", weights_only=True)["model"]


def assert_same(run, other):
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert sorted(skipped(run)) == sorted(skipped(other))


@pytest.mark.parametrize("stage", list(STAGES))
def test_the_list_in_the_run_directory(runs, stage):
    """What is known at the start comes first."""
    val = ["val/3.png"] if stage == "finetune" else []
    assert skipped(runs / stage) == ["train/1.png", "train/4.png", *val]


def test_what_is_said(runs, config_of, script, capsys, tmp_path):
    script("pretrain", "--config", config_of("box", tmp_path / "run"))
    out = capsys.readouterr().out
    assert out.count("1 image to skip, the first: ") == 1
    assert out.count("train/1.png: image is truncated or unreadable") == 2  # at the start, listed
    assert out.count("skipped: ") == 2


def test_objects_of_an_unreadable_image_count_as_not_found(runs, damaged, tmp_path):
    run = runs / "finetune"
    found = json.loads((run / "detections.json").read_text())
    assert found
    assert {entry["image_id"] for entry in found} <= {100, 101, 102, 104}
    per_class = json.loads((run / "per_class.json").read_text())
    assert set(per_class) == {"red", "blue"}


@pytest.mark.parametrize("stage", list(STAGES))
def test_workers_and_a_stop_change_nothing(runs, config_of, script, monkeypatch, tmp_path, stage):
    name, *options = STAGES[stage]
    config = config_of(stage, tmp_path / "run", data__workers=2, loop__checkpoint_every=3)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after step 3, whose line comes before the checkpoint
        patch.setattr("train.Meter.log", lambda self, step, values: stop() if step == 4 else None)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            script(name, *options, "--config", config)
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 3
    script(name, *options, "--config", config)
    assert_same(tmp_path / "run", runs / stage)


@pytest.mark.parametrize("stage", list(STAGES))
def test_without_skip_it_is_an_error(config_of, error_of, stage, tmp_path):
    name, *options = STAGES[stage]
    config = config_of(stage, tmp_path / "run", data__on_bad_image="error")
    message = error_of(name, *options, "--config", config)
    assert "train/1.png: image is truncated or unreadable" in message


def test_a_run_that_stopped_goes_on_with_skip(
    config_of, error_of, script, damaged, dataset, tmp_path
):
    """The damage that the start does not see ends the run; the setting may change then."""
    whole = tmp_path / "images"
    shutil.copytree(damaged / "train", whole)
    shutil.copy(dataset / "train" / "1.png", whole / "1.png")
    changes = {"data__on_bad_image": "error", "loop__checkpoint_every": 100}
    config = config_of("box", tmp_path / "run", **changes)
    message = error_of("pretrain", "--config", config, f"data.train.images={whole}")
    assert "4.png" in message
    for name in ("run", "other"):
        overrides = [f"output_dir={tmp_path / name}", f"data.train.images={whole}"]
        script("pretrain", "--config", config, *overrides, "data.on_bad_image=skip")
    assert_same(tmp_path / "run", tmp_path / "other")


def test_missing_files_are_not_skipped(config_of, error_of, damaged, tmp_path):
    shutil.copytree(damaged, tmp_path / "data")
    (tmp_path / "data" / "train" / "6.png").unlink()
    config = config_of("box", tmp_path / "run")
    message = error_of("pretrain", "--config", config, f"data.train.images={tmp_path}/data/train")
    assert "6.png" in message


def test_a_folder_of_bad_images_is_an_error(config_of, error_of, tmp_path):
    for number in range(3):
        path = tmp_path / "images" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(photo(), format="JPEG")[:-50])
    config = config_of("searched", tmp_path / "run")
    message = error_of("pretrain", "--config", config, f"data.train.images={tmp_path / 'images'}")
    assert "0.jpg: image is truncated" in message
    assert "and 2 more files" in message
