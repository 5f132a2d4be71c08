"""PyTorch is asked for deterministic algorithms; operations without one are named in one line."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

from aligndet import dist
from aligndet.determinism import deterministic


def put():
    """An operation without a deterministic algorithm, on the CPU as well."""
    return torch.zeros(4).put_(torch.tensor([0, 1]), torch.ones(2))


def test_settings_are_those_of_the_block(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert torch.zeros(2).sum() == 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark
    assert capsys.readouterr().out == "deterministic: every operation that was used is\n"


def test_cublas_is_asked_too_unless_the_user_has_chosen(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_not_wanted_changes_nothing(capsys):
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
        put()
    assert capsys.readouterr().out == ""


def test_operations_are_named_in_one_line(capsys, recwarn):
    with deterministic(True):
        for _ in range(3):
            put()
        warnings.warn("something else", stacklevel=1)
    captured = capsys.readouterr()
    assert captured.out.startswith("deterministic: not on this device: put_; ")
    assert captured.out.count("\n") == 1
    assert "put_" not in captured.err


def test_other_warnings_are_shown(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *args, **kwargs: print("shown:", message)
        with deterministic(True):
            warnings.warn("something else", stacklevel=1)
    assert "shown: something else" in capsys.readouterr().out


def fail():
    put()
    raise FloatingPointError


def test_the_line_comes_after_an_error_too(capsys):
    with pytest.raises(FloatingPointError), deterministic(True):
        fail()
    assert "put_" in capsys.readouterr().out
    assert not torch.are_deterministic_algorithms_enabled()


def test_only_rank_0_says_it(capsys, monkeypatch):
    monkeypatch.setattr(dist, "is_main", lambda: False)
    with deterministic(True):
        put()
    assert capsys.readouterr().out == ""


def test_a_run_that_asks_for_it(tmp_path, write_config, script, capsys):
    """A detector needs no other operation on the CPU, so its line says so."""
    path = write_config(tmp_path / "run", schedule__iterations=1)
    script("pretrain", "--config", path, "deterministic=true")
    assert capsys.readouterr().out.splitlines()[-1].startswith("deterministic: every operation")
    script("pretrain", "--config", path, "--resume", "none")
    assert "deterministic" not in capsys.readouterr().out
