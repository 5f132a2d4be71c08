"""Warnings: none for the healthy runs of the study, one for each way to learn nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from aligndet.health import LINES, Health
from tests.test_train import Line, line_config, run_line

ROOT = Path(__file__).parent.parent
CURVES = sorted((ROOT / "experiments/results").rglob("pretraining.json"))


def said(lines, warmup=0, total=100, **options):
    """(step, warning) of a run, from the values of its steps 1, 2, ..."""
    health = Health(warmup, total, **options)
    return [(n, text) for n, line in enumerate(lines, 1) for text in health.warnings(n, line)]


@pytest.mark.parametrize("path", CURVES, ids=lambda p: "-".join(p.parts[-4:-1]))
def test_no_false_alarm_in_the_study(path):
    """The committed curves, of every detector; one trains no contrast, one has wrong ids."""
    curve = json.loads(path.read_text())["curve"]
    health = Health(0, curve[-1]["step"])
    for line in curve:
        assert health.warnings(line["step"], line) == []


def test_the_study_is_there():
    assert len(CURVES) >= 19


# (loss_contrast, cos_positive, cos_negative, retrieval, instances) of steps 20, 40, ... 100 of runs
# of 120 steps: FCOS, MobileNetV2, 8 photographs of 128 px with labels as boxes.
HEALTHY = [
    (7.673, 0.654, 0.490, 0.250, 40),
    (7.527, 0.666, 0.461, 0.480, 30),
    (7.380, 0.695, 0.449, 0.567, 25),
    (6.983, 0.694, 0.385, 0.587, 42),
    (7.173, 0.662, 0.379, 0.434, 42),
]
HIGH_RATE = [  # SGD, lr 10
    (8.318, 0.995, 0.995, 0.038, 40),
    (8.307, 0.997, 0.996, 0.133, 30),
    (8.265, 0.996, 0.986, 0.055, 25),
    (8.247, 0.989, 0.974, 0.070, 42),
    (8.236, 0.981, 0.964, 0.059, 42),
]


def box_lines(rows):
    keys = ("loss_contrast", "cos_positive", "cos_negative", "retrieval", "instances")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def test_a_contrast_that_collapsed_is_said_once():
    lines = box_lines(HIGH_RATE) * 4
    ((step, text),) = said(lines, total=len(lines))
    assert step == 2 + LINES  # the first tenth of the run does not count
    assert text.startswith("all embeddings are alike (mean cosine 0.99 of positives, 0.98 of")
    assert "lower optim.lr or set optim.clip_norm" in text
    assert said(box_lines(HEALTHY) * 4, total=20) == []


def test_nothing_is_expected_of_the_warm_up():
    lines = box_lines(HIGH_RATE) * 4
    assert [step for step, _ in said(lines, warmup=12, total=20)] == [12 + LINES]


def test_a_collapse_in_the_middle_of_a_run():
    lines = box_lines(HEALTHY * 3 + HIGH_RATE * 3)
    ((step, _),) = said(lines, total=len(lines))
    assert 15 < step <= 15 + LINES


def test_embeddings_that_point_elsewhere_at_random():
    """Not alike, and yet no instance is found: one of 40 is a hit by chance."""
    line = {"cos_positive": 0.02, "cos_negative": 0.01, "retrieval": 1 / 40, "instances": 40.0}
    ((_, text),) = said([line] * 20, total=20)
    assert text.startswith("retrieval is 0.025, as by chance among 40 instances")
    assert said([{**line, "retrieval": 0.2}] * 20, total=20) == []
    assert said([{**line, "instances": 2.0, "retrieval": 0.5}] * 20, total=20) == []  # chance: 0.5


def test_images_without_boxes():
    line = {"without_boxes": 0.75, "instances": 0.0}
    ((step, text),) = said([line] * 20)
    assert step == LINES
    assert text.startswith("75% of the images have no box")
    assert said([{"without_boxes": 0.25, "instances": 9.0}] * 20) == []


def test_boxes_without_predictions():
    line = {"without_boxes": 0.0, "instances": 0.0, "retrieval": 0.0}
    ((_, text),) = said([line, line, line, line, {**line, "instances": 2.0}] * 4)
    assert "in most batches no box has a prediction" in text
    assert said([{**line, "instances": 1.0}] * 20) == []


# Mean loss and accuracy of a classifier of ten classes (chance: 2.303 and 0.1) over lines 6 to 20
# of a short training of ResNet-18, 64 pictures of CIFAR-10; and a guess.
@pytest.mark.parametrize(
    ("loss", "accuracy", "warnings"), [(2.25, 0.19, 0), (2.1, 0.1, 0), (2.302, 0.1, 1)]
)
def test_a_classifier_that_guesses(loss, accuracy, warnings):
    wave = [0.01 if n % 2 else -0.01 for n in range(20)]
    lines = [{"loss": loss + change, "accuracy": accuracy + change} for change in wave]
    found = said(lines, total=20, loss_at_chance=math.log(10))
    assert len(found) == warnings
    assert all("as without any learning (2.3)" in text for _, text in found)


def test_the_loss_scale_of_fp16():
    found = said([{"loss_scale": 65536 / 2.0**n, "skipped_steps": 1} for n in range(40)])
    ((step, text),) = found
    assert step == 20  # the mean of 4, 2, ... 1/4 is still above 1, that of 2, 1, ... 1/8 is not
    assert "amp=bf16" in text


def test_several_at_once_and_each_only_once():
    line = {"without_boxes": 1.0, "instances": 0.0, "loss_scale": 0.5}
    found = said([line] * 30)
    assert [text.split()[0] for _, text in found] == ["100%", "fp16:"]


# Losses of MoCo, ResNet-18, 64 pictures of CIFAR-10, a queue of 1,024, late in short runs; at
# chance it is 6.93.
MOCO = {
    0.06: ([4.42, 4.46, 4.80, 4.65, 4.94, 4.83], 0),
    10: ([6.67, 6.68, 6.68, 6.71, 6.70, 6.70], 1),  # learned at first, lost it from step 80 on
    300: ([6.93, 6.94, 6.93, 6.93, 6.93, 6.93], 1),  # the cosines alternate between 1 and -1
}


@pytest.mark.parametrize("lr", MOCO)
def test_moco(lr):
    losses, warnings = MOCO[lr]
    lines = [{"loss": loss, "cos_positive": 0.1, "cos_negative": 0.0} for loss in losses]
    assert len(said(lines, total=10, loss_at_chance=math.log(1025))) == warnings


class Guessing(Line):
    """As a classifier that learns nothing; the loss of the line it fits stays above this."""

    loss_at_chance = 1e-6


def test_a_run_prints_them(tmp_path, capsys):
    config = line_config(tmp_path, schedule={"iterations": 12})
    run_line(config, Guessing())
    assert capsys.readouterr().err.count("warning: the loss is ") == 1
    run_line(config, Line(), resume="none")
    assert "warning" not in capsys.readouterr().err


def test_pre_training_on_boxes_of_one_image_in_eight(
    tmp_path, dataset, write_config, script, capsys
):
    """The warning comes out of a real run, once."""
    content = json.loads((dataset / "proposals.json").read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == first]
    proposals = tmp_path / "proposals.json"
    proposals.write_text(json.dumps(content))
    path = write_config(
        tmp_path / "run", data__train__proposals=str(proposals), schedule__iterations=6
    )
    script("pretrain", "--config", path)
    shown = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(shown) == 1
    assert "of the images have no box and teach nothing" in shown[0]
