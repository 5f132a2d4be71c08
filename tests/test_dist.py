"""One process without a group; groups are tested in test_two_ranks.py."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from datetime import timedelta

import pytest
import torch

from aligndet import dist


def set_ranks(monkeypatch, **changes):
    """The environment of a process of torchrun; None removes a variable."""
    usual = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**usual, "MASTER_PORT": "1", **changes}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


def test_without_torchrun_there_is_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with dist.process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert not dist.in_group()
        assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
        assert dist.mean_over_ranks_of({"a": torch.tensor(2.0), "b": torch.tensor(3)}) == {
            "a": 2.0,
            "b": 3.0,
        }
        assert dist.gather_objects("x") == ["x"]
        assert dist.broadcast_object("x") == "x"


def test_a_group_of_one_is_left_at_the_end(monkeypatch):
    set_ranks(monkeypatch, MASTER_PORT="0")
    with dist.process_group("cpu"):
        assert dist.in_group()
        assert dist.gather_objects("x") == ["x"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module = dist.synchronised(torch.nn.BatchNorm1d(2))
        module(torch.randn(4, 2)).sum().backward()
        of_weight, of_bias = (p.grad.untyped_storage() for p in module.module.parameters())
        assert of_weight.data_ptr() == of_bias.data_ptr()  # views of one bucket
        assert not module.will_sync_module_buffers()
    assert not dist.in_group()


@pytest.mark.parametrize(
    "changes",
    [
        {"WORLD_SIZE": ""},
        {"RANK": None},
        {"RANK": None, "LOCAL_RANK": None},
        {"LOCAL_RANK": ""},
        {"WORLD_SIZE": None},
    ],
)
def test_an_incomplete_world_of_one_is_a_process_by_itself(monkeypatch, changes):
    set_ranks(monkeypatch, **changes)
    with dist.process_group("cpu"):
        assert not dist.in_group()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": None}, "WORLD_SIZE is 2, but RANK is not set; start with torchrun, or unset"),
        ({"LOCAL_RANK": ""}, "but LOCAL_RANK is not set"),
        ({"MASTER_PORT": ""}, "but MASTER_PORT is not set"),
        ({"RANK": "zero"}, "but RANK is 'zero'"),
        ({"WORLD_SIZE": "-2"}, "but WORLD_SIZE is '-2'"),
    ],
)
def test_an_incomplete_world_of_two_is_refused(monkeypatch, changes, message):
    set_ranks(monkeypatch, **{"WORLD_SIZE": "2", **changes})
    with pytest.raises(dist.DeviceError, match=message):
        dist.process_group("cpu").__enter__()


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    set_ranks(monkeypatch, WORLD_SIZE="4", RANK="3", LOCAL_RANK="3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(dist.DeviceError, match=r"is 3, but this machine has 2 GPUs; .*node=2"):
        dist.process_group("cuda").__enter__()


def test_rank_0_that_cannot_be_reached_is_named(monkeypatch):
    monkeypatch.setattr(dist, "STEP_TIMEOUT", timedelta(seconds=1))
    set_ranks(monkeypatch, WORLD_SIZE="2", RANK="1")
    with pytest.raises(dist.DeviceError, match=r"cannot be formed \(.*\); check MASTER_ADDR"):
        dist.process_group("cpu").__enter__()


def test_a_sum_of_bits_shows_every_change():
    values = torch.tensor([1.0, -0.0, torch.nan, 3e-45])
    for place in range(4):
        for bit in range(32):
            changed = values.clone()
            changed.view(torch.int32)[place] ^= 1 << bit if bit < 31 else -(1 << 31)
            assert dist.bit_sum(changed) != dist.bit_sum(values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_sum_of_bits_of_other_types(dtype):
    """Of an odd number of values, and of every memory format; the last bit of a value counts."""
    values = torch.ones(1, 3, 3, 1, dtype=dtype)
    nearly = values.clone()
    nearly[0, 1, 1, 0] -= torch.finfo(dtype).eps / 2
    assert dist.bit_sum(nearly) != dist.bit_sum(values)
    last = nearly.to(memory_format=torch.channels_last)
    assert dist.bit_sum(last) == dist.bit_sum(nearly)


def test_unknown_device_is_refused():
    with pytest.raises(ValueError, match="device is 'tpu'; set it to auto, cpu or cuda"):
        dist.process_group("tpu").__enter__()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="finds no GPU; set device=cpu"):
        dist.process_group("cuda").__enter__()


def test_one_process_of_a_torchrun_claims_a_name(monkeypatch):
    assert dist.first_to_claim("x")  # no torchrun
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [dist.first_to_claim("x") for _ in range(3)] == [True, False, False]
    assert dist.first_to_claim("y")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert dist.first_to_claim("x")


def test_images_are_gathered_in_one_layout(monkeypatch):
    """NCCL refuses channels-last, or takes its bytes for those of another layout."""
    seen = []

    def gather(parts, tensor):
        seen.extend([tensor, *parts])
        for part in parts:
            part.copy_(tensor)

    monkeypatch.setattr(torch.distributed, "all_gather", gather)
    monkeypatch.setattr(dist, "in_group", lambda: True)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    images = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(dist.all_gather(images), torch.cat([images, images]))
    assert all(tensor.is_contiguous() for tensor in seen)


def two_ranks(rank, folder, port):
    """Rank 0 comes late to a broadcast; then the weights of rank 1 change in one bit."""
    usual = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ.update({**usual, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    dist.STEP_TIMEOUT = timedelta(seconds=8)
    (folder / f"ready{rank}").touch()
    while not (folder / f"ready{1 - rank}").exists():  # processes may be slow to start
        time.sleep(0.01)
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    with dist.process_group("cpu"):
        if rank == 0:
            time.sleep(10)
        said = [dist.broadcast_object(f"of rank {rank}"), dist.highest_over_ranks(3 - rank)]
        dist.check_same_weights(module)
        if rank == 1:
            module[1].weight.data.view(torch.int32)[0, 1] += 1
        try:
            dist.check_same_weights(module)
        except dist.RankError as error:
            said.append(str(error))
    (folder / f"{rank}.json").write_text(json.dumps(said))


def test_two_ranks(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_ranks, (tmp_path, port), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[:2] == ["of rank 0", 3]
    assert first[2].startswith(
        "the weights of ranks 0 and 1 differ (1 tensor, the first is 1.weight); go on from the last"
    )


def two_attempts(rank, folder, port):
    """The ranks of two machines; torchrun starts them twice, and only one counts that."""
    usual = {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update({**usual, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    dist.STEP_TIMEOUT = timedelta(seconds=60)
    said = []
    for attempt in range(2):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt * rank)
        if rank == 0 and attempt == 1:  # the other one finds the first attempt's addresses
            time.sleep(1)
        with dist.process_group("cpu"):
            said.append(dist.gather_objects(f"rank {rank} of attempt {attempt}"))
            said.append(dist.gather_objects(dist.first_to_claim("error")).count(True))
    (folder / f"{rank}.json").write_text(json.dumps(said))


def test_two_machines_are_started_again(tmp_path):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(two_attempts, (tmp_path, store.port), nprocs=2)
    expected = []
    for attempt in range(2):
        expected += [[f"rank 0 of attempt {attempt}", f"rank 1 of attempt {attempt}"], 1]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
