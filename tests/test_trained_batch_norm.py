"""BatchNorm that is trained has the same statistics on all ranks: the mean of theirs."""

from __future__ import annotations

import pytest
import torch
import torch.distributed
import torch.multiprocessing as mp

from aligndet.box_domain import BoxDomain, BoxDomainConfig
from aligndet.fine_tuning import FineTuning
from models import build_detector
from tests.helpers.small_detectors import OPTIONS, model_config


def build(stage):
    """A task whose backbone (frozen in the box domain) and heads have BatchNorm."""
    torch.manual_seed(0)
    options = {**OPTIONS["faster_rcnn"], "box_norm": "bn"}
    config = model_config("faster_rcnn", norm="bn", frozen_stages=0, options=options)
    detector = build_detector(config, 1)
    if stage == "fine-tuning":
        return FineTuning(detector).train()
    return BoxDomain(detector, "faster_rcnn", BoxDomainConfig(embedding_width=8)).train()


def statistics_of(module):
    return {k: v for k, v in module.state_dict().items() if k.endswith(("_mean", "_var"))}


def shift(module, number):
    """As if it had seen other images: of layers in training mode, which all statistics are."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d) and layer.training:
                layer.running_mean += number
                layer.running_var *= 1 + number


def rank_main(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2
    )
    for stage in ("fine-tuning", "box"):
        task = build(stage)
        shift(task, 2.0 * rank)
        task.update_target(0, 10)
        torch.save(task.state_dict(), folder / f"{stage}{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("stage", ["fine-tuning", "box"])
def test_the_statistics_are_the_mean_of_both_ranks(folder, stage):
    ranks = [torch.load(folder / f"{stage}{rank}.pt") for rank in range(2)]
    start = build(stage)
    trained = build(stage)
    shift(trained, 1.0)  # the mean of 0 and 2
    expected, before = statistics_of(trained), statistics_of(start)
    moved = [name for name in expected if not torch.equal(expected[name], before[name])]
    assert any("roi_head" in name for name in moved)
    assert any("backbone" in name for name in moved) == (stage == "fine-tuning")
    for name, value in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], value, msg=name)
