"""Read pickles of NumPy arrays and plain values, and nothing that could run other code."""

from __future__ import annotations

import collections
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from models.pickle_outline import check_memo
from models.weight_errors import MoreThanTensors


def _numpy_functions() -> dict[str, Any]:
    """What pickles of NumPy arrays and numbers call, by its names in NumPy 1 and 2."""
    zero = np.float64(0)
    reconstruct, scalar = np.ndarray(0).__reduce__()[0], zero.__reduce__()[0]
    found = {f"numpy.{c.__name__}": c for c in (np.ndarray, np.dtype)}
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray._reconstruct"] = reconstruct
        found[f"{core}.multiarray.scalar"] = scalar
        found[f"{core}.numeric._frombuffer"] = np.zeros(1).__reduce_ex__(5)[0]
    return found


NUMPY = _numpy_functions()
NUMPY_DTYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]


def read_pickle(path: Path) -> Any:
    """A pickle that holds NumPy arrays and plain values.

    Raises:
        MoreThanTensors: it holds something else.
        Exception: it is damaged.
    """
    raw = BytesIO(path.read_bytes())
    check_memo(raw)
    raw.seek(0)
    # Python 2 wrote the bytes of arrays as text, each byte a character.
    return PlainUnpickler(raw, encoding="latin1").load()


class PlainUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain values, and refuses what could run other code."""

    ALLOWED = {
        **NUMPY,
        "collections.OrderedDict": collections.OrderedDict,
        "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # only ever used with it
    }

    def find_class(self, module: str, name: str) -> Any:
        """The function or class of a pickle's name, if it is harmless."""
        if f"{module}.{name}" not in self.ALLOWED:
            raise MoreThanTensors(f"{module}.{name}")
        return self.ALLOWED[f"{module}.{name}"]
