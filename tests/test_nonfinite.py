"""A run stops before numbers that are not finite spoil it, and says which and of which images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from aligndet import dist
from aligndet.nonfinite import FiniteGuard, Part, check_weights, image_names, weights_not_finite
from aligndet.run_directory import RunDirectory
from tests.test_train import Line, Points, line_config, lines, run_line

BATCH = {"images": torch.tensor([1.0, 2.0]), "names": ["a.png", "b\nc.png"]}


class Task(nn.Module):
    """One weight, and BatchNorm: trained, and with fixed statistics."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.norm, self.frozen = nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval()


def guard(tmp_path, task=None, start=0, scaler=False, **sections):
    config = line_config(tmp_path, **sections)
    run = RunDirectory(config.output_dir)
    run.inputs = {"stage": "box"}
    scaler = torch.amp.GradScaler("cpu", enabled=scaler)
    return FiniteGuard(task or Task(), config, run, scaler, start)


def error(guard, losses, step=5, earlier=(), batch=BATCH):
    losses = {name: torch.tensor(value) for name, value in losses.items()}
    loss = torch.stack(list(losses.values())).sum()
    with pytest.raises(FloatingPointError) as info:
        guard.check_loss(loss, losses, step, [*earlier, Part(batch, 77)])
    assert "\n" not in str(info.value)
    return str(info.value)


def saved(guard, name="nonfinite.pt"):
    return torch.load(guard.run.path / name, weights_only=True)


def test_a_finite_loss_leaves_nothing(tmp_path):
    checks = guard(tmp_path)
    checks.check_loss(torch.tensor(3.0), {"loss_box": torch.tensor(3.0)}, 0, [Part(BATCH, 1)])
    assert not checks.run.path.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_error_names_term_images_and_file(tmp_path, value):
    checks = guard(tmp_path)
    message = error(checks, {"loss_box": value, "loss_contrast": 2.5})
    assert f"the loss is not finite at step 5 (loss_box={value:g}, loss_contrast=2.5)" in message
    assert "its images: 'a.png', 'b\\nc.png'" in message
    assert f"python -m aligndet.replay {checks.run.path / 'nonfinite.pt'}" in message
    assert "lower optim.lr or set optim.clip_norm, and start over" in message


def test_the_file_holds_the_step(tmp_path):
    checks = guard(tmp_path)
    error(checks, {"loss_box": float("inf"), "loss_contrast": 2.5})
    content = saved(checks)
    assert content["stage"] == "box"
    assert content["num_classes"] == 4
    assert (content["step"], content["rank"], content["processes"]) == (5, 0, 1)
    assert content["losses"] == {"loss_box": float("inf"), "loss_contrast": 2.5}
    assert content["config"]["optim"]["lr"] == 0.1
    (part,) = content["parts"]
    assert part["seed"] == 77
    assert part["batch"]["names"] == BATCH["names"]
    assert torch.equal(part["batch"]["images"], BATCH["images"])
    assert content["model"].keys() == checks.task.state_dict().keys()


def test_earlier_parts_of_the_step_are_saved_too(tmp_path):
    checks = guard(tmp_path, optim={"accumulate": 3})
    error(checks, {"loss_box": float("nan")}, earlier=[Part({"n": n}, 50 + n) for n in range(2)])
    parts = saved(checks)["parts"]
    assert [part["seed"] for part in parts] == [50, 51, 77]
    assert parts[1]["batch"] == {"n": 1}


def test_many_images_are_named_in_part(tmp_path):
    batch = ({"names": [f"{n}.png" for n in range(30)]}, {"names": ["other"]})
    message = error(guard(tmp_path), {"loss_box": float("nan")}, batch=batch)
    assert "'7.png' and 22 more" in message
    assert "8.png" not in message


@pytest.mark.parametrize("batch", [torch.zeros(2), [], {"images": 1}])
def test_a_batch_without_names(tmp_path, batch):
    assert image_names(batch) == []
    assert "its images" not in error(guard(tmp_path), {"loss_box": float("nan")}, batch=batch)


def test_a_rank_names_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "rank", lambda: 3)
    monkeypatch.setattr(dist, "world_size", lambda: 4)
    checks = guard(tmp_path)
    assert "; on rank 3; " in error(checks, {"loss_box": float("nan")})
    content = saved(checks, "nonfinite_rank3.pt")
    assert (content["rank"], content["processes"]) == (3, 4)


@pytest.mark.parametrize(
    ("sections", "remedy"),
    [
        ({"optim": {"clip_norm": 1.0}}, "; lower optim.lr, and start over"),
        ({"amp": "bf16"}, "lower optim.lr or set optim.clip_norm or set amp=none, and"),
    ],
)
def test_the_remedy_fits_the_settings(tmp_path, sections, remedy):
    checks = guard(tmp_path)
    config = line_config(tmp_path, optim=sections.get("optim", {}))
    checks.config = dataclasses.replace(config, amp=sections.get("amp", "none"))
    assert remedy in error(checks, {"loss_box": float("nan")})


def test_a_disk_that_is_full_does_not_hide_the_error(tmp_path):
    checks = guard(tmp_path)
    checks.run.path.parent.mkdir(exist_ok=True)
    checks.run.path.write_text("a file where the folder should be")
    message = error(checks, {"loss_box": float("nan")})
    assert "the loss is not finite at step 5" in message
    assert "the step could not be saved (" in message


@pytest.mark.parametrize(
    ("start", "step", "remedy"),
    [
        (0, 0, "model.backbone_weights or --init"),
        (5, 5, "the checkpoint holds them so"),
        (0, 5, "the update of step 4 made them so: lower optim.lr"),
    ],
)
def test_weights_that_were_not_finite_before_are_said_instead(tmp_path, start, step, remedy):
    task = Task()
    task.weight.data[0] = torch.inf
    message = error(guard(tmp_path, task, start), {"loss_box": float("nan")}, step)
    assert message.startswith(f"the weights are not finite before step {step}: 'weight'; ")
    assert remedy in message
    assert "images" not in message


def test_which_tensors_count_as_weights():
    task = Task()
    task.norm.running_mean[0] = torch.nan  # a forward pass that failed leaves this
    assert weights_not_finite(task) == []
    check_weights(task, 1)
    task.frozen.running_var[0] = torch.nan  # never written in training: it was loaded so
    assert weights_not_finite(task) == ["frozen.running_var"]
    with pytest.raises(FloatingPointError, match=r"after step 6: 'frozen.running_var'.*not saved"):
        check_weights(task, 7)


def test_large_values_are_finite_although_their_sum_is_not():
    task = Task()
    task.weight.data[:] = 3e38
    assert weights_not_finite(task) == []
    task.weight.data[:] = torch.tensor([torch.inf, -torch.inf])
    assert weights_not_finite(task) == ["weight"]


def with_gradient(*gradient):
    task = Task()
    task.weight.grad = torch.tensor(gradient)
    task.norm.weight.grad = torch.ones(2)
    return task


LOSSES = {"loss_box": torch.tensor(2.0)}


@pytest.mark.parametrize(
    ("gradient", "where"),
    [
        ((1.0, float("nan")), "in 'weight'"),
        ((float("inf"), 0.0), "in 'weight'"),
        ((3e38, 3e38), "each entry is, but they are too large"),
    ],
)
def test_a_gradient_that_is_not_finite(tmp_path, gradient, where):
    checks = guard(tmp_path, with_gradient(*gradient), optim={"clip_norm": 1.0, "accumulate": 2})
    norm = nn.utils.get_total_norm([checks.task.weight.grad])
    with pytest.raises(FloatingPointError) as info:
        checks.check_gradient(norm, LOSSES, 5, [Part(BATCH, 50), Part(BATCH, 51)])
    assert f"the gradient is not finite at step 5 ({where}); " in str(info.value)
    content = saved(checks)
    assert [part["seed"] for part in content["parts"]] == [50, 51]
    assert content["losses"] == {"loss_box": 2.0}


def test_a_loss_scaler_leaves_such_a_step_out_itself(tmp_path):
    checks = guard(tmp_path, with_gradient(torch.inf, 0.0), scaler=True)
    checks.check_gradient(torch.tensor(torch.inf), LOSSES, 5, [])
    assert not checks.run.path.exists()


class Cliff(Line):
    """The gradient of its last term becomes infinite, although the loss is finite."""

    def forward(self, batch, with_statistics):
        losses, statistics = super().forward(batch, with_statistics)
        if len(self.updates) >= 2:
            losses["loss_zero"] = (0.0 * self.slope).sqrt()  # 0, with the gradient 0 / 0
        return losses, statistics


def test_a_run_whose_gradient_is_clipped_keeps_its_weights(tmp_path):
    config = line_config(tmp_path, optim={"clip_norm": 10.0}, schedule={"iterations": 5})
    task = Cliff()
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 2 .*'slope'"):
        run_line(config, task)
    assert torch.isfinite(task.slope)
    run = RunDirectory(config.output_dir)
    assert torch.load(run.last, weights_only=True)["step"] == 2
    assert [line["step"] for line in lines(run)] == [1, 2]


def test_a_run_without_clipping_never_saves_spoiled_weights(tmp_path):
    """The update of step 2 spoils them: neither last.pt nor a further step takes them."""
    every_step = line_config(tmp_path / "a", schedule={"iterations": 5})
    with pytest.raises(FloatingPointError, match="not finite after step 2: 'slope'.*not saved"):
        run_line(every_step, Cliff())
    assert torch.load(RunDirectory(every_step.output_dir).last, weights_only=True)["step"] == 2
    rarely = line_config(tmp_path / "b", schedule={"iterations": 5}, loop={"checkpoint_every": 5})
    with pytest.raises(FloatingPointError, match="not finite before step 3: 'slope'.*of step 2"):
        run_line(rarely, Cliff())


def test_all_parts_of_a_step_are_in_the_file(tmp_path):
    """The third step fails in its second part: both parts are in the file."""
    config = line_config(tmp_path, data={"batch_size": 1}, optim={"accumulate": 2})
    seen = []

    class Recorded(Points):
        def __getitem__(self, key):
            seen.append(super().__getitem__(key))
            return seen[-1]

    class Broken(Line):
        def forward(self, batch, with_statistics):
            losses, statistics = super().forward(batch, with_statistics)
            self.calls = getattr(self, "calls", 0) + 1
            losses["loss_six"] = torch.tensor(torch.inf if self.calls == 6 else 0.0)
            return losses, statistics

    with pytest.raises(FloatingPointError, match="loss_six=inf"):
        run_line(config, Broken(), Recorded())
    content = torch.load(f"{config.output_dir}/nonfinite.pt", weights_only=True)
    batches = [part["batch"][0] for part in content["parts"]]
    assert torch.equal(torch.stack(batches), torch.stack(seen[4:6]))
