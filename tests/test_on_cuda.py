"""Every command on a stand-in for a GPU: it finds mistakes about devices, and counts waits.

What the stand-in can and cannot show stands in `docs/cuda_stand_in.md`.
"""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from aligndet import clusters
from aligndet.box_domain import BoxDomain
from aligndet.fine_tuning import FineTuning
from aligndet.moco import MoCo
from aligndet.simmim import SimMIM
from aligndet.supervised import Supervised
from models.backbone import build_backbone
from tests.helpers import proposal_command
from tests.helpers.cuda_runs import (
    MOST_WAITS,
    OPTIONS,
    STEPS,
    call,
    faults,
    on_stand_in,
    settings,
    too_many_waits,
    train,
)
from tests.helpers.cuda_stand_in import CudaStandIn
from tests.helpers.proposal_command import three_images

pytestmark = pytest.mark.usefixtures("small_backbones")


class Run(NamedTuple):
    """A training of a stage."""

    gpu: CudaStandIn | None
    folder: Path
    loss_dtypes: set[torch.dtype]

    @property
    def loss(self) -> float:
        """Of the last step."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return next(line["loss"] for line in lines if "loss" in line)


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_config, class_folders):
    """Train a stage in a precision on a device; the same one only once."""
    folder, runs = tmp_path_factory.mktemp("cuda"), {}

    def get(stage, amp="none", device="cuda"):
        key = f"{stage} {amp} {device}"
        if key not in runs:
            changes = {"device": device, "schedule__iterations": STEPS if amp == "none" else 1}
            if stage.startswith("image"):
                changes["data__train__images"] = str(class_folders / "train")
            output = folder / key.replace(" ", "_")
            config = write_config(output, **settings(stage, amp, **changes))
            with loss_dtypes() as dtypes:
                if device == "cuda":
                    with on_stand_in() as gpu:
                        train(stage, config)
                else:
                    gpu = train(stage, config)
            runs[key] = Run(gpu, output, dtypes)
        return runs[key]

    return get


@contextlib.contextmanager
def loss_dtypes():
    """The dtypes of all losses that tasks return meanwhile."""
    found = set()

    def note(module, args, result):
        if isinstance(module, (BoxDomain, FineTuning, MoCo, SimMIM, Supervised)):
            found.update(loss.dtype for loss in result[0].values())

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        yield found
    finally:
        hook.remove()


# Not each in both: a run takes many seconds, and Mask R-CNN has all of Faster R-CNN.
IN_HALF = {
    "box fcos": "bf16",
    "box retinanet": "fp16",
    "box mask_rcnn": "bf16",
    "box detr": "bf16",
    "fine fcos": "fp16",
    "fine retinanet": "bf16",
    "fine faster_rcnn": "fp16",
    "fine mask_rcnn": "bf16",
    "fine detr": "bf16",
    "image moco_v2": "bf16",
    "image simmim": "bf16",
    "image supervised": "fp16",
}


@pytest.mark.parametrize(
    ("stage", "amp"), [*((stage, "none") for stage in MOST_WAITS), *IN_HALF.items()]
)
def test_stage(run, stage, amp):
    done = run(stage, amp)
    assert math.isfinite(done.loss)
    assert done.loss_dtypes == {torch.float32}
    assert faults(done.gpu, amp) == []


@pytest.mark.parametrize("stage", MOST_WAITS)
def test_waits_per_step(run, stage):
    message = too_many_waits(stage, run(stage).gpu)
    assert message is None, message


@pytest.mark.parametrize(
    "stage", ["box retinanet", "fine fcos", "fine faster_rcnn", "image moco_v2"]
)
def test_losses_are_those_of_the_cpu(run, stage):
    """The stand-in computes with the CPU's kernels, and so shows that it was the product that ran:
    both draw from generators of the same seed."""
    assert run(stage).loss == run(stage, device="cpu").loss


@pytest.mark.parametrize("detector", OPTIONS)
def test_evaluation_and_prediction(run, detector, write_config, dataset, tmp_path):
    """They find what they find on the CPU."""
    weights = run(f"fine {detector}").folder

    def all_found(device):
        output = tmp_path / device
        config = write_config(output, **settings(f"fine {detector}", device=device))
        call("finetune", "--config", config, "--eval-only", "--checkpoint", weights)
        call(
            *("aligndet.predict", "--weights", weights, "--images", dataset / "val"),
            *("--output", output / "drawn", "--device", device, "--json-threshold", 0),
        )
        files = (output / "detections.json", output / "drawn" / "detections.json")
        return [json.loads(file.read_text()) for file in files]

    with sdpa_kernel(SDPBackend.MATH):  # the one kernel of attention that both have
        with on_stand_in() as gpu:
            found = all_found("cuda")
        assert faults(gpu) == []
        assert all(found), "nothing to compare"
        assert found == all_found("cpu")


def test_proposals(tmp_path):
    """The boxes and masks are those of the CPU."""
    images = three_images(tmp_path / "images")
    options = ("--images", images, "--search", "fast", "--filter", "none", "--workers", 1)

    def boxes(name, *more):
        output = tmp_path / f"{name}.json"
        assert proposal_command.run(*options, "--masks", "--output", output, *more) == 0
        entries = json.loads(output.read_text())["annotations"]
        return [(entry["bbox"], entry["segmentation"]) for entry in entries]

    with on_stand_in():
        on_cuda = boxes("cuda", "--device", "cuda")
    assert len(on_cuda) > 20
    assert on_cuda == boxes("cpu")


def test_probe(class_folders, tmp_path):
    def scores(device):
        output = tmp_path / f"{device}.json"
        folders = [f"--{split}={class_folders / split}" for split in ("train", "val")]
        options = ("--size", 32, "--workers", 0, "--device", device, "--output", output)
        call("aligndet.probe", "--backbone", "resnet18", *folders, *options)
        return json.loads(output.read_text())

    with on_stand_in():
        found = scores("cuda")
    assert found == scores("cpu")


def test_clusters(dataset, tmp_path):
    """The clusters of the sample and of the second pass are those of the CPU."""
    weights = tmp_path / "weights.pt"
    torch.save(build_backbone("resnet18").state_dict(), weights)
    options = ("--images", dataset / "train", "--proposals", dataset / "proposals.json")
    options += ("--backbone", "resnet18", "--weights", weights, "--clusters", 4, "--sample", 5)

    def found(device):
        output = tmp_path / f"{device}.json"
        changes = (f"device={device}", "data.workers=0", "data.short_sides=[64]")
        with mock.patch.object(clusters, "TOGETHER", 2):
            call("aligndet.cluster_command", *options, "--output", output, *changes)
        return json.loads(output.read_text())["annotations"]

    with on_stand_in() as gpu:
        on_cuda = found("cuda")
    assert faults(gpu) == []
    assert len(on_cuda) > 10
    assert on_cuda == found("cpu")


def test_resumed_on_the_other_device(write_config, tmp_path):
    """A run goes on from a checkpoint of either device, and ends with the same weights."""

    def weights(name, device, *arguments):
        changes = {"device": device, "schedule__iterations": 2, "loop__checkpoint_every": 1}
        config = write_config(tmp_path / name, **settings("box fcos", **changes))
        with on_stand_in() if device == "cuda" else contextlib.nullcontext():
            train("box fcos", config, *arguments)
        return torch.load(tmp_path / name / "weights.pt", map_location="cpu")["model"]

    expected = weights("cpu", "cpu")
    for name, device, arguments in (
        ("cuda", "cuda", ()),
        ("from_cpu", "cuda", ("--resume", tmp_path / "cpu" / "last.pt.1")),
        ("from_cuda", "cpu", ("--resume", tmp_path / "cuda" / "last.pt.1")),
    ):
        found = weights(name, device, *arguments)
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert torch.equal(value, expected[key]), (name, key)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("box fcos", {"optim__accumulate": 2, "box_domain__max_proposals": None}),
        ("box retinanet", {"box_domain__freeze_backbone": False, "model__norm": "bn"}),
        ("fine retinanet", {"deterministic": True, "model__options__tower_norm": "gn"}),
        ("fine faster_rcnn", {"model__options__class_agnostic": False, "model__norm": "bn"}),
    ],
)
def test_options(write_config, tmp_path, stage, changes):
    config = write_config(tmp_path / "run", **settings(stage, schedule__iterations=1, **changes))
    with on_stand_in() as gpu:
        train(stage, config)
    assert faults(gpu) == []


def test_workers_give_pinned_memory(write_config, tmp_path):
    """Batches for training and evaluation travel while the host goes on."""
    config = write_config(tmp_path / "run", **settings("fine fcos", data__workers=1))
    with on_stand_in() as gpu:
        train("fine fcos", config)
    assert faults(gpu, workers=True) == []


def test_a_loss_that_is_not_finite(write_config, tmp_path, capsys):
    """The step is saved and can be computed again."""
    settings_ = settings("fine fcos", optim__lr=1e20, optim__clip_norm=None)
    config = write_config(tmp_path / "run", **settings_)
    with on_stand_in():
        with pytest.raises(SystemExit):
            train("fine fcos", config)
        call("aligndet.replay", tmp_path / "run" / "nonfinite.pt", "--device", "cuda")
    assert "not finite" in capsys.readouterr().err
