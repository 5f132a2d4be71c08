"""All arithmetic in float64, for tests that compare two ways to the same result.

In float32 two correct ways differ by about 1e-6 of a number, and by more behind a threshold: a ReLU
whose input is that close to 0 is on in one and off in the other, and so are a candidate of
non-maximum suppression and an order of scores. Which are depends on the processor, whose kernels
add in their own order. In float64 the ways differ by 1e-15, and no number of a test is that close
to a threshold by chance; what differs by more than 1e-9 is another result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """What is made in here is float64, and casts to float32 give float64.

    The product casts to float32 in many places, because under autocast numbers may have come in
    half precision.
    """
    cast = torch.Tensor.to

    def to_double(self: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        wider = {torch.float32: torch.float64}
        args = tuple(wider.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return cast(self, *args, **kwargs)

    default = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(torch.Tensor, "to", to_double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
