"""Pre-training without a file of proposals equals pre-training with one, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.loaders import GroupedBatchSampler
from data.proposals import cache as proposal_cache
from data.proposals.cache import ProposalCache
from data.proposals.command import main
from data.proposals.propose import ProposalSettings
from data.proposals.searched_images import SearchedImages

ROOT = Path(__file__).parent.parent
STEPS = 6  # 8 images in batches of 2: an epoch and a half
NOTE = "data.train.proposals is not set: boxes are searched for in"


def result(run):
    """Lines of metrics.jsonl without the speed, and the weights."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == STEPS
    for line in lines:
        del line["images_per_second"]
    return lines, torch.load(run / "weights.pt", weights_only=True)["model"]


def assert_same_run(first, second):
    (lines, weights), (other_lines, other_weights) = result(first), result(second)
    assert lines == other_lines
    assert weights.keys() == other_weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, other_weights[name]), name


def kept(cache):
    """Content of each file of the cache, by its path in it."""
    return {p.relative_to(cache): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_config, script, dataset):
    """A run with the file from `python -m data.proposals`, and one that searches on the fly."""
    folder = tmp_path_factory.mktemp("on_the_fly")
    path, images = folder / "proposals.json", dataset / "train"
    assert main(["--images", str(images), "--output", str(path), "--workers", "1"]) == 0
    common = {
        "schedule__iterations": STEPS,
        "data__proposal_cache": str(folder / "cache"),
        "box_domain__max_proposals": 5,
    }
    file = write_config(folder / "file", data__train__proposals=str(path), **common)
    script("pretrain", "--config", file)
    assert not (folder / "cache").exists()
    cold = write_config(folder / "cold", data__train__proposals=None, **common)
    script("pretrain", "--config", cold)
    return folder


def test_equal_to_a_run_with_a_file(runs):
    lines, _ = result(runs / "file")
    assert any(line["loss_box"] > 0 for line in lines)  # the boxes matter
    assert_same_run(runs / "cold", runs / "file")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_run_searches_nothing_and_is_equal(runs, script, monkeypatch, workers):
    def never(images, settings):
        raise AssertionError("searched again")

    monkeypatch.setattr(proposal_cache, "find_proposals", never)  # forked workers see it
    before = kept(runs / "cache")
    assert sum(path.suffix == ".npy" for path in before) == 8
    warm = runs / f"warm{workers}"
    overrides = (f"output_dir={warm}", f"data.workers={workers}")
    script("pretrain", "--config", runs / "cold.yaml", *overrides)
    assert_same_run(warm, runs / "cold")
    assert kept(runs / "cache") == before


def test_workers_search_as_the_training_process_does(runs, script):
    cache = runs / "cache_of_workers"
    overrides = (f"output_dir={runs / 'workers'}", "data.workers=2", f"data.proposal_cache={cache}")
    script("pretrain", "--config", runs / "cold.yaml", *overrides)
    assert_same_run(runs / "workers", runs / "cold")
    assert kept(cache) == kept(runs / "cache")


def test_ranks_share_a_cache_and_one_of_them_says_so(runs, tmp_path):
    cache = tmp_path / "cache"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("pretrain.py", "--config", str(runs / "cold.yaml"), f"output_dir={tmp_path / 'two'}"),
        *("data.batch_size=1", f"data.proposal_cache={cache}"),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(NOTE) == 1
    assert f"kept in {cache}" in done.stdout
    assert kept(cache) == kept(runs / "cache")


def test_only_a_run_without_a_file_says_that_it_searches(runs, script, capsys):
    for name, times in (("file", 0), ("cold", 1)):  # both are finished: nothing is trained
        script("pretrain", "--config", runs / f"{name}.yaml")
        out = capsys.readouterr().out
        assert out.count(NOTE) == times
        assert out.count("python -m data.proposals") == times


def test_a_run_can_resume_with_another_cache(runs, script, capsys, tmp_path):
    moved = shutil.copytree(runs / "cache", tmp_path / "moved")
    script("pretrain", "--config", runs / "cold.yaml", f"data.proposal_cache={moved}")
    assert f"resumed at step {STEPS}" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_stops_before_training(runs, error_of, tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache, run = tmp_path / "file" / "cache", tmp_path / "run"
    overrides = (f"output_dir={run}", f"data.proposal_cache={cache}")
    message = error_of("pretrain", "--config", runs / "cold.yaml", *overrides)
    assert message.startswith(f"{cache}: boxes cannot be kept there")
    assert "set data.proposal_cache to" in message
    assert not run.exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_fails_later_keeps_the_steps_done(
    runs, dataset, error_of, tmp_path, workers
):
    cache = ProposalCache(tmp_path / "cache", ProposalSettings())
    source = SearchedImages(dataset / "train", cache)
    third_batch = GroupedBatchSampler(source.aspect_ratios, 2, seed=0).global_batches(0)[2]
    image = dataset / "train" / source.files[third_batch[1]]
    cache.path(image.read_bytes()).mkdir(parents=True)  # where its boxes should go
    run = tmp_path / "run"
    overrides = (f"output_dir={run}", f"data.proposal_cache={cache.directory}")
    message = error_of(
        "pretrain", "--config", runs / "cold.yaml", *overrides, f"data.workers={workers}"
    )
    assert message.startswith(f"{cache.directory}: boxes cannot be kept there")
    assert torch.load(run / "last.pt", weights_only=True)["step"] == 2


def test_a_truncated_image_is_named_before_training(runs, dataset, error_of, tmp_path):
    images = shutil.copytree(dataset / "train", tmp_path / "images")
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:500])
    overrides = (f"data.train.images={images}", f"output_dir={tmp_path / 'run'}")
    message = error_of("pretrain", "--config", runs / "cold.yaml", *overrides)
    assert "1.png: image is truncated" in message
    assert not (tmp_path / "run").exists()
