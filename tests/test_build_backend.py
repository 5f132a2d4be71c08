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
    assert [path.read_text().strip() for path in site.glob("*.pth")]


@pytest.mark.parametrize("folders", [(), ("models", "data", "losses", "train")])
def test_folders_without_python_do_not_come_first(site, clone, tmp_path, folders):
    """Photographs in data/, weights in models/: the usual folders of a project of one's own."""
    for name in folders:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    names = {name: f"{name}/__init__.py" for name in ("models", "losses", "data", "aligndet")}
    names["train"] = "train.py"
    code = (
        f"import site, importlib.util as u; site.addsitedir({str(site)!r})\n"
        f"for name in {list(names)}: print(u.find_spec(name).origin)"
    )
    # -S: without the installation that runs these tests.
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [str(clone / file) for file in names.values()]
