"""Imports go one way, losses to models to aligndet; the product needs only the runtime packages."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("losses", "data", "models", "aligndet")
# May import all of ours; nothing imports them.
AROUND = ("tests", "benchmarks", "experiments", "docs", "build_backend.py")
SCRIPTS = ("train.py", "pretrain.py", "finetune.py")
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for top in (*PACKAGES, *AROUND, *SCRIPTS)
    for path in ([ROOT / top] if top.endswith(".py") else (ROOT / top).rglob("*.py"))
)
PRODUCT = [name for name in FILES if name.split("/")[0] in (*PACKAGES, *SCRIPTS)]

BY_MODULE = {
    name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in FILES
}

OURS = {*PACKAGES, *(name.removesuffix(".py") for name in AROUND), "train", "pretrain", "finetune"}
MAY_IMPORT = {  # of ours
    "losses": {"losses"},
    "data": {"data"},
    "models": {"models", "losses"},
    "aligndet": {"aligndet", "models", "losses", "data"},
    "train.py": {"aligndet", "models", "losses", "data"},
    "pretrain.py": {"train", *PACKAGES},
    "finetune.py": {"train", *PACKAGES},
}
RUNTIME = {"torch", "torchvision", "numpy", "PIL", "pycocotools", "tqdm", "yaml"}


def imported(source):
    """Full dotted names of everything a source imports, wherever in the file."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names += [f"{module}.{alias.name}" for alias in node.names]
    return names


def imported_files(name):
    """Files of ours that a file imports, below `TYPE_CHECKING` too."""
    found = set()
    for dotted in imported(read(name)):
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):  # the longest prefix that is a module
            if ".".join(parts[:length]) in BY_MODULE:
                found.add(BY_MODULE[".".join(parts[:length])])
                break
    return found - {name}


def circle(imports):
    """The nodes of one import cycle, in order; empty if there is none."""
    state, path = {}, []

    def visit(node):
        state[node] = "open"
        path.append(node)
        for other in sorted(imports[node]):
            if state.get(other) == "open":
                return [*path[path.index(other) :], other]
            if other not in state and (found := visit(other)):
                return found
        state[node] = "closed"
        path.pop()
        return []

    return next((found for node in imports if node not in state and (found := visit(node))), [])


def edits_path(source):
    """Whether a source touches `sys.path`."""
    return "sys.path" in imported(source) or any(
        isinstance(node, ast.Attribute)
        and node.attr == "path"
        and isinstance(node.value, ast.Name)
        and node.value.id == "sys"
        for node in ast.walk(ast.parse(source))
    )


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_all_parts_are_covered():
    """A new folder of code must be added here, with what it may import."""
    assert {name.split("/")[0] for name in FILES} >= {*PACKAGES, *SCRIPTS, "tests"}
    code = {path.parent.name for path in ROOT.glob("*/*.py")} | {p.name for p in ROOT.glob("*.py")}
    ignored = {name for name in code if name.startswith(".") or name in ("datasets", "runs")}
    assert code - ignored == {name.split("/")[0] for name in FILES}


def test_every_package_is_installed():
    """`pip install -e .` must find what the scripts import; the list is explicit."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"packages = \[(.*?)\]", text, re.DOTALL)[1]
    folders = {name.rsplit("/", 1)[0] for name in PRODUCT if "/" in name}
    assert set(re.findall(r'"([\w.]+)"', listed)) == {f.replace("/", ".") for f in folders}


def test_the_parser_sees_every_form():
    source = "import a.b, c\nfrom d.e import f as g\nfrom . import h\ndef x():\n  from i import *\n"
    assert sorted(imported(source)) == ["..h", "a.b", "c", "d.e.f", "i.*"]
    assert edits_path("import sys\nsys.path.insert(0, 'x')")
    assert edits_path("from sys import path")
    assert not edits_path("import os, sys\nos.path.join(sys.argv)")


def test_cycles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert "data/coco.py" in imported_files("data/views.py")
    assert "data/selective_search/__init__.py" in imported_files("data/proposals/propose.py")


def test_no_files_import_each_other():
    """Not even through others: every file can be read after those that it imports."""
    assert circle({name: imported_files(name) for name in FILES}) == []


# Commands that stand beside the others on data, but run detectors' assigners or a backbone: each
# file is a door to one of aligndet/, and nothing imports it.
DOORS = {
    "data/check.py": "aligndet/check_data.py",
    "data/clusters.py": "aligndet/cluster_command.py",
}


@pytest.mark.parametrize("name", [name for name in PRODUCT if name not in DOORS])
def test_imports_go_one_way(name):
    allowed = MAY_IMPORT[name.split("/")[0]]
    ours = {module.split(".")[0] for module in imported(read(name))} & OURS
    assert ours <= allowed, f"{name} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize(("door", "room"), DOORS.items())
def test_a_door_leads_to_one_file_and_nothing_comes_in(door, room):
    assert imported_files(door) == {room}
    assert len(read(door).splitlines()) <= 10
    assert not [name for name in FILES if door in imported_files(name)]


@pytest.mark.parametrize("name", PRODUCT)
def test_product_code_needs_the_runtime_packages_only(name):
    allowed = {"torch"} if name.startswith("losses/") else RUNTIME
    tops = {module.split(".")[0] for module in imported(read(name))}
    others = tops - OURS - set(sys.stdlib_module_names)
    assert others <= allowed, f"{name} imports {sorted(others - allowed)}"


@pytest.mark.parametrize("name", PRODUCT)
def test_product_code_does_not_use_torchvisions_models(name):
    table = {"torchvision.models.get_model_weights"}  # of URLs; builds no model
    models = {m for m in imported(read(name)) if m.startswith("torchvision.models")}
    assert models <= (table if name == "models/weight_sources.py" else set())
    assert "torchvision.models" not in {
        ast.unparse(n) for n in ast.walk(ast.parse(read(name))) if isinstance(n, ast.Attribute)
    }


@pytest.mark.parametrize("name", FILES)
def test_no_path_edits_no_wildcards_no_relative_imports(name):
    names = imported(read(name))
    assert not [module for module in names if module.endswith(".*")]
    assert not [module for module in names if module.startswith(".")]
    assert not edits_path(read(name))
