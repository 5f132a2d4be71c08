"""A stand-in for a CUDA device on a machine that has none: it finds mistakes about devices, and
counts how often the host waits for the device.

    with CudaStandIn() as gpu:
        model.to("cuda")
        ...
    gpu.waits  # {Wait(step, what, place): how often}

A tensor "on cuda:0" is a `CudaTensor`, a shell around the CPU tensor that holds its values. It
tells Python that it is on cuda:0, and C++ that it is on "meta", for which autograd needs no driver.
Each operation on shells comes to `CudaStandIn`, which refuses what CUDA refuses
(`cuda_rules.py`), notes what is slow on a GPU, computes with the CPU tensors, and puts shells
around the results.

It cannot show time, memory, the order of streams, the rounding of CUDA's kernels, NCCL, or a kernel
that is missing for a dtype. Where C++ looks at tensors itself, it sees "meta".
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import cuda_rules

ROOT = Path(__file__).resolve().parents[2]
# Files whose lines are named as the place of something.
PRODUCT = ("aligndet", "data", "losses", "models", "train.py", "pretrain.py", "finetune.py")
AUTOCAST_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
CPU = torch.device("cpu")
SHELLS = 64  # C++ sees the shells of the first GPU on meta:64; what is really on meta has no index


class Wait(NamedTuple):
    """Why the host waited for the device."""

    step: int  # of training, from 1; 0 before it
    what: str
    place: str  # file:line of the product


class Work(NamedTuple):
    """An operation that ran on the CPU."""

    step: int
    operation: str
    place: str


class CudaTensor(torch.Tensor):
    """A tensor that says it is on a GPU; `inner` is the CPU tensor that holds its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int) -> CudaTensor:
        shell = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("meta", SHELLS + index),
            _extra_dispatch_keys=AUTOCAST_KEY,
        )
        shell.inner, shell.index = inner, index
        return shell

    device = property(lambda self: torch.device("cuda", self.index))
    is_cuda, is_cpu, is_meta = True, False, False

    def get_device(self):
        return self.index

    def numpy(self, **_):
        raise TypeError(
            f"can't convert cuda:{self.index} device type tensor to numpy. Use Tensor.cpu() to "
            "copy the tensor to host memory first."
        )

    def tolist(self):
        return self.cpu().tolist()  # torch refuses it for subclasses

    def __reduce_ex__(self, protocol):
        inner = self.inner.detach().requires_grad_(self.requires_grad)
        inner.untyped_storage().saved_from = f"cuda:{self.index}"
        return inner.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # Threads that the mode does not reach, such as those that decode ahead.
        return CudaStandIn.running.run(func, args, kwargs or {})

    def __repr__(self, **_):
        return f"CudaTensor({self.inner!r}, index={self.index})"


class CudaStandIn(TorchDispatchMode):
    """Makes torch believe in GPUs while it is entered; one at a time in a process.

    Args:
        devices: how many GPUs there are.
    """

    running: CudaStandIn | None = None

    def __init__(self, devices: int = 1) -> None:
        super().__init__()
        self.devices, self.current = devices, 0
        self.generator = torch.Generator()  # the GPU's
        self.backend = "nccl"  # of the process group
        self.sent: set[str] = set()  # collective operations, and of what
        self.step = 0  # see `Wait`; whoever drives it counts
        self.waits: Counter[Wait] = Counter()
        # Elements of the largest copy at each place that is asynchronous in name only.
        self.unpinned: Counter[str] = Counter()
        self.on_cpu: Counter[Work] = Counter()  # elements of the largest tensor
        # (operation, dtype of an input, place), of `cuda_rules.CASTS_SEEN`
        self.ran_in: set[tuple[str, torch.dtype, str]] = set()
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        assert CudaStandIn.running is None, "there is one already"
        CudaStandIn.running = self
        self.stack.callback(setattr, CudaStandIn, "running", None)
        for owner, name, value in self._replacements():
            self.stack.enter_context(mock.patch.object(owner, name, value))
        self.stack.enter_context(cuda_rules.autocast_kernels(CudaTensor))
        self.stack.enter_context(_Calls(self))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.stack.close()

    def _replacements(self):
        facts = {
            **{"is_available": True, "device_count": self.devices, "get_device_name": "stand-in"},
            **{"get_device_capability": (8, 0), "_lazy_init": None, "is_bf16_supported": True},
            **{"is_current_stream_capturing": False},
        }
        for name, value in facts.items():
            yield torch.cuda, name, lambda *_, value=value, **__: value
        yield torch.cuda, "current_device", lambda: self.current
        yield torch.cuda, "set_device", self._set_device
        yield torch.cuda, "synchronize", lambda device=None: self.note_wait("cuda.synchronize")
        for name in ("manual_seed", "manual_seed_all"):
            yield torch.cuda, name, self.generator.manual_seed
        # Optimisers ask whether a CUDA graph is being captured.
        stream = mock.Mock(is_capturing=lambda: False)
        yield torch.accelerator, "current_stream", lambda device=None: stream
        yield torch.accelerator, "current_device_index", lambda: self.current
        yield torch.accelerator, "set_device_index", lambda device: None
        yield torch.nn.Module, "_apply", _apply_and_keep
        yield torch.Tensor, "pin_memory", _pinned_copy
        yield torch.Tensor, "is_pinned", lambda tensor, device=None: _is_pinned(tensor)
        serialization = torch.serialization
        packages = [(0, _location, lambda storage, place: None), *serialization._package_registry]
        yield serialization, "_package_registry", packages
        optimizer = sys.modules["torch.optim.optimizer"]
        types = [*optimizer._foreach_supported_types, CudaTensor]  # as they choose for CUDA
        yield optimizer, "_foreach_supported_types", types

    def _set_device(self, device):
        self.current = device if isinstance(device, int) else torch.device(device).index

    # --- one operation ---------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        """Check, note and compute one operation; `args` may hold shells and CPU tensors."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            if func is torch.ops.aten._to_copy.default:
                return self._convert(func, args, kwargs)
            return self._run(func, args, kwargs)

    def _run(self, func, args, kwargs):
        shells: list[CudaTensor] = []
        plain: list[torch.Tensor] = []

        def inner(tensor):
            if isinstance(tensor, CudaTensor):
                shells.append(tensor)
                return tensor.inner
            plain.append(tensor)
            return tensor

        inner_args = map_tensors(inner, args)
        inner_kwargs = {key: map_tensors(inner, value) for key, value in kwargs.items()}
        place = kwargs.get("device")
        index = self._index(place) if place is not None else shells[0].index if shells else None
        name = func._schema.name
        if name.startswith("c10d::"):
            cuda_rules.check_collective(name, shells, plain, self.backend, self.current)
            self.sent.update(f"{name} of {x.device}" for x in (*shells, *plain))
        if shells:
            cuda_rules.check_devices(func, args, shells, plain)
            for what, times in cuda_rules.waits(func, args, kwargs, CudaTensor):
                self.note_wait(what, times)
            if name in cuda_rules.CASTS_SEEN:
                self.ran_in.update((name, shell.dtype, self.place()) for shell in shells)
        elif index is None and plain and not plain[0].is_meta:
            work = Work(self.step, name, self.place())
            self.on_cpu[work] = max(self.on_cpu[work], *(x.numel() for x in plain))
        pin = inner_kwargs.pop("pin_memory", False)
        if index is None:
            result = func(*inner_args, **inner_kwargs)
            return _pinned_copy(result) if pin else result
        if place is not None:
            inner_kwargs["device"] = CPU
        result = self._compute(func, inner_args, inner_kwargs)
        own = {id(x.inner): x for x in shells}  # of operations in place, and those that do nothing
        for shell in shells:
            if shell.shape != shell.inner.shape:
                raise NotImplementedError(f"{func} changes the shape of a tensor in place")
        return map_tensors(lambda t: own[id(t)] if id(t) in own else CudaTensor(t, index), result)

    def _compute(self, func, args, kwargs):
        """The operation on CPU tensors, with the GPU's generator, accumulating in float32."""
        if cuda_rules.is_random(func):
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            func, kwargs = cuda_rules.with_generator(func), {**kwargs, "generator": self.generator}
        dtype = cuda_rules.computed_in_float(func, args)
        if dtype is None:
            return func(*args, **kwargs)
        result = func(*map_tensors(lambda t: _cast(t, dtype, torch.float32), args), **kwargs)
        return map_tensors(lambda t: _cast(t, torch.float32, dtype), result)

    def _convert(self, func, args, kwargs):
        """`to`: another device, dtype or memory format."""
        kwargs = dict(kwargs)
        source, target = args[0], kwargs.pop("device", None)
        here = source.index if isinstance(source, CudaTensor) else None
        there = here if target is None else self._index(target)
        blocking = not kwargs.pop("non_blocking", False)
        kwargs.pop("pin_memory", None)
        if here is None and there is not None:
            if source.is_meta:
                raise NotImplementedError("Cannot copy out of meta tensor; no data!")
            if blocking:
                self.note_wait("copy host to device")
            elif not _is_pinned(source):
                place = self.place()
                self.unpinned[place] = max(self.unpinned[place], source.numel())
        elif here is not None and there is None:
            self.note_wait("copy device to host")  # the values are read at once
        elif there is None and target is not None:
            kwargs["device"] = target
        result = func(source if here is None else source.inner, **kwargs)
        return result if there is None else CudaTensor(result, there)

    def _index(self, device) -> int | None:
        """Number of a GPU; None for the CPU."""
        device = torch.device(device)
        if device.type == "meta" and (device.index or 0) >= SHELLS:  # C++ makes one like a shell
            return device.index - SHELLS
        if device.type != "cuda":
            return None
        index = self.current if device.index is None else device.index
        if index >= self.devices:
            raise RuntimeError(f"CUDA error: invalid device ordinal ({index})")
        return index

    # --- what it notes ---------------------------------------------------------------------------

    def note_wait(self, what: str, times: int = 1) -> None:
        """The host waits here."""
        self.waits[Wait(self.step, what, self.place(callers=1))] += times

    def place(self, callers: int = 0) -> str:
        """The innermost line of the product as file:line, and lines that called it; in the backward
        pass that of the forward pass, where anomaly detection keeps it."""
        node = torch._C._current_autograd_node()
        if node is not None:
            lines = "".join(node.metadata.get("traceback_", [])).splitlines()
            found = [_place_of(*_file_and_line(x)) for x in lines if x.startswith('  File "')]
            return f"backward of {([x for x in found if x] or [node.name()])[-1]}"
        found, frame = [], sys._getframe(1)
        while frame is not None and len(found) <= callers:
            found += filter(None, [_place_of(frame.f_code.co_filename, frame.f_lineno)])
            frame = frame.f_back
        return ", called by ".join(found) or "outside of the product"


class _Calls(TorchFunctionMode):
    """Changes calls before C++ sees them, where it would ask the driver or look at "meta"."""

    def __init__(self, gpu: CudaStandIn) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        args = tuple(map(self._with_index, args))
        kwargs = {key: self._with_index(value) for key, value in kwargs.items()}
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            return self._from_data(func, args, kwargs)
        if func is torch.Tensor.__setitem__ and isinstance(args[2], (bool, int, float)):
            # C++ makes it a tensor: on the CPU if it sees CUDA, but not if it sees "meta".
            args = (*args[:2], torch.tensor(args[2], dtype=args[0].dtype))
        return func(*args, **kwargs)

    def _with_index(self, value):
        if value == "cuda" if isinstance(value, str) else isinstance(value, torch.device):
            device = torch.device(value)
            bare = device.type == "cuda" and device.index is None
            return torch.device("cuda", self.gpu.current) if bare else value
        return value

    def _from_data(self, func, args, kwargs):
        """Numbers become a CPU tensor, which is then copied."""
        like = args[0] if func is torch.Tensor.new_tensor else None
        data, *rest = args[like is not None :]
        device = kwargs.pop("device", None if like is None else like.device)
        if isinstance(data, torch.Tensor):
            changes = {key: kwargs[key] for key in ("dtype",) if kwargs.get(key) is not None}
            return data.to(device or data.device, **changes, copy=func is not torch.as_tensor)
        if like is not None and kwargs.get("dtype") is None:
            kwargs["dtype"] = like.dtype
        tensor = torch.tensor(data, *rest, **kwargs)
        return tensor if device is None else tensor.to(device)


def map_tensors(function, value):
    """The function of each tensor in lists and tuples; the rest stays as it is."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)([map_tensors(function, x) for x in value])
    return value


def _cast(tensor, before, after):
    return tensor.to(after) if tensor.dtype is before else tensor


_apply = torch.nn.Module._apply


def _apply_and_keep(module, function, recurse=True):
    """`Module.to` leaves parameters the same objects, as it does between the CPU and CUDA."""
    future = torch.__future__
    before = future.get_swap_module_params_on_conversion()
    future.set_swap_module_params_on_conversion(True)
    try:
        return _apply(module, function, recurse)
    finally:
        future.set_swap_module_params_on_conversion(before)


def _pinned_copy(tensor, device=None):
    copy = tensor.detach().clone()
    copy.untyped_storage().pinned = True
    return copy


def _is_pinned(tensor) -> bool:
    return not isinstance(tensor, CudaTensor) and hasattr(tensor.untyped_storage(), "pinned")


def _location(storage) -> str | None:
    """Where torch.save says that a storage was."""
    return getattr(storage, "saved_from", None)


@functools.cache
def _is_product(file: str) -> str | None:
    path = Path(file)
    if not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT).as_posix()
    return name if name.split("/")[0] in PRODUCT else None


def _place_of(file: str, line: int) -> str | None:
    name = _is_product(file)
    return None if name is None else f"{name}:{line}"


def _file_and_line(text: str) -> tuple[str, int]:
    """Of a line of a traceback: `  File "x.py", line 3, in f`."""
    _, file, rest = text.split('"', 2)
    return file, int(rest.split(",")[1].split()[1])
