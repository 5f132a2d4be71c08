"""One process without a group; groups are tested in test_two_ranks.py."""

from __future__ import annotations

import warnings

import pytest
import torch

from aligndet import dist


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
    for key, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    with dist.process_group("cpu"):
        assert dist.in_group()
        assert dist.gather_objects("x") == ["x"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module = dist.synchronised(torch.nn.BatchNorm1d(2))
        module(torch.randn(4, 2)).sum().backward()
        assert module.module.weight.grad is not None
        assert not module.will_sync_module_buffers()
    assert not dist.in_group()


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
