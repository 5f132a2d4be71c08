"""Every command in README, docs and configs can be typed: its script, its options and its config's
keys exist (`make docs-check`). The README's way for one's own images runs from start to end."""

from __future__ import annotations

import argparse
import contextlib
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aligndet.config import load_config
from data.shapes import main as make_shapes
from tests.helpers.documented_commands import ROOT, Documented, documented

RUN = re.compile(r"\w+\.py$")
SMALL = ["model.backbone_weights=", "data.short_sides=[64]", "data.workers=0", "data.batch_size=2"]
SMALL += ["schedule.epochs=1", "schedule.min_iterations=1", "loop.report=false"]


class Parsed(Exception):
    """The options were understood."""


class Ended(Exception):
    """A command has ended well."""


def ended(status=None):
    """In place of `sys.exit`."""
    raise Ended if status in (0, None) else SystemExit(status)


def scripts():
    """Commands that run a file or module of this project."""
    return [c for c in documented() if c.words[0] in ("python", "python3", "torchrun")]


def program(words):
    """The file that a command runs, and its own arguments."""
    if words[1] == "-m":
        path = ROOT.joinpath(*words[2].split("."))
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        return path, words[3:]
    place = next(n for n, word in enumerate(words) if RUN.search(word))
    found = [folder / words[place] for folder in (ROOT, ROOT / "docs")]
    return next(filter(Path.is_file, found), found[0]), words[place + 1 :]


def test_the_pages_are_read():
    found = documented()
    assert len(found) > 100
    assert Documented("README.md", "make demo DETECTOR=retinanet") in found
    (multi_node,) = [c for c in found if "--rdzv" in c.text and c.page == "README.md"]
    assert multi_node.words[-2:] == ["--config", "configs/coco_fcos_r50_pretrain.yaml"]
    assert {command.words[0] for command in found} == {"python", "torchrun", "make", "pip"}


@pytest.mark.parametrize("command", scripts(), ids=lambda c: f"{c.page}: {c.text}")
def test_options_and_keys_are_known(command, monkeypatch):
    path, arguments = program(command.words)
    assert path.is_file()
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    if path.parent == ROOT / "docs":  # an example without options
        assert not options
        return
    if path.parent == ROOT / "benchmarks":  # it may need packages that are not installed
        text = path.read_text(encoding="utf-8")
        text += (path.parent / "side_by_side.py").read_text(encoding="utf-8")
        assert all(f'"{option}"' in text for option in options)
        return
    config = config_of(arguments)
    if config is not None:
        load_config(ROOT / config[0], config[1])
    if arguments:
        monkeypatch.chdir(ROOT)
        assert options <= known_options(path, arguments, monkeypatch)


def config_of(arguments):
    """The config and the overrides that a command gives."""
    if "--config" not in arguments:
        return None
    place = arguments.index("--config") + 1
    overrides = [word for word in arguments if re.match(r"[a-z_.]+=", word)]
    return arguments[place], overrides


def known_options(path, arguments, monkeypatch):
    """Let a command parse its arguments, and no more; returns the options that it has."""
    parsers = []

    def stop(method):
        def parse(self, *args, **kwargs):
            parsers.append(self)
            method(self, *args, **kwargs)
            raise Parsed

        return parse

    def error(self, message):
        # What is left out in a sentence may be asked for; what is there must be known.
        assert message.startswith("the following arguments are required"), message
        raise Parsed

    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(
            argparse.ArgumentParser, name, stop(getattr(argparse.ArgumentParser, name))
        )
    monkeypatch.setattr(argparse.ArgumentParser, "error", error)
    with pytest.raises(Parsed):
        runpy.run_path(str(path), run_name="__main__")
    return set(parsers[0]._option_string_actions)


def test_targets_and_requirements_exist():
    for command in documented():
        words = command.words
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)
        if words[0] == "pip":
            files = [words[n + 1] for n, word in enumerate(words) if word == "-r"]
            assert all((ROOT / file).is_file() for file in files)
            assert words[1] == "install"


def test_the_readmes_way_for_own_images(tmp_path, monkeypatch, capsys):
    """As it is written, with fewer steps and smaller images."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    make_shapes(["--output", "DIR", "--train", "6", "--val", "3", "--size", "64"])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Your own images") : text.index("**Labels.**")]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python")]
    assert len(lines) == 5
    monkeypatch.setattr(sys, "exit", ended)
    for line in lines:
        path, arguments = program(line.split())
        small = SMALL if "--config" in arguments else []
        monkeypatch.setattr(sys, "argv", [str(path), *arguments, *small])
        with contextlib.suppress(Ended):
            runpy.run_path(str(path), run_name="__main__")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "own_fcos_pretrain",
        "own_fcos",
    }
    assert (tmp_path / "runs" / "own_fcos" / "results.json").is_file()
    assert (tmp_path / "detections" / "detections.json").is_file()
    assert "no problems: training can start" in capsys.readouterr().out
