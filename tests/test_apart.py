"""Machines that do not share the run directory: two ranks with the same relative path, each in a
folder of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from aligndet import checkpoint
from aligndet.config import Config, plain
from aligndet.run_directory import RunDirectory

RUN = Path("run")
CASES = ("shared", "apart", "missing", "another_step", "damaged", "only_there", "anew")


def state(step):
    content = {"step": step, "model": {}, "optimizer": {}, "processes": 2}
    return {**content, "config": plain(Config(output_dir="run"))}


def prepare(case, rank):
    """What is in the folder of a rank when the run starts."""
    shutil.rmtree(RUN, ignore_errors=True)
    steps = {"missing": (4, None), "another_step": (4, 8), "damaged": (4, 4)}
    steps |= {"only_there": (None, 4), "anew": (None, 4)}
    step = steps.get(case, (None, None))[rank]
    if step is not None:
        RUN.mkdir()
        checkpoint.save(state(step), RUN / "last.pt")
    if case == "damaged" and rank == 1:
        (RUN / "last.pt").write_bytes(b"no checkpoint")


def open_run(case):
    """Start a run as the scripts do; what it prints, or its error."""
    config = Config(output_dir="../shared" if case == "shared" else "run")
    run = RunDirectory(config.output_dir)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run.open(config, run.find(config, "none" if case == "anew" else "auto"))
    except ValueError as error:
        return f"error: {error}"
    return said.getvalue()


def rank_main(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2
    )
    (folder / f"machine{rank}").mkdir()
    os.chdir(folder / f"machine{rank}")
    socket.gethostname = lambda: f"node{rank}"
    said = {}
    for case in CASES:
        prepare(case, rank)
        torch.distributed.barrier()
        said[case] = open_run(case)
    (folder / f"{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """By the case, what each rank has printed."""
    folder = tmp_path_factory.mktemp("apart")
    torch.multiprocessing.spawn(rank_main, (folder,), nprocs=2)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return {case: (first[case], second[case]) for case in CASES}


def test_a_shared_directory_is_not_mentioned(said):
    assert said["shared"] == ("", "")


@pytest.mark.parametrize("case", ["apart", "anew"])
def test_a_run_that_starts_in_two_folders_says_so(said, case):
    first, second = said[case]
    assert first.startswith("run: is another folder on node1; to resume, each machine will need")
    assert first.count("\n") == 1
    assert second == ""


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "run/last.pt: rank 0 resumes from it, but on node1 there is no such file; put"),
        (
            "another_step",
            "run/last.pt: rank 0 resumes from it, but on node1 it is another one (of step 8, not "
            "4); put the run directory on storage that all machines share, or copy",
        ),
        ("damaged", "run/last.pt: rank 0 resumes from it, but on node1 it is another one (run/"),
        ("only_there", "run: is another folder on node1, and only there is a last.pt; put output"),
    ],
)
def test_ranks_that_would_resume_from_different_files_are_refused(said, case, message):
    first, second = said[case]
    assert first.startswith(f"error: {message}")
    assert second == first
