"""What the scripts' command lines share: one line for errors and for signals."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch

from aligndet import cli, dist
from data.errors import DataError


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("python finetune.py --config a.yaml", "python finetune.py --config a.yaml"),
        ("python -u pretrain.py --resume none seed=1", "python pretrain.py --resume auto seed=1"),
        ("python pretrain.py --resume=none", "python pretrain.py --resume=auto"),
        ("python pretrain.py --resume run", "python pretrain.py --resume run"),
        ("python pretrain.py --init none", "python pretrain.py --init none"),
        ("python pretrain.py amp=none", "python pretrain.py amp=none"),
        ("python -m aligndet.probe --train a", "python -m aligndet.probe --train a"),
    ],
)
def test_the_command_that_goes_on(monkeypatch, typed, again):
    monkeypatch.setattr(sys, "orig_argv", typed.split(" "))
    assert cli.same_command() == again


@pytest.mark.parametrize("given", ["--resume run", "--resume=run", "--resume none"])
def test_a_run_that_has_saved_goes_on_from_its_own_last_step(monkeypatch, given):
    monkeypatch.setattr(sys, "orig_argv", f"python pretrain.py {given} seed=1".split(" "))
    assert cli.same_command(saved=True).replace("=auto", " auto") == (
        "python pretrain.py --resume auto seed=1"
    )


def test_the_command_quotes_blanks_and_names_torchrun(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", "pretrain.py", "output_dir=my run"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert cli.same_command() == "torchrun ... pretrain.py 'output_dir=my run'"


def ended(capsys, status, raise_it):
    """What a training process that ends so prints."""
    with pytest.raises(SystemExit) as end, cli.training_process("cpu"):
        raise_it()
    assert end.value.code == status
    return capsys.readouterr().err


def throw(error):
    raise error


def test_errors_are_one_line(capsys):
    message = ended(capsys, 1, lambda: throw(DataError("a.png: is cut off")))
    assert message == "error: a.png: is cut off\n"


def test_the_bar_of_another_rank_is_not_continued(capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    message = ended(capsys, 1, lambda: throw(DataError("a.png: is cut off")))
    assert message == "\nerror: a.png: is cut off\n"


def test_signals_are_one_line(capsys):
    message = ended(capsys, 143, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert message == f"stopped by SIGTERM; start again with: {cli.same_command()}\n"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_has_a_remedy(capsys, error):
    message = ended(capsys, 1, lambda: throw(error))
    assert message.startswith("error: out of memory; lower data.batch_size")


@pytest.mark.parametrize("text", dist.LOST)
def test_a_rank_that_is_gone_has_a_remedy(capsys, monkeypatch, text):
    monkeypatch.setattr(dist, "in_group", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(cli, "LATE", 0.0)
    message = ended(capsys, 1, lambda: throw(RuntimeError(f"[gloo/pair.cc:538] {text} [::1]")))
    assert message.startswith("error: rank 3 has lost another one")


def test_a_signal_does_not_cut_the_last_line_short(capsys, monkeypatch):
    """torchrun sends it to a rank that is about to say why it failed."""

    def claim(name):
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    monkeypatch.setattr(dist, "first_to_claim", claim)
    assert ended(capsys, 1, lambda: throw(DataError("a.png: is cut off"))).startswith(
        "error: a.png"
    )


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), cli.training_process("cpu"):
        raise RuntimeError("shapes differ")
