"""What can be sent to a loader process without an open file for each of its tensors."""

from __future__ import annotations

import io
import pickle

import torch


class _Pickler(pickle.Pickler):
    def persistent_id(self, item):
        assert not isinstance(item, torch.Tensor)


def sent(item):
    """`item` as another process would get it; fails if it holds a tensor."""
    file = io.BytesIO()
    _Pickler(file).dump(item)
    return pickle.loads(file.getvalue())
