"""A step that stopped a run gives the same losses again, bit by bit, and the cause is shown."""

from __future__ import annotations

import math

import pytest
import torch

from aligndet import replay
from aligndet.box_domain import BoxDomain
from aligndet.fine_tuning import FineTuning
from aligndet.moco import MoCo
from aligndet.supervised import Supervised
from tests.helpers.small_detectors import OPTIONS

pytestmark = pytest.mark.usefixtures("small_backbones")

CPU = torch.device("cpu")
IMAGE = {"crop_size": 64, "norm_groups": 2, "moco": {"queue": 24, "embedding_width": 16}}
STAGES = {
    "moco": (MoCo, ("pretrain", "--stage", "image"), {"image": IMAGE, "data__batch_size": 4}),
    "supervised": (
        Supervised,
        ("pretrain", "--stage", "image"),
        {"image": {**IMAGE, "method": "supervised"}, "data__batch_size": 4},
    ),
    "finetune": (FineTuning, ("finetune",), {}),
}
for detector, options in OPTIONS.items():
    changes = {"model__detector": detector, "model__options": options}
    STAGES[f"box_{detector}"] = (BoxDomain, ("pretrain",), changes)
CLUSTERS = {"box_domain__cluster_weight": 1.0, "box_domain__clusters": 3}
STAGES["box_clusters"] = (BoxDomain, ("pretrain",), CLUSTERS)


def stopped(monkeypatch, task, at, term="loss_test"):
    """Add a term to the losses that becomes infinite in a forward pass."""
    forward, calls = task.forward, []

    def with_term(self, batch, with_statistics):
        losses, statistics = forward(self, batch, with_statistics)
        calls.append(batch)
        value = math.inf if len(calls) == at else 0.0
        return losses | {term: torch.tensor(value)}, statistics

    monkeypatch.setattr(task, "forward", with_term)


@pytest.mark.parametrize(
    ("stage", "accumulate"), [*((stage, 1) for stage in STAGES), ("moco", 2), ("box_fcos", 2)]
)
def test_the_losses_are_those_of_the_run(
    tmp_path, monkeypatch, capsys, write_config, class_folders, error_of, script, stage, accumulate
):
    task, command, changes = STAGES[stage]
    if stage == "supervised":
        changes = {**changes, "data__train": {"images": str(class_folders / "train")}}
    path = write_config(tmp_path / "run", optim__accumulate=accumulate, **changes)
    with monkeypatch.context() as patch:
        stopped(patch, task, at=3 * accumulate)  # the last part of the third step
        message = error_of(command[0], "--config", path, *command[1:])
    assert "the loss is not finite at step 2" in message
    assert "loss_test=inf" in message
    content = replay.read(tmp_path / "run")
    assert len(content["parts"]) == accumulate
    *_, now = replay.ReplayedStep(content, CPU).forward()
    in_the_run = {name: loss for name, loss in content["losses"].items() if name != "loss_test"}
    assert {name: loss.item() for name, loss in now.items()} == in_the_run
    script("aligndet.replay", tmp_path / "run", "--device", "cpu")
    report = capsys.readouterr().out
    assert "differs" not in report
    assert "all values and gradients are finite" in report


@pytest.fixture(scope="module")
def diverged(tmp_path_factory, write_config, script):
    """The content of the file of a fine-tuning whose learning rate is far too high."""
    folder = tmp_path_factory.mktemp("diverged") / "run"
    with pytest.raises(SystemExit):
        script("finetune", "--config", write_config(folder, optim__lr=1e20))
    return replay.read(folder)


def report(content):
    return list(replay.ReplayedStep(content, CPU).report())


def test_the_report_of_a_run_that_diverged(diverged):
    lines = report(diverged)
    assert lines[0].startswith("step 1 of ")
    assert lines[0].endswith("rank 0 of 1; cpu, amp none")
    assert lines[1] == "images: " + ", ".join(map(repr, diverged["parts"][0]["batch"]["names"]))
    assert lines[4].split() == ["loss_class", "nan", "nan"]
    assert not any("differs" in line for line in lines)
    (cause,) = (line for line in lines if line.startswith("first value that is not finite"))
    assert "at models/" in cause
    assert "in module detector." in cause
    assert cause.endswith("its inputs are finite")
    table = [line.split() for line in lines[lines.index(cause) + 2 :]]
    assert table[0] == ["gradient", "norm", "of", "loss_class", "loss_box", "loss_centerness"]
    # The branches of the head are apart: none sends a gradient into another.
    norms = {name: values for name, *values in table[1:]}
    assert norms["detector.head.cls_logits"] == ["nan", "0", "0"]
    assert norms["detector.head.centerness"] == ["0", "0", "nan"]


def changed(content, **entries):
    """The content with other entries, and without the checksum of the old ones."""
    return {name: entry for name, entry in {**content, **entries}.items() if name != "checksum"}


def test_gradient_norms_are_those_of_the_step(diverged):
    """Of finite weights; the sum over the terms of each parameter is the step's gradient."""
    step = replay.ReplayedStep(diverged, CPU)
    torch.manual_seed(0)
    fresh = replay.build_task(step.config, diverged).state_dict()
    content = changed(diverged, model=fresh, loss_scale=4.0)
    step = replay.ReplayedStep(content, CPU)
    terms = {name: step.gradient(name) for name in diverged["losses"]}
    whole = step.gradient()
    for name, gradient in whole.items():
        parts = [gradients[name] for gradients in terms.values() if name in gradients]
        torch.testing.assert_close(sum(parts), gradient)
    header, *rows = replay.gradient_table({"all": whole})
    square = sum(float(row.split()[1]) ** 2 for row in rows)
    expected = sum(gradient.double().square().sum().item() for gradient in whole.values())
    assert square == pytest.approx(expected, rel=1e-3)  # five digits are printed
    assert "all values and gradients are finite" in report(content)


def test_weights_and_batches_that_are_not_finite_are_named(diverged):
    torch.manual_seed(0)
    fresh = replay.build_task(replay.ReplayedStep(diverged, CPU).config, diverged).state_dict()
    fresh["detector.head.centerness.bias"][:] = torch.nan
    expected = "the weights are not finite before the step: 'detector.head.centerness.bias'"
    assert expected in report(changed(diverged, model=fresh))
    fresh["detector.head.centerness.bias"][:] = 0.0
    (part,) = diverged["parts"]
    images = part["batch"]["images"].float()
    images[0, 0, 0, 0] = torch.inf
    parts = [{**part, "batch": {**part["batch"], "images": images}}]
    expected = "the batch is not finite: '0.batch.images'"
    assert expected in report(changed(diverged, model=fresh, parts=parts))


def test_a_difference_is_shown(diverged):
    """As of a GPU that computed wrong once, or a file that is replayed on another device."""
    lines = report(changed(diverged, losses={**diverged["losses"], "loss_box": 1.5}, processes=2))
    (line,) = (line for line in lines if line.endswith("differs"))
    assert line.split() == ["loss_box", "1.5", "nan", "differs"]
    assert any("replayed alone" in line for line in lines)


def test_files_that_are_no_step(tmp_path, error_of, diverged):
    def error(content=None):
        path = tmp_path / "file.pt"
        if content is not None:
            torch.save(content, path)
        return error_of("aligndet.replay", path, "--device", "cpu")

    assert "file.pt: no such file" in error()
    (tmp_path / "file.pt").write_bytes(b"no tensors")
    assert "file.pt: cannot be read as weights" in error()
    assert "its checksum is wrong" in error({**diverged, "step": 2})
    assert "file.pt: not a step of a run; give the nonfinite.pt" in error({"model": {}})
    assert "holds no nonfinite.pt" in error_of("aligndet.replay", tmp_path)
    model = {name: value for name, value in diverged["model"].items() if "centerness" not in name}
    assert "another version of this project" in error(changed(diverged, model=model))
    assert "damaged ('threads', 'config')" in error(changed(diverged, threads="1", config=None))
    assert "damaged (empty entries)" in error(changed(diverged, parts=[]))
    assert "damaged (empty entries)" in error(changed(diverged, processes=0))
    assert "the unknown stage 'yolo'" in error(changed(diverged, stage="yolo"))
