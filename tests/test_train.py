"""The training loop on a task small enough to compute by hand, and both stages in bfloat16."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal

import pytest
import torch
from torch import nn

from aligndet import dist
from aligndet.box_domain import BoxDomain
from aligndet.config import build_config
from aligndet.fine_tuning import FineTuning
from aligndet.run_directory import RunDirectory
from data import stopping
from data.build import build_train, build_two_views
from data.errors import DataError
from data.views import collate_detection, collate_views
from models import build_detector
from train import Batches, build_schedule, fit, step_seed

CPU = torch.device("cpu")
POINTS = [(1.0, 3.0), (-2.0, 1.0), (0.5, -1.0), (3.0, 2.0)]  # x and y of a line to fit


class Points:
    """A dataset of `POINTS` that fails after a number of reads, if told to."""

    def __init__(self, fail_after=None):
        self.fail_after, self.reads = fail_after, 0

    def __getitem__(self, key):
        self.reads += 1
        if self.fail_after is not None and self.reads > self.fail_after:
            raise DataError("point.png: image is truncated; replace it")
        return torch.tensor(POINTS[key.index])


class Line(nn.Module):
    """Mean squared error of y = slope x + offset."""

    def __init__(self, broken_from=None):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.offset = nn.Parameter(torch.tensor(-1.0))
        self.broken_from, self.updates = broken_from, []

    def forward(self, batch, with_statistics):
        x, y = batch.unbind(dim=1)
        error = ((self.slope * x + self.offset - y) ** 2).mean()
        losses = {"loss_square": error, "loss_zero": 0.0 * error}
        if self.broken_from is not None and len(self.updates) >= self.broken_from:
            losses["loss_zero"] = losses["loss_zero"] * torch.inf
        return losses, {"slope": self.slope.detach().clone()} if with_statistics else {}

    def update_target(self, step, total_steps):
        self.updates.append((step, total_steps))
        return {"momentum": 0.5}


def line_config(tmp_path, **sections):
    content = {
        "output_dir": str(tmp_path / "run"),
        "data": {"batch_size": 4, "workers": 0},
        "optim": {"lr": 0.1, "weight_decay": 0.0},
        "schedule": {"iterations": 3, "warmup_iterations": 0},
        "loop": {"log_every": 1, "checkpoint_every": 1},
    }
    for name, values in sections.items():
        content[name] = {**content[name], **values}
    return build_config(content)


def run_line(config, task=None, dataset=None, resume="auto"):
    task, dataset = task or Line(), dataset or Points()
    run = RunDirectory(config.output_dir)
    state = run.find(config, resume)
    run.open(config, state)
    fit(task, Batches(dataset, [1.0] * len(POINTS), torch.stack), config, run, state, CPU)
    return task, run


def lines(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def gradient(slope, offset):
    """Gradient of the mean over `POINTS` of (slope x + offset - y)^2, by hand."""
    errors = [slope * x + offset - y for x, y in POINTS]
    to_slope = sum(2 * e * x for e, (x, _) in zip(errors, POINTS, strict=True)) / len(POINTS)
    return to_slope, sum(2 * e for e in errors) / len(POINTS), sum(e * e for e in errors) / 4


def test_steps_by_hand(tmp_path):
    """Each batch holds all points, so the order does not matter."""
    schedule = {"milestones": [2], "gamma": 0.5}
    task, run = run_line(line_config(tmp_path, schedule=schedule))
    slope, offset, velocity = 0.5, -1.0, (0.0, 0.0)
    written = lines(run)
    assert [line["step"] for line in written] == [1, 2, 3]
    for line, lr in zip(written, (0.1, 0.1, 0.05), strict=True):
        to_slope, to_offset, loss = gradient(slope, offset)
        assert line["loss"] == line["loss_square"] == pytest.approx(loss, rel=1e-5)
        assert line["slope"] == pytest.approx(slope, rel=1e-5)
        assert line["lr"] == lr
        assert line["epoch"] == line["step"]
        assert line["momentum"] == 0.5
        assert line["images_per_second"] > 0
        velocity = (0.9 * velocity[0] + to_slope, 0.9 * velocity[1] + to_offset)
        slope, offset = slope - lr * velocity[0], offset - lr * velocity[1]
    assert task.slope.item() == pytest.approx(slope, rel=1e-5)
    assert task.offset.item() == pytest.approx(offset, rel=1e-5)
    assert task.updates == [(0, 3), (1, 3), (2, 3)]


def test_statistics_are_asked_for_in_the_steps_that_are_logged(tmp_path):
    """In each part of such a step, and at the end."""
    asked = []

    class Asked(Line):
        def forward(self, batch, with_statistics):
            asked.append(with_statistics)
            return super().forward(batch, with_statistics)

    parts = {"data": {"batch_size": 2}, "optim": {"accumulate": 2}}
    config = line_config(tmp_path, schedule={"iterations": 5}, loop={"log_every": 2}, **parts)
    _, run = run_line(config, Asked())
    assert asked == [False, False, True, True, False, False, True, True, True, True]
    assert [line["step"] for line in lines(run)] == [2, 4, 5]
    assert all("slope" in line for line in lines(run))


def test_two_small_batches_make_one_double_batch(tmp_path):
    """Over an epoch of one step, which holds every point either way."""
    whole, _ = run_line(line_config(tmp_path / "a"))
    halves, _ = run_line(
        line_config(tmp_path / "b", data={"batch_size": 2}, optim={"accumulate": 2})
    )
    assert halves.updates == whole.updates
    torch.testing.assert_close(halves.slope, whole.slope)
    torch.testing.assert_close(halves.offset, whole.offset)


def test_all_parts_of_a_step_are_logged(tmp_path):
    """The halves of the points differ in their loss; their mean is that of all points."""
    parts = {"data": {"batch_size": 2}, "optim": {"accumulate": 2}}
    _, run = run_line(line_config(tmp_path, **parts))
    _, _, loss = gradient(0.5, -1.0)
    first = lines(run)[0]
    assert first["loss"] == pytest.approx(loss, rel=1e-5)
    assert first["loss_square"] == pytest.approx(loss, rel=1e-5)


def test_a_checkpoint_of_other_weights_is_refused(tmp_path):
    _, run = run_line(line_config(tmp_path))
    content = torch.load(run.last, weights_only=True)
    del content["checksum"]
    content["model"]["renamed"] = content["model"].pop("slope")
    torch.save(content, run.last)
    with pytest.raises(DataError, match="another version of this project.*--resume none"):
        run_line(line_config(tmp_path))


def test_epochs_count_optimiser_steps(tmp_path):
    schedule = {"iterations": None, "epochs": 3}
    data, optim = {"batch_size": 1}, {"accumulate": 2, "base_batch": 8}
    config = line_config(tmp_path, schedule=schedule, data=data, optim=optim)
    built = build_schedule(config, Batches(Points(), [1.0] * 4, torch.stack))
    assert (built.total_steps, built.steps_per_epoch) == (6, 2)
    assert built.peak == pytest.approx(0.1 * 2 / 8)  # two images per step
    task, run = run_line(config)
    assert [line["epoch"] for line in lines(run)] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


@pytest.mark.parametrize("clip_norm", [0.25, 1000.0])
def test_the_gradient_is_clipped_to_its_norm(tmp_path, clip_norm):
    optim, schedule = {"clip_norm": clip_norm}, {"iterations": 1}
    task, _ = run_line(line_config(tmp_path, optim=optim, schedule=schedule))
    to_slope, to_offset, _ = gradient(0.5, -1.0)
    scale = min(1.0, clip_norm / (to_slope**2 + to_offset**2) ** 0.5)
    assert task.slope.item() == pytest.approx(0.5 - 0.1 * scale * to_slope, rel=1e-4)
    assert task.offset.item() == pytest.approx(-1.0 - 0.1 * scale * to_offset, rel=1e-4)


class LineWithBackbone(Line):
    """The slope is the backbone's."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ParameterDict({"weight": self._parameters.pop("slope")})

    @property
    def slope(self):
        return self.backbone["weight"]


def test_the_backbone_learns_at_its_own_rate(tmp_path):
    optim, schedule = {"backbone_lr_scale": 0.5}, {"iterations": 1}
    config = line_config(tmp_path, optim=optim, schedule=schedule)
    task, run = run_line(config, LineWithBackbone())
    to_slope, to_offset, _ = gradient(0.5, -1.0)
    assert task.slope.item() == pytest.approx(0.5 - 0.05 * to_slope, rel=1e-5)
    assert task.offset.item() == pytest.approx(-1.0 - 0.1 * to_offset, rel=1e-5)
    assert lines(run)[0]["lr"] == 0.1


def test_a_loss_that_is_not_finite_stops_before_it_spoils_anything(tmp_path):
    config = line_config(tmp_path, schedule={"iterations": 5})
    task = Line(broken_from=2)
    with pytest.raises(FloatingPointError, match=r"not finite at step 2 .*loss_zero=nan") as error:
        run_line(config, task)
    assert "loss_square=" in str(error.value)
    assert "\n" not in str(error.value)
    run = RunDirectory(config.output_dir)
    saved = torch.load(run.last, weights_only=True)
    assert saved["step"] == 2
    assert all(torch.isfinite(tensor) for tensor in saved["model"].values())
    assert [line["step"] for line in lines(run)] == [1, 2]


def test_an_unreadable_image_saves_the_steps_done(tmp_path):
    config = line_config(tmp_path, schedule={"iterations": 6}, loop={"checkpoint_every": 100})
    with pytest.raises(DataError, match=r"point\.png"):
        run_line(config, dataset=Points(fail_after=13))  # in the fourth batch of four
    assert torch.load(f"{config.output_dir}/last.pt", weights_only=True)["step"] == 3
    resumed, run = run_line(config)
    straight, _ = run_line(dataclasses.replace(config, output_dir=str(tmp_path / "straight")))
    assert torch.equal(resumed.slope, straight.slope)
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]


def test_the_rank_that_meets_an_unreadable_image_saves(tmp_path, monkeypatch):
    """All ranks are in the same state, and the others only see this one leave."""
    monkeypatch.setattr(dist, "is_main", lambda: False)
    config = line_config(tmp_path, loop={"checkpoint_every": 100})
    with pytest.raises(DataError):
        run_line(config, dataset=Points(fail_after=9))
    assert torch.load(f"{config.output_dir}/last.pt", weights_only=True)["step"] == 2


def test_a_finished_run_is_not_trained_further(tmp_path):
    config = line_config(tmp_path)
    task, _ = run_line(config)
    again, run = run_line(config, Line())
    assert again.updates == []
    assert torch.equal(again.slope, task.slope)
    assert [line["step"] for line in lines(run)] == [1, 2, 3]


@pytest.mark.parametrize("place", ["batch", "forward"])
def test_a_signal_saves_the_steps_done(tmp_path, place):
    config = line_config(
        tmp_path,
        schedule={"iterations": 6},
        loop={"checkpoint_every": 100},
        optim={"accumulate": 2},
    )

    class Signalled(Points if place == "batch" else Line):
        """Sends a signal to this process within the third step."""

        def __getitem__(self, key):
            if self.reads == 21:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(key)

        def forward(self, batch, with_statistics):
            if len(self.updates) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch, with_statistics)

    own = {"dataset" if place == "batch" else "task": Signalled()}
    with stopping.signals(), pytest.raises(stopping.Stopped) as stop:
        run_line(config, **own)
    done = {"batch": 2, "forward": 3}[place]  # a step that has begun is ended
    assert str(stop.value).startswith(f"stopped by SIGTERM; saved {done} steps in ")
    assert stop.value.status == 143
    assert torch.load(f"{config.output_dir}/last.pt", weights_only=True)["step"] == done
    resumed, run = run_line(config)
    straight, _ = run_line(dataclasses.replace(config, output_dir=str(tmp_path / "straight")))
    assert torch.equal(resumed.slope, straight.slope)
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_is_written_after_some_minutes(tmp_path, monkeypatch):
    config = line_config(
        tmp_path,
        loop={"checkpoint_every": 100, "checkpoint_minutes": 2.0},
        schedule={"iterations": 9},
    )
    clock = itertools.count(0.0, 50.0)  # seconds; read once when the run starts and once per step
    monkeypatch.setattr("train.time.monotonic", lambda: next(clock))
    saved = []
    monkeypatch.setattr("train.checkpoint.save", lambda content, *_: saved.append(content["step"]))
    run_line(config)
    assert saved == [3, 6, 9]  # 150 s after the last one, which costs a reading of the clock too


def test_evaluation_in_training_is_logged_at_its_step(tmp_path):
    config = line_config(tmp_path, schedule={"iterations": 5})
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, every=2))
    run = RunDirectory(config.output_dir)
    batches = Batches(Points(), [1.0] * len(POINTS), torch.stack)
    results = [{"AP": 12.5, "APl": None}, KeyboardInterrupt, {"AP": 12.5, "APl": None}]
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, checkpoint_every=99))

    def evaluate(step):
        assert step in (2, 4)
        result = results.pop(0)
        if result is KeyboardInterrupt:
            raise result
        return result

    with pytest.raises(KeyboardInterrupt):  # in the second evaluation, at step 4
        state = run.find(config, "auto")
        run.open(config, state)
        fit(Line(), batches, config, run, state, CPU, evaluate)
    state = run.find(config, "auto")
    run.open(config, state)
    fit(Line(), batches, config, run, state, CPU, evaluate)
    scored = [line for line in lines(run) if "AP" in line]
    assert scored == [
        {"step": 2, "epoch": 2.0, "AP": 12.5, "APl": None},
        {"step": 4, "epoch": 4.0, "AP": 12.5, "APl": None},
    ]
    assert [line["step"] for line in lines(run)] == [1, 2, 2, 3, 4, 4, 5]


def test_seeds_differ_by_step_part_and_rank():
    seeds = {step_seed(0, s, p, r) for s in range(50) for p in range(2) for r in range(4)}
    assert len(seeds) == 400
    assert step_seed(0, 3, 1, 2) != step_seed(1, 3, 1, 2)
    torch.manual_seed(step_seed(10**6, 10**9, 100, 1000))  # PyTorch accepts it, however large


def test_a_run_resumes_with_and_without_compiled_layers(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("train.compile_layers", lambda task, setting: seen.append(setting))
    config = line_config(tmp_path, schedule={"iterations": 6})
    straight, _ = run_line(dataclasses.replace(config, output_dir=str(tmp_path / "straight")))
    compiled = dataclasses.replace(config, compile="model")
    with pytest.raises(DataError):
        run_line(compiled, dataset=Points(fail_after=9))
    with pytest.raises(DataError):
        run_line(config, dataset=Points(fail_after=9))
    resumed, _ = run_line(compiled)
    assert seen == ["none", "model", "none", "model"]
    assert torch.equal(resumed.slope, straight.slope)


@pytest.mark.parametrize("stage", ["box", "detector"])
def test_a_step_in_bfloat16(tmp_path, content, stage):
    changes = {"amp": "bf16", "schedule__iterations": 2}
    config = build_config(content(tmp_path / "run", **changes))
    torch.manual_seed(0)
    if stage == "box":
        dataset = build_two_views(config.data, None)
        task = BoxDomain(build_detector(config.model, 1), "fcos", config.box_domain)
        batches = Batches(dataset, dataset.source.aspect_ratios, collate_views)
    else:
        dataset = build_train(config.data)
        task = FineTuning(build_detector(config.model, 2))
        batches = Batches(dataset, dataset.coco.aspect_ratios, collate_detection)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    run = RunDirectory(config.output_dir)
    state = run.find(config, "auto")
    run.open(config, state)
    fit(task, batches, config, run, state, CPU)
    assert all(line["loss"] > 0 for line in lines(run))  # null would mean not finite
    after = task.state_dict()
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in after.values())
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert any(name.endswith("head.cls_tower.0.weight") for name in changed)
    assert any(name.endswith("head.box_regression.weight") for name in changed)
