"""The process group of a run started by torchrun, if there is one.

Everything here works in a single process without a group: rank 0 of 1.
"""

from __future__ import annotations

import inspect
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from data.counting import count

# The option has a new name from torch 2.14 on; the old one warns there.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


# How long a rank waits in a step for one that is late, before it gives up with an error.
STEP_TIMEOUT = timedelta(minutes=30)
# How long processes that torchrun has started wait for one that has not joined the group.
MEETING_TIMEOUT = timedelta(minutes=10)
POLL = 0.1  # seconds

_notices: Notices | None = None


class DeviceError(ValueError):
    """The requested device is not available, or the process group cannot be formed."""


class RankError(ValueError):
    """Ranks do not agree where they must."""


class LostRank(RankError):
    """Another rank has ended, or is too late."""


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
        DeviceError: see `choose_device` and `announced_ranks`; also if there are fewer GPUs than
            processes, or if the others cannot be reached.
    """
    global _notices
    ranks = announced_ranks()
    device = choose_device(device_name, ranks.get("LOCAL_RANK", 0))
    on_gpu = device.type == "cuda"
    if on_gpu:
        gpus = torch.cuda.device_count()
        if device.index >= gpus:
            raise DeviceError(
                f"LOCAL_RANK is {device.index}, but this machine has {count(gpus, 'GPU')}; "
                f"start torchrun with --nproc-per-node={gpus}"
            )
        torch.cuda.set_device(device)
    if not ranks:
        yield device
        return
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=STEP_TIMEOUT,
            device_id=device if on_gpu else None,
            **_meeting_place(ranks),
        )
        _notices = Notices() if world_size() > 1 else None
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"the process group cannot be formed ({reason}); check MASTER_ADDR, MASTER_PORT and "
            "the network, or start with torchrun"
        ) from None
    try:
        yield device
    finally:
        _notices = None
        dist.destroy_process_group()


def announced_ranks() -> dict[str, int]:
    """`WORLD_SIZE`, `RANK` and `LOCAL_RANK` of the environment; empty for a process by itself.

    An empty value counts as none, and so does a world of 1 whose other variables are missing.

    Raises:
        DeviceError: one of them is missing or not a number, or the address of rank 0 is.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if given.get("WORLD_SIZE", "1") == "1" and len(given) < len(names):
        return {}
    for name in (*names, "MASTER_ADDR", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not value or (name in names and not value.isdecimal()):
            is_set = f"is {value!r}" if value else "is not set"
            raise DeviceError(
                f"WORLD_SIZE is {given['WORLD_SIZE']}, but {name} {is_set}; start with torchrun, "
                "or unset WORLD_SIZE for a single process"
            )
    return {name: int(value) for name, value in given.items()}


def _meeting_place(ranks: dict[str, int]) -> dict[str, Any]:
    """Where the processes meet: for those of torchrun, a part of its store that is new.

    When torchrun starts the processes again, it goes on with the same store, on one machine and on
    several; in it are the addresses of those that are gone, and nothing says which attempt this
    is (each machine counts its own restarts). So rank 0 makes a name up, and tells it to the others
    by the names that they have made up.

    Raises:
        RuntimeError: one of the others has not come within `MEETING_TIMEOUT`.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}  # rank 0 makes a store
    rank, world_size = ranks["RANK"], ranks["WORLD_SIZE"]
    store, own = _store(STEP_TIMEOUT), uuid.uuid4().hex
    if rank == 0:
        name = own
        _tell(name, store, world_size)
    else:
        store.set(f"aligndet/rank {rank}", own)
        _wait_until(lambda: store.check([f"aligndet/name for {own}"]))
        name = store.get(f"aligndet/name for {own}").decode()
        store.set(f"aligndet/{name}/rank {rank}", "")
    return {
        "store": dist.PrefixStore(f"aligndet/{name}", store),
        "rank": rank,
        "world_size": world_size,
    }


def _tell(name: str, store: dist.Store, world_size: int) -> None:
    """Tell `name` to whoever asks until all other ranks have it, whether those that ask are of
    this attempt or gone."""
    told = set()

    def all_have_it() -> bool:
        for rank in range(1, world_size):
            if store.check([f"aligndet/rank {rank}"]):
                other = store.get(f"aligndet/rank {rank}").decode()
                if other not in told:
                    store.set(f"aligndet/name for {other}", name)
                    told.add(other)
        return store.check([f"aligndet/{name}/rank {rank}" for rank in range(1, world_size)])

    _wait_until(all_have_it)


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + MEETING_TIMEOUT.total_seconds()
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("a rank has not come; the log of its machine may say why")
        time.sleep(POLL)


def synchronised(module: torch.nn.Module) -> DistributedDataParallel:
    """`module` with gradients that are averaged over ranks in the backward pass, bucket by bucket,
    while those of earlier layers are still computed. They are views of the buckets, not copies.

    Buffers are not synchronised in the forward pass: tasks that train any do so themselves. From
    torch 2.14 on, DDP does so once at the start, when all ranks hold the same ones anyway.
    """
    return DistributedDataParallel(module, gradient_as_bucket_view=True, **{_SYNC_BUFFERS: False})


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


def average_statistics(module: torch.nn.Module) -> None:
    """Replace the statistics of the BatchNorm layers that are trained by their mean over ranks;
    afterwards all ranks hold the same ones."""
    if not in_group():
        return
    layers = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d) and m.training]
    buffers = [b for layer in layers for b in layer.buffers() if b.is_floating_point()]
    if not buffers:
        return
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
    tensor = tensor.contiguous()  # as the parts: NCCL copies bytes, whatever the memory format
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def gather_on_main(tensor: torch.Tensor) -> torch.Tensor:
    """On rank 0 every rank's tensor, all of one shape, concatenated along the first dimension in
    rank order; on the others their own."""
    if not in_group():
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())] if is_main() else None
    dist.gather(tensor, parts, dst=0)
    return tensor if parts is None else torch.cat(parts)


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
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        if _notices is not None:
            return _notices.store.add(f"aligndet/{_notices.name}/{name}", 1) == 1
        return _store().add(f"aligndet/{name}/{attempt}", 1) == 1
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
    """Rank 0's item, on every rank; they wait for it without a limit."""
    if not in_group():
        return item
    if _notices is not None:
        _notices.wait_for_main()
    holder = [item]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


class Notices:
    """What ranks tell one another by the store through which they met.

    Collective operations have a time limit, but rank 0 may work alone for long, as when it scores
    an evaluation of many images.
    """

    def __init__(self) -> None:
        self.store = _store()
        holder = [uuid.uuid4().hex]  # another one if torchrun starts the group again
        dist.broadcast_object_list(holder, src=0)
        self.name, self.number = holder[0], 0

    def wait_for_main(self) -> None:
        """Return when rank 0 has come here, too."""
        key = f"aligndet/{self.name}/{self.number}"
        self.number += 1
        if is_main():
            self.store.set(key, "")
            return
        while not self.store.check([key]):
            time.sleep(POLL)


def _store(timeout: timedelta = timedelta(seconds=10)) -> dist.TCPStore:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(address, port, is_master=False, timeout=timeout)


def highest_over_ranks(number: int) -> int:
    """The highest of the ranks' numbers, on every rank."""
    if not in_group():
        return number
    holder = torch.tensor(number)
    dist.all_reduce(holder, dist.ReduceOp.MAX)
    return int(holder)


def check_same_weights(module: torch.nn.Module) -> None:
    """Compare the parameters of all ranks, bit by bit, by a sum of each.

    Raises:
        RankError: one differs, which DDP never makes right again; names it and the ranks.
    """
    if not in_group():
        return
    names, parameters = zip(*module.named_parameters(), strict=True)
    sums = torch.stack([bit_sum(parameter) for parameter in parameters]).tolist()
    for rank_of, theirs in enumerate(gather_objects(sums)):
        different = [n for n, a, b in zip(names, theirs, sums, strict=True) if a != b]
        if different:
            raise RankError(
                f"the weights of ranks {min(rank_of, rank())} and {max(rank_of, rank())} differ "
                f"({count(len(different), 'tensor')}, the first is {different[0]}); go on from the "
                "last checkpoint, and if this happens again look for faulty memory or a change of "
                "the model on one rank only"
            )


LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether an error only says that another rank has ended, or is too late."""
    if not in_group():
        return False
    return isinstance(error, dist.DistError) or any(text in str(error) for text in LOST)


def bit_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the bit patterns of a tensor's values as whole numbers (modulo 2^64): any single
    change of a value changes it."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    words = tensor.detach().reshape(-1).view(integers[tensor.element_size()])
    return words.sum(dtype=torch.int64)
