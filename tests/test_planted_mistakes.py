"""The stand-in for a GPU sees mistakes: each one here is put into the product, which then runs.

If a text is no longer in its file, plant the mistake where that line is now.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch

from tests.helpers.cuda_runs import (
    MOST_WAITS,
    call,
    faults,
    on_stand_in,
    settings,
    too_many_waits,
    train,
)
from tests.helpers.edited_import import TextIsGone, edited_product
from tests.helpers.proposal_command import three_images

TWO_DEVICES = "Expected all tensors to be on the same device"


class Mistake(NamedTuple):
    """A change of a line of the product, and what shows it."""

    file: str
    right: str
    wrong: str
    command: str  # one of COMMANDS
    seen: str  # pattern of what is said


MISTAKES = [
    # Numbers made on the CPU.
    Mistake(
        file="models/anchors.py",
        right="torch.arange(height, device=device, ",
        wrong="torch.arange(height, ",
        command="box fcos",
        seen="at least two devices|same device",
    ),
    Mistake(
        file="aligndet/box_domain.py",
        right="for b in boxes), device=boxes[0].device)",
        wrong="for b in boxes))",
        command="box fcos",
        seen="indices should be either on cpu",
    ),
    Mistake(
        file="losses/contrastive.py",
        right="sums = samples.new_zeros(",
        wrong="sums = torch.zeros(",
        command="box fcos",
        seen=TWO_DEVICES,
    ),
    Mistake(
        file="data/selective_search/search.py",
        right="dtype=torch.bool, device=images[0].device)",
        wrong="dtype=torch.bool)",
        command="proposals",
        seen=TWO_DEVICES,
    ),
    Mistake(
        file="aligndet/moco.py",
        right="torch.arange(count, device=first.device)",
        wrong="torch.arange(count)",
        command="image moco_v2",
        seen=TWO_DEVICES,
    ),
    # Inputs left on the CPU.
    Mistake(
        file="train.py",
        right="to_device(batch, device)",
        wrong="batch",
        command="fine fcos",
        seen=TWO_DEVICES,
    ),
    Mistake(
        file="aligndet/predict.py",
        right="images.to(self.device)",
        wrong="images",
        command="predict",
        seen=TWO_DEVICES,
    ),
    Mistake(
        file="aligndet/probe.py",
        right='batch["views"][0].to(device',
        wrong='batch["views"][0].to("cpu"',
        command="probe",
        seen=TWO_DEVICES,
    ),
    # Results left on the device.
    Mistake(
        file="aligndet/evaluate.py",
        right='found["boxes"].cpu()',
        wrong='found["boxes"]',
        command="evaluate",
        seen=TWO_DEVICES,
    ),
    Mistake(
        file="data/proposals/propose.py",
        right="device=device)]).cpu().split(",
        wrong="device=device)]).split(",
        command="proposals",
        seen=TWO_DEVICES,
    ),
    # Files that only the machine that wrote them can read.
    Mistake(
        file="models/torch_file.py",
        right='map_location="cpu", ',
        wrong="",
        command="resume without GPU",
        seen="Attempting to deserialize object on a CUDA device",
    ),
    # The GPU of another process.
    Mistake(
        file="aligndet/dist.py",
        right='torch.device("cuda", index)',
        wrong='torch.device("cuda", 0)',
        command="second GPU",
        seen="cuda:0 instead of cuda:1",
    ),
    # Indices drawn on the CPU, and numbers that the host asks for.
    Mistake(
        file="models/sampling.py",
        right="torch.randperm(len(items), device=items.device)",
        wrong="torch.randperm(len(items))",
        command="box fcos",
        seen="models/sampling.py:.*: CPU index of a CUDA",
    ),
    Mistake(
        file="losses/focal.py",
        right="loss.sum() / normalizer",
        wrong="loss.sum() / float(normalizer)",
        command="fine fcos",
        seen="losses/focal.py:.*: item",
    ),
    # Precision.
    Mistake(
        file="aligndet/amp.py",
        right="torch.autocast(device.type, ",
        wrong='torch.autocast("cpu", ',
        command="bf16",
        seen="aten::convolution in torch.float32",
    ),
    # Memory that the device cannot fetch from by itself.
    Mistake(
        file="data/batch_channel.py",
        right="block.pin_memory() if pin else block",
        wrong="block",
        command="workers",
        seen="memory that is not pinned .*: data/loaders.py",
    ),
]


class Place(NamedTuple):
    """What commands work on."""

    folder: Path  # empty
    write_config: Callable[..., Path]
    dataset: Path
    classes: Path
    fine_tuned: Path  # the run directory of a fine-tuning
    from_cuda: Path  # of a pre-training on a GPU, with a checkpoint before its end


def run_stage(place, name, *arguments, **changes):
    if name.startswith("image"):
        changes["data__train__images"] = str(place.classes / "train")
    train(name, place.write_config(place.folder / "run", **settings(name, **changes)), *arguments)


def evaluate(place):
    run_stage(place, "fine fcos", "--eval-only", "--checkpoint", place.fine_tuned)


def predict(place):
    options = ("--images", place.dataset / "val", "--device", "cuda")
    call("aligndet.predict", "--weights", place.fine_tuned, "--output", place.folder, *options)


def probe(place):
    folders = [f"--{split}={place.classes / split}" for split in ("train", "val")]
    options = ("--size", 32, "--workers", 0, "--device", "cuda")
    call("aligndet.probe", "--backbone", "resnet18", *folders, *options)


def proposals(place):
    images = three_images(place.folder / "images")
    options = ("--search", "fast", "--workers", 1, "--device", "cuda")
    folders = ("--images", images, "--output", place.folder / "boxes.json")
    call("data.proposals.command", *folders, *options)


def resume_without_gpu(place):
    changes = {"device": "cpu", "schedule__iterations": 2}
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        run_stage(place, "box fcos", "--resume", place.from_cuda / "last.pt.1", **changes)


def second_gpu(place):
    with second_of_one_rank():
        run_stage(place, "box fcos", schedule__iterations=1)
    current = torch.cuda.current_device()
    assert current == 1, f"cuda:{current} instead of cuda:1"


@contextlib.contextmanager
def second_of_one_rank():
    """torchrun's variables of a process that is alone, but has the second GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "1"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with mock.patch.dict(os.environ, {**ranks, **address}):
        yield


COMMANDS = {
    **{stage: partial(run_stage, name=stage) for stage in MOST_WAITS},
    "bf16": partial(run_stage, name="box fcos", amp="bf16", schedule__iterations=1),
    "workers": partial(run_stage, name="box fcos", data__workers=1, schedule__iterations=1),
    **{"evaluate": evaluate, "predict": predict, "probe": probe, "proposals": proposals},
    **{"resume without GPU": resume_without_gpu, "second GPU": second_gpu},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_config):
    """Run directories of a fine-tuning on the CPU, and a pre-training on the stand-in."""
    folder = tmp_path_factory.mktemp("runs")
    short = {"schedule__iterations": 1, "device": "cpu"}
    train("fine fcos", write_config(folder / "fine", **settings("fine fcos", **short)))
    short = {"schedule__iterations": 2, "loop__checkpoint_every": 1}
    with on_stand_in():
        train("box fcos", write_config(folder / "box", **settings("box fcos", **short)))
    return folder / "fine", folder / "box"


@pytest.fixture
def complaints(tmp_path, write_config, dataset, class_folders, runs, capsys):
    """Run a command; returns everything that is wrong with it, in words."""
    place = Place(tmp_path, write_config, dataset, class_folders, *runs)

    def of(command):
        error = None
        with on_stand_in(devices=2) as gpu:
            try:
                COMMANDS[command](place)
            except (Exception, SystemExit) as caught:
                error = caught
        found = [] if error is None else [f"{type(error).__name__}: {error}"]
        if isinstance(error, SystemExit):
            found.append(capsys.readouterr().err)
        found += faults(gpu, "bf16" if command == "bf16" else "none", command == "workers")
        if command in MOST_WAITS and (waits := too_many_waits(command, gpu)):
            found.append(waits)
        return found

    return of


# C++ compares strides of "meta" tensors.
@pytest.mark.filterwarnings("ignore:Grad strides do not match")
@pytest.mark.parametrize("mistake", MISTAKES, ids=[f"{m.file}-{m.command}" for m in MISTAKES])
def test_mistake_is_seen(mistake, complaints):
    with edited_product(mistake.file, mistake.right, mistake.wrong):
        found = "\n".join(complaints(mistake.command))
    assert re.search(mistake.seen, found), found or "nothing was seen"


@pytest.mark.filterwarnings("ignore:Grad strides do not match")
def test_the_second_gpu_without_a_mistake(complaints):
    """The other commands are run by `test_on_cuda.py`."""
    assert complaints("second GPU") == []


def test_a_text_that_is_gone():
    edited = edited_product("models/anchors.py", "torch.arange(depth", "")
    with pytest.raises(TextIsGone, match="plant the mistake anew"):
        edited.__enter__()
