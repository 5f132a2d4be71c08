"""Learning-rate schedule by hand, optimiser groups, accumulation and clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from aligndet.optim import OptimConfig, Schedule, ScheduleConfig, build_optimizer


def schedule(peak=1.0, steps_per_epoch=10.0, **config):
    return Schedule.build(ScheduleConfig(**config), peak, steps_per_epoch)


def test_steps_by_hand_in_epochs():
    s = schedule(2.0, epochs=12, milestones=(8, 11), warmup_iterations=4, warmup_factor=0.1)
    assert s.total_steps == 120
    # Linear from 0.1 of the peak at step 0 to the peak at step 4.
    warm = [s.lr(step) for step in range(5)]
    assert warm == pytest.approx([0.2, 0.65, 1.1, 1.55, 2.0])
    assert [s.lr(step) for step in (79, 80, 109, 110, 119)] == pytest.approx(
        [2.0, 0.2, 0.2, 0.02, 0.02]
    )


def test_steps_by_hand_in_iterations():
    s = schedule(iterations=100, milestones=(90, 60), gamma=0.5, warmup_iterations=0)
    assert s.total_steps == 100
    assert [s.lr(step) for step in (0, 59, 60, 89, 90, 99)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_milestones_follow_a_fraction_of_steps_in_an_epoch():
    s = schedule(steps_per_epoch=2.5, epochs=4, milestones=(3,), warmup_iterations=0)
    assert s.total_steps == 10
    assert [s.lr(step) for step in (7, 8)] == pytest.approx([1.0, 0.1])
    assert schedule(steps_per_epoch=0.25, epochs=1).total_steps == 1


def test_cosine_by_hand():
    s = schedule(3.0, iterations=8, decay="cosine", warmup_iterations=0)
    expected = [3.0 * 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert [s.lr(step) for step in range(8)] == pytest.approx(expected)
    assert s.lr(4) == pytest.approx(1.5)
    warm = schedule(iterations=8, decay="cosine", warmup_iterations=4, warmup_factor=0.0)
    assert warm.lr(0) == 0.0
    assert warm.lr(2) == pytest.approx(0.5 * 0.5 * (1 + math.sqrt(0.5)))


def test_fractions_are_of_the_length():
    s = schedule(iterations=200, milestones=(0.5, 0.75), warmup_iterations=0.1)
    assert (s.warmup_steps, s.milestone_steps) == (20, (100.0, 150.0))
    assert s.lr(20) == 1.0
    assert [s.lr(step) for step in (99, 100, 150)] == pytest.approx([1.0, 0.1, 0.01])
    in_epochs = schedule(epochs=4, milestones=(0.5,), warmup_iterations=0.1)
    assert (in_epochs.warmup_steps, in_epochs.milestone_steps) == (4, (20.0,))


def test_a_number_of_epochs_on_few_images_has_the_least_number_of_steps():
    assert schedule(epochs=3, min_iterations=100).total_steps == 100
    assert schedule(epochs=30, min_iterations=100).total_steps == 300
    s = schedule(epochs=3, min_iterations=100, milestones=(0.5,), warmup_iterations=0.1)
    assert (s.warmup_steps, s.milestone_steps) == (10, (50.0,))
    s = schedule(epochs=12, min_iterations=300, milestones=(8, 11), warmup_iterations=0)
    assert s.milestone_steps == (200.0, 275.0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"iterations": 60, "warmup_iterations": 500}, "500, but the run has 60 steps; lower it"),
        ({"epochs": 6, "warmup_iterations": 60}, "60, but the run has 60 steps; lower it, or give"),
        ({"iterations": 60, "milestones": (9000, 11000)}, "has 9000, but the run has 60"),
        ({"epochs": 8, "milestones": (5, 8)}, "milestones has 8, but the run has 8 epochs; lower"),
        ({"epochs": 8, "milestones": (0.0,)}, "schedule.milestones is 0.0; it must be above 0"),
        ({"iterations": 9, "warmup_iterations": -1}, "is -1; it must be at least 0"),
    ],
)
def test_what_a_run_never_reaches_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        schedule(**config)


def test_milestones_are_not_asked_of_a_cosine():
    assert schedule(iterations=60, milestones=(9000,), decay="cosine").milestone_steps == ()
    assert schedule(iterations=1).warmup_steps == 0  # the default warm-up suits any length


def test_learning_rate_scales_with_the_global_batch():
    assert OptimConfig(lr=0.01).scaled_lr(64) == 0.01
    config = OptimConfig(lr=0.01, base_batch=16)
    assert [config.scaled_lr(n) for n in (4, 16, 64)] == pytest.approx([0.0025, 0.01, 0.04])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))


def names_by_decay(model, config):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    return [(g["weight_decay"], sorted(names[id(p)] for p in g["params"])) for g in groups]


def test_weight_decay_of_norms_and_biases_is_a_choice():
    everything = ["conv.bias", "conv.weight", "norm.bias", "norm.weight", "scale"]
    assert names_by_decay(Model(), OptimConfig(weight_decay=0.5)) == [(0.5, everything)]
    config = OptimConfig(weight_decay=0.5, decay_norm_and_bias=False)
    assert names_by_decay(Model(), config) == [
        (0.5, ["conv.weight"]),
        (0.0, ["conv.bias", "norm.bias", "norm.weight", "scale"]),
    ]


def test_the_backbone_has_a_learning_rate_of_its_own():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, OptimConfig(backbone_lr_scale=0.1)).param_groups
    assert [(g["lr_scale"], [names[id(p)] for p in g["params"]]) for g in groups] == [
        (0.1, ["backbone.weight", "backbone.bias"]),
        (1.0, ["head.weight", "head.bias"]),
    ]
    assert len(build_optimizer(model, OptimConfig()).param_groups) == 1
    with pytest.raises(ValueError, match="backbone_lr_scale is 0.0; it must be above 0"):
        OptimConfig(backbone_lr_scale=0.0)


def test_optimizers_by_name():
    sgd = build_optimizer(Model(), OptimConfig(momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults["momentum"] == 0.8
    assert isinstance(build_optimizer(Model(), OptimConfig(name="adamw")), torch.optim.AdamW)


@pytest.mark.usefixtures("double_precision")
def test_fused_steps_equal_plain_ones():
    models, gradients = [], torch.Generator().manual_seed(1)
    for fused in (True, False):
        torch.manual_seed(0)
        model = Model().to(memory_format=torch.channels_last)
        models.append((model, build_optimizer(model, OptimConfig(weight_decay=0.1), fused)))
    for _ in range(3):
        trained = [[p for p in model.parameters() if p.requires_grad] for model, _ in models]
        for a, b in zip(*trained, strict=True):
            a.grad = torch.randn(a.shape, generator=gradients)
            b.grad = a.grad.clone()
        for _, optimizer in models:
            optimizer.step()
    for a, b in zip(*(model.parameters() for model, _ in models), strict=True):
        torch.testing.assert_close(a, b)


def test_sgd_step_by_hand():
    weight = nn.Linear(1, 1, bias=False)
    nn.init.constant_(weight.weight, 2.0)
    optimizer = build_optimizer(weight, OptimConfig(lr=0.1, weight_decay=0.5, momentum=0.9))
    for _ in range(2):
        optimizer.zero_grad()
        weight(torch.ones(1, 1)).sum().backward()
        optimizer.step()
    # v1 = 1 + 0.5 * 2 = 2, w = 1.8; v2 = 0.9 * 2 + 1 + 0.5 * 1.8 = 3.7, w = 1.43
    assert weight.weight.item() == pytest.approx(1.43)
