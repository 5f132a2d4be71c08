"""A small study for the tests of `experiments/`, and results for it without any run."""

from __future__ import annotations

import copy

import yaml

from experiments.study import Study

CONTENT = {
    "title": "A study",
    "results": "results",  # in the folder of the test
    "page": "docs/report.md",
    "sets": {
        "s": {
            "train_images": "s/train",
            "train_annotations": "s/train.json",
            "val_images": "s/val",
            "val_annotations": "s/val.json",
            "unlabelled": ["more"],
            "config": {"data.short_sides": [48]},
        }
    },
    "config": {"model.backbone": "resnet18", "data.batch_size": 2},
    "pretraining": {"schedule.iterations": 8, "optim.lr": 0.01},
    "finetuning": {"evaluation.batch_size": 4},
    "detectors": {
        "fcos": {"model.detector": "fcos", "model.options": {"channels": 16}},
        "retinanet": {"model.detector": "retinanet"},
    },
    "starts": {
        "backbone": {"title": "backbone only"},
        "aligndet": {"title": "AlignDet", "pretraining": {}},
        "cold": {"title": "tau 0.1", "pretraining": {"box_domain.temperature": 0.1}},
        "neck": {
            "title": "neck only",
            "init_of": "aligndet",
            "recipe_of": "aligndet",
            "finetuning": {"transfer.leave_out": ["head."]},
        },
    },
    "tuning": {
        "sets": ["s"],
        "detectors": ["fcos"],
        "starts": ["backbone", "aligndet"],
        "iterations": 10,
        "seed": 0,
        "recipes": [
            {"optim.lr": 0.1, "optim.weight_decay": 0.0},
            {"optim.lr": 0.2, "optim.weight_decay": 0.0},
        ],
    },
    "blocks": {
        "short": {
            "title": "Short schedules",
            "sets": ["s"],
            "detectors": ["fcos"],
            "starts": ["backbone", "aligndet", "neck"],
            "iterations": [10, 20],
            "seeds": [1, 2, 3],
            "figure": "curves",
        }
    },
}


def write_study(tmp_path, change=lambda content: None):
    """The file of the study above, after `change` has changed its content."""
    content = copy.deepcopy(CONTENT)
    for key in ("results", "page"):
        content[key] = str(tmp_path / content[key])
    change(content)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def read_study(tmp_path, change=lambda content: None):
    return Study.read(write_study(tmp_path, change))


def score(results, cell, ap):
    """A result with nothing in it but AP."""
    curve = [{"step": cell.iterations // 2, "AP": ap / 2}, {"step": cell.iterations, "AP": ap}]
    result = {"final": {"AP": ap}, "curve": curve, "wall_seconds": 60.0}
    result["labelled"] = {"photographs": 2, "objects": 3}
    results.save(cell, result | {"device": "CPU", "torch": "2.11"})


def tune(study, results, **best):
    """Results of the tuning: `best[start]` is the learning rate with the highest AP."""
    for cell in study.all_tuning_cells():
        lr = dict(cell.recipe)["optim.lr"]
        score(results, cell, 5.0 if lr == best[cell.start] else 4.0)
