"""The process group of a run started by torchrun, if there is one.

Everything here works in a single process without a group: rank 0 of 1.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

# The option has a new name from torch 2.14 on; the old one warns there.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


class DeviceError(ValueError):
    """The requested device is not available."""


def choose_device(name: str, index: int = 0) -> torch.device:
    """The device of this process.

    Args:
        name: `auto` (a GPU where there is one), `cpu` or `cuda`.
        index: number of the GPU.

    Raises:
        DeviceError: `cuda` is asked for and there is none, or the name is unknown.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device is {name!r}; set it to auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device is cuda, but PyTorch finds no GPU; set device=cpu or device=auto")
    on_gpu = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", index) if on_gpu else torch.device("cpu")


@contextmanager
def process_group(device_name: str = "auto") -> Iterator[torch.device]:
    """Join the group that torchrun announces (nccl on GPUs, gloo on CPUs) and leave it at the end.

    Args:
        device_name: see `choose_device`.

    Yields:
        The device of this process.

    Raises:
        DeviceError: see `choose_device`.
    """
    device = choose_device(device_name, int(os.environ.get("LOCAL_RANK", 0)))
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def synchronised(module: torch.nn.Module) -> DistributedDataParallel:
    """`module` with gradients that are averaged over ranks in the backward pass.

    Buffers are not synchronised in the forward pass: tasks that train any do so themselves. From
    torch 2.14 on, DDP does so once at the start, when all ranks hold the same ones anyway.
    """
    return DistributedDataParallel(module, **{_SYNC_BUFFERS: False})


def in_group() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process, 0 without a group."""
    return dist.get_rank() if in_group() else 0


def world_size() -> int:
    """Number of processes, 1 without a group."""
    return dist.get_world_size() if in_group() else 1


def is_main() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0


def mean_over_ranks_of(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """The mean over ranks of each scalar; all ranks must pass the same keys in the same order."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if in_group():
        dist.all_reduce(stacked)
        stacked /= world_size()
    return dict(zip(values, stacked.tolist(), strict=True))


def copy_buffers_from_main(module: torch.nn.Module) -> None:
    """Overwrite buffers, such as trained BatchNorm statistics, with those of rank 0."""
    if in_group():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def average_buffers(module: torch.nn.Module) -> None:
    """Replace floating-point buffers, such as trained BatchNorm statistics, by their mean over
    ranks; afterwards all ranks hold the same ones."""
    if not in_group():
        return
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= world_size()
    for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """Every rank's tensor, all of one shape, concatenated along the first dimension in rank
    order; without gradients."""
    tensor = tensor.detach()
    if not in_group():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor, on every rank."""
    if in_group():
        dist.broadcast(tensor, src=0)
    return tensor


def first_to_claim(name: str) -> bool:
    """Whether no other process of this torchrun has claimed `name` before; needs no process group.

    If there is nobody to ask, the answer is yes.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"aligndet/{name}/{attempt}", 1) == 1
    except RuntimeError:  # torchrun is going down already
        return True


def gather_objects(item: Any) -> list[Any]:
    """Every rank's item, in rank order, on every rank."""
    if not in_group():
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def broadcast_object(item: Any) -> Any:
    """Rank 0's item, on every rank."""
    if not in_group():
        return item
    holder = [item]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]
