"""Are the packages that this one needs AlignDet's own?

They are called `models`, `losses` and `data`, like those of many projects. A package of such a name
that is first on the path would end in `cannot import name ...`; here it is one sentence.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {name: f"{name}/__init__.py" for name in ("models", "losses", "data")}
SCRIPTS = ("pretrain", "finetune")  # these need train.py, too


def require_siblings(root: Path = ROOT) -> None:
    """Check where the packages would be imported from, without importing them.

    Raises:
        ImportError: one sentence that names the first that is not in `root`, where this one is.
    """
    needed = dict(FILES)
    if any(name in sys.modules for name in SCRIPTS):  # they import this package first
        needed["train"] = "train.py"
    for name, file in needed.items():
        spec = find_spec(name)
        if spec is None:
            raise ImportError(
                f"{root / file} is missing; install AlignDet with pip install -e . in its clone"
            )
        found = Path(spec.origin).resolve() if spec.origin else None
        if found != (root / file).resolve():
            raise ImportError(
                f"{found or name} is first on the path in the place of AlignDet's {root / file}; "
                "run from another folder, or rename it"
            )
