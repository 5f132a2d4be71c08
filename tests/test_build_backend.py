"""Installation: in place it works, from any folder; copied it is refused. No network is needed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "pyproject.toml",
    "requirements.txt",
    "build_backend.py",
    "train.py",
    "pretrain.py",
    "finetune.py",
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of what an installation needs: building leaves files beside it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in NEEDED:
        shutil.copy(ROOT / name, folder / name)
    for name in ("aligndet", "models", "losses", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def call(clone, code):
    """Call the backend as pip does: in a process of its own, in the clone."""
    statement = f"import sys; sys.path.insert(0, '.'); import build_backend; {code}"
    return subprocess.run(
        [sys.executable, "-c", statement], cwd=clone, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "hook",
    [
        "get_requires_for_build_wheel({})",
        "prepare_metadata_for_build_wheel('x', config_settings={})",
        "build_wheel('x', {}, metadata_directory=None)",
    ],
)
def test_a_copy_is_refused_with_one_sentence(clone, hook):
    result = call(clone, f"build_backend.{hook}")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: AlignDet is not copied into an environment")
    assert "pip install -e . in the clone" in result.stderr


@pytest.fixture(scope="module")
def site(clone, tmp_path_factory):
    """A site-packages folder with an installation in place, as pip unpacks it."""
    folder = tmp_path_factory.mktemp("site")
    result = call(clone, f"build_backend.build_editable({str(folder)!r})")
    assert result.returncode == 0, result.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_nothing_is_copied_in_place_of_a_link(site):
    assert not list(site.rglob("*.py"))
    recorded = next(site.glob("*.dist-info/RECORD")).read_text().splitlines()
    assert {line.split(",")[0] for line in recorded} == {
        path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()
    } - {path.name for path in site.glob("*.whl")}


def run(site, folder, *code):
    """Python in `folder` with the installation, and without the one that runs these tests (-S)."""
    lines = (f"import site; site.addsitedir({str(site)!r})", *code)
    return subprocess.run(
        [sys.executable, "-S", "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("folders", [(), ("models", "data", "losses", "train")])
def test_folders_without_python_do_not_come_first(site, clone, tmp_path, folders):
    """Photographs in data/, weights in models/: the usual folders of a project of one's own."""
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    names = {name: f"{name}/__init__.py" for name in ("models", "losses", "data", "aligndet")}
    names["train"] = "train.py"
    code = f"for name in {list(names)}: print(u.find_spec(name).origin)"
    found = run(site, tmp_path, "import importlib.util as u", code)
    assert found.stdout.split() == [str(clone / file) for file in names.values()]


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("from models import build_detector", "models"),
        ("import models.fcos", "models"),
        ("from models.fcos import FCOS", "models"),
        ("from losses import instance_contrastive_loss", "losses"),
        ("import data.selective_search", "data"),
        ("import runpy; runpy.run_module('data.proposals')", "data"),
    ],
)
def test_a_foreign_package_is_one_sentence(site, clone, tmp_path, statement, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    last = run(site, tmp_path, statement).stderr.splitlines()[-1]
    path = tmp_path / name / "__init__.py"
    assert f"{path} is first on the path in the place of AlignDet's {clone / name}" in last
    assert "cannot import name" not in last


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("from models import mine", "ImportError: cannot import name 'mine' from 'models'"),
        ("import models.mine", "ModuleNotFoundError: No module named 'models.mine'"),
        ("from models import nothing_of_ours", "ImportError: cannot import name 'nothing_of"),
        ("import elsewhere.fcos", "ModuleNotFoundError: No module named 'elsewhere'"),
    ],
)
def test_other_errors_are_pythons(site, tmp_path, statement, error):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").touch()
    assert run(site, tmp_path, statement).stderr.splitlines()[-1].startswith(error)


def test_a_clone_that_is_gone_is_not_missed(clone, site, tmp_path):
    moved = shutil.copytree(site, tmp_path / "site")
    pth = next(moved.glob("__editable__*.pth"))
    pth.write_text(str(tmp_path / "gone"))
    found = run(moved, tmp_path, "print('ok')")
    assert (found.stdout, found.stderr) == ("ok\n", "")
