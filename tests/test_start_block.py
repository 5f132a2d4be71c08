"""What a run says before its first step."""

from __future__ import annotations

import torch

from aligndet.config import build_config
from aligndet.optim import Schedule
from aligndet.start_block import (
    backbone_lines,
    print_start,
    proposal_lines,
    resumed_from,
    shortened,
)
from data.coco import CocoDataset
from data.proposals.cache import ProposalCache
from data.proposals.propose import ProposalSettings
from data.proposals.searched_images import SearchedImages
from models import build_backbone


def block(content, capsys, tmp_path, **changes):
    config = build_config(content(tmp_path / "run", **changes))
    schedule = Schedule.build(config.schedule, config.optim.scaled_lr(2), steps_per_epoch=4.0)
    print_start("training", {"val": "5"}, config, schedule, torch.device("cpu"), ["a", "b"])
    return capsys.readouterr().out.splitlines()


def test_the_block_says_how_long_how_fast_and_where(content, capsys, tmp_path):
    schedule = {"iterations": 1200, "milestones": [0.5, 0.75], "warmup_iterations": 0.1}
    lines = block(content, capsys, tmp_path, schedule=schedule, evaluation__every=300)
    assert lines == [
        "training",
        "  val      5",
        "  steps    1,200 of 2 images (300 epochs), evaluated every 300",
        "  rate     0.01 at its peak, 120 steps of warm-up, times 0.1 at step 600, 900, sgd",
        "  device   CPU, 1 thread, float32, 1 process, data.workers 0",
        f"  output   {tmp_path / 'run'}",
        "  weights  a",
        "           b",
    ]


def test_the_rate_is_said_as_it_is_used(content, capsys, tmp_path):
    cosine = {"epochs": 3, "decay": "cosine", "warmup_iterations": 0}
    lines = block(content, capsys, tmp_path, schedule=cosine, optim__base_batch=16, amp="bf16")
    assert lines[2] == "  steps    12 of 2 images (3 epochs)"
    scaled = "0.00125 at its peak (scaled from 0.01 for 16 images)"
    assert lines[3] == f"  rate     {scaled}, cosine decay, sgd"
    assert "bfloat16" in lines[4]
    assert "constant" in block(content, capsys, tmp_path)[3]


def test_what_there_is_to_train_on(dataset, content, tmp_path):
    config = build_config(content(tmp_path / "run", box_domain__max_proposals=7))
    proposals = CocoDataset(dataset / "train", dataset / "proposals.json")
    lines = proposal_lines(config, proposals)
    assert lines[0] == "8 images, 16 boxes, 1 class"
    assert lines[-1] == "the best 7 boxes of each image"
    searched = SearchedImages(dataset / "train", ProposalCache(tmp_path, ProposalSettings()))
    assert "boxes are searched for" in proposal_lines(config, searched)[0]


def test_where_the_weights_come_from():
    assert resumed_from(None) == []
    assert resumed_from({"step": 1500}) == ["last.pt, step 1,500"]
    [line] = backbone_lines(build_backbone("resnet18"), 2)
    assert line.endswith("the backbone is random; of its 5 stages, 2 do not train and stay so")
    [line] = backbone_lines(build_backbone("resnet18"), 0)
    assert line.endswith("the backbone is random")


def test_many_classes_are_shortened():
    assert shortened(["a", "b"]) == "a, b"
    assert shortened([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7, ..."
