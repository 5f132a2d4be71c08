"""Say so when a foreign package called `models`, `losses` or `data` comes first on the path.

An installation in place makes Python run this file when it starts (`build_backend.py`). It adds
a finder to the end of Python's list, which is asked only for what nothing else has found, so that
other programs notice nothing of it: where `from models import build_detector` would end in `cannot
import name`, and `python -m data.proposals` in `No module named`, there is one sentence instead.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "losses", "data")


class ShadowedFinder:
    """Finds nothing; raises for names that are in our packages, but not in the foreign one."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Called by Python's import with a dotted name that no other finder knows.

        Raises:
            ModuleNotFoundError: one sentence that names the foreign package.
        """
        package, _, rest = name.partition(".")
        if package not in PACKAGES or not rest or not is_ours(package, rest):
            return
        foreign = getattr(sys.modules.get(package), "__file__", None)
        if foreign and Path(foreign).resolve().parent != ROOT / package:
            # Without `name=`: Python would take it for a name that is missing from the package.
            raise ModuleNotFoundError(
                f"{foreign} is first on the path in the place of AlignDet's {ROOT / package}, "
                f"which has {rest}; run from another folder, or rename it"
            )


def is_ours(package: str, rest: str) -> bool:
    """Whether our package has such a module, or exports such a name."""
    module = ROOT.joinpath(package, *rest.split("."))
    exports = (ROOT / package / "__init__.py").read_text(encoding="utf-8")
    return module.is_dir() or module.with_suffix(".py").is_file() or f'"{rest}"' in exports


if ROOT.joinpath("models", "__init__.py").is_file() and not any(
    isinstance(finder, ShadowedFinder) for finder in sys.meta_path
):
    sys.meta_path.append(ShadowedFinder())
