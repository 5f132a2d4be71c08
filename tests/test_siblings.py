"""Foreign packages called like ours: one sentence, before anything of them is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(folder, *arguments):
    """Python in `folder`, which is first on its path, with AlignDet after it."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("foreign", "statement"),
    [
        ("models/__init__.py", "import aligndet"),
        ("losses/__init__.py", "from aligndet import checkpoint"),
        ("data/__init__.py", "from aligndet.predict import Predictor"),
        ("models.py", "import aligndet"),
        ("train.py", "import finetune"),
        ("train/__init__.py", "import pretrain"),
    ],
)
def test_a_foreign_package_is_one_sentence(tmp_path, foreign, statement):
    path = tmp_path / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("print('foreign code ran')")
    found = run(tmp_path, "-c", statement)
    assert found.returncode == 1
    assert found.stdout == ""
    name = foreign.split("/")[0].removesuffix(".py")
    ours = ROOT / ("train.py" if name == "train" else f"{name}/__init__.py")
    assert found.stderr.splitlines()[-1] == (
        f"ImportError: {path} is first on the path in the place of AlignDet's {ours}; run from "
        "another folder, or rename it"
    )


@pytest.mark.parametrize("foreign", ["train.py", "models/best.pt", "data/a.jpg", "losses/a.txt"])
def test_what_is_not_in_the_way(tmp_path, foreign):
    """Folders without Python in them, and a train.py where ours is not needed."""
    (tmp_path / foreign).parent.mkdir(exist_ok=True)
    (tmp_path / foreign).write_text("")
    found = run(tmp_path, "-c", "import aligndet.siblings, losses; print(losses.__file__)")
    assert found.stdout.strip() == str(ROOT / "losses/__init__.py")


def test_a_missing_package(tmp_path):
    """AlignDet's folder alone, copied elsewhere."""
    (tmp_path / "aligndet").mkdir()
    for name in ("__init__.py", "siblings.py"):
        (tmp_path / "aligndet" / name).write_text((ROOT / "aligndet" / name).read_text())
    found = subprocess.run(
        # -I and -S: nothing else on the path, whatever is installed
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n"
         "import aligndet"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "models/__init__.py is missing; install AlignDet with pip install" in found.stderr
