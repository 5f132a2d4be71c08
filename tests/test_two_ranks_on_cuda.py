"""Two processes, each on a stand-in for its own GPU, with gloo in the place of NCCL.

What they compute is compared in `test_two_ranks.py`; here it is where they compute it.
"""

from __future__ import annotations

import json
import os
import socket
import warnings

import pytest
import torch
import torch.multiprocessing as mp

from tests.helpers.cuda_runs import faults, on_stand_in, settings, train

RUNS = {
    "box faster_rcnn": {"box_domain__across_ranks": True, "data__batch_size": 1},
    "fine retinanet": {"data__batch_size": 1},  # it ends with an evaluation
    "image moco_v2": {},
}


def rank_main(rank, configs, ports, notes):
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # they look at "meta"
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    found = {}
    for (stage, config), port in zip(configs.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with on_stand_in(devices=2) as gpu:
            train(stage, config)
        found[stage] = {
            **{"faults": faults(gpu), "current": gpu.current, "backend": gpu.backend},
            "sent": sorted(gpu.sent),
        }
    (notes / f"{rank}.json").write_text(json.dumps(found))


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def notes(tmp_path_factory, write_config, class_folders):
    """What each rank says of each run."""
    folder = tmp_path_factory.mktemp("ranks")
    configs = {}
    for stage, changes in RUNS.items():
        if stage.startswith("image"):
            changes = {**changes, "data__train__images": str(class_folders / "train")}
        changes = settings(stage, schedule__iterations=1, **changes)
        configs[stage] = write_config(folder / stage.replace(" ", "_"), **changes)
    mp.spawn(rank_main, (configs, free_ports(len(configs)), folder), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("stage", RUNS)
def test_each_rank_uses_its_own_gpu(notes, stage):
    """Its numbers travel from there; those that are not of training may do so from the CPU."""
    for rank in range(2):
        said = notes[rank][stage]
        assert said["faults"] == []
        assert said["current"] == rank
        assert said["backend"] == "cpu:gloo,cuda:nccl"
        devices = {what.split(" of ")[1] for what in said["sent"]}
        assert devices - {"cpu"} == {f"cuda:{rank}"}
        assert f"c10d::allreduce_ of cuda:{rank}" in said["sent"]  # of gradients
