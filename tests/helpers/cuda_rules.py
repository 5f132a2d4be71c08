"""What CUDA does otherwise than a CPU: which operations it refuses, and for which the host waits.

From torch's sources: aten/src/ATen/native/cuda, ATen/autocast_mode.h, and torchvision's csrc.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

# The result has a size that only the device knows, or the host reads a number: how many times.
WAITS = {
    "aten::_local_scalar_dense": ("item, int, float or bool", 1),
    "aten::nonzero": ("nonzero", 1),
    "aten::masked_select": ("masked_select", 1),
    "aten::equal": ("equal", 1),
    "aten::_unique": ("unique", 1),
    "aten::_unique2": ("unique", 1),
    "aten::unique_dim": ("unique", 1),
    "aten::unique_consecutive": ("unique_consecutive", 1),
    "aten::bincount": ("bincount", 2),  # the least and the greatest entry
    "aten::histc": ("histc", 2),
    "torchvision::nms": ("nms", 1),
}
CPU_INDEX = "CPU index of a CUDA tensor"
INDEXING = {
    *("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"),
    *("aten::_unsafe_index", "aten::_unsafe_index_put"),
}
COPIES = {"aten::copy_", "aten::_foreach_copy_"}
SCALARS_FROM_CPU = {*INDEXING, "aten::where", "aten::lerp_", "aten::masked_fill_", "aten::fill_"}
RANDOM = {
    *("aten::randperm", "aten::rand", "aten::randn", "aten::randint", "aten::normal_"),
    *("aten::uniform_", "aten::random_", "aten::bernoulli", "aten::bernoulli_"),
    *("aten::multinomial", "aten::exponential_"),
}
# Computed in float32 and then rounded: the CPU's own kernels for half precision are slow.
PRODUCTS = {
    *("aten::convolution", "aten::convolution_backward", "aten::mm", "aten::bmm", "aten::addmm"),
    *("aten::baddbmm", "aten::addmv", "aten::mv"),
}
CASTS_SEEN = {"aten::convolution", "aten::upsample_nearest2d"}  # their dtypes are noted
LOWER_PRECISION = {  # of the operations that autocast knows, see `autocast_kernels`
    *("conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d"),
    *("conv_transpose3d", "convolution", "_convolution", "prelu", "addmm", "addmv", "addr"),
    *("matmul", "einsum", "mm", "mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm"),
    *("chain_matmul", "linalg_multi_dot", "scaled_dot_product_attention"),
}
WIDEST = {
    *("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler"),
    *("index_put", "tensordot", "scatter_add"),
}
LEFT_ALONE = {"binary_cross_entropy"}  # torch's own kernel refuses it


def check_devices(func, args, shells, plain) -> None:
    """Refuse tensors of two devices in one operation, as CUDA does.

    A CPU tensor without dimensions may take part in element-wise operations, and CPU indices may
    index.
    """
    name = func._schema.name
    if name in COPIES or name.startswith("c10d::"):
        return
    gpus = {str(shell.device) for shell in shells}
    if name in INDEXING:
        if any(args[0] is x for x in plain):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        plain = [x for x in plain if len(args) > 2 and x is args[2]]
    if torch.Tag.pointwise in func.tags or name in SCALARS_FROM_CPU or "::_foreach" in name:
        plain = [x for x in plain if x.dim()]
    devices = sorted(gpus | {"cpu" for _ in plain})
    if len(devices) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{devices[0]} and {devices[1]}! ({name})"
        )


def waits(func, args, kwargs, shell_type) -> Iterator[tuple[str, int]]:
    """What the host waits for in an operation on the device, and how often."""
    name = func._schema.name
    if name in WAITS:
        yield WAITS[name]
    elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        yield "repeat_interleave without output_size", 1
    elif name == "aten::copy_":
        to_device, from_device = (isinstance(x, shell_type) for x in args[:2])
        if to_device != from_device and (from_device or not (len(args) > 2 and args[2])):
            yield f"copy {'host to device' if to_device else 'device to host'}", 1
    elif name in INDEXING:
        indices = [i for i in args[1] if i is not None]
        on_cpu = sum(not isinstance(i, shell_type) for i in indices)
        if on_cpu:
            yield CPU_INDEX, on_cpu
        masks = sum(i.dtype in (torch.bool, torch.uint8) for i in indices)
        value = args[2] if len(args) > 2 else None
        # One number from the host into a mask is a masked_fill, for which nobody waits.
        is_fill = value is not None and value.numel() == 1 and not isinstance(value, shell_type)
        accumulates = len(args) > 3 and args[3]
        if masks and not (is_fill and not accumulates):
            yield f"{name.removeprefix('aten::').strip('_')} with a mask", masks


def is_random(func) -> bool:
    """Whether an operation draws numbers."""
    return func._schema.name in RANDOM


def with_generator(func):
    """The overload of a random operation that takes a generator."""
    takes = any(argument.name == "generator" for argument in func._schema.arguments)
    return func if takes else func.overloadpacket.generator


def computed_in_float(func, args) -> torch.dtype | None:
    """The half precision of an operation's inputs, if it is to be computed in float32."""
    if func._schema.name not in PRODUCTS:
        return None
    dtype = args[0].dtype
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def check_collective(name, shells, plain, backend: str, current: int) -> None:
    """Refuse what NCCL refuses: tensors of the CPU, of another process's GPU, or with gaps; and
    what it would mix up, since it copies bytes: tensors in several memory formats."""
    if plain and "gloo" not in backend:
        raise RuntimeError("No backend type associated with device type cpu")
    for shell in shells:
        if shell.index != current:
            raise RuntimeError(f"{name}: a tensor on {shell.device} in the process of {current}")
        if not shell.is_contiguous() and not _is_channels_last(shell):
            raise RuntimeError("Tensors must be contiguous")
    formats = {shell.is_contiguous() for shell in shells if shell.dim() == 4}
    if len(formats) > 1 and "gather" in name:
        raise RuntimeError(f"{name}: some tensors are channels-last, others are not")


def _is_channels_last(tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def autocast_kernels(shell_type) -> Iterator[None]:
    """`torch.autocast("cuda")` casts shells: torch's own kernels for it do not know them.

    Which operations there are, torch says; the names above say which are cast down, and which to
    the widest dtype of their inputs; the others are cast to float32.
    """
    libraries = {name: torch.library.Library(name, "IMPL") for name in ("aten", "torchvision")}
    try:
        for full in torch._C._dispatch_get_all_op_names():
            namespace, name = full.split("::")
            base, _, overload = name.partition(".")
            known = torch._C._dispatch_has_kernel_for_dispatch_key(full, "AutocastCUDA")
            if known and namespace in libraries and base not in LEFT_ALONE:
                func = getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
                kernel = _kernel(func, base, shell_type)
                libraries[namespace].impl(name, kernel, "AutocastCUDA", allow_override=True)
        yield
    finally:
        for library in libraries.values():
            library._destroy()


def _kernel(func, base, shell_type):
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def run(*args, **kwargs):
        dtype = _autocast_dtype(base, args, shell_type)

        def cast(value):
            if isinstance(value, (list, tuple)):
                return type(value)(map(cast, value))
            eligible = isinstance(value, shell_type) and value.is_floating_point()
            return value.to(dtype) if eligible and value.dtype is not torch.float64 else value

        with torch._C._ExcludeDispatchKeyGuard(without):
            return func(*map(cast, args), **{key: cast(value) for key, value in kwargs.items()})

    return run


def _autocast_dtype(base, args, shell_type) -> torch.dtype:
    if base in LOWER_PRECISION:
        return torch.get_autocast_dtype("cuda")
    if base in WIDEST:
        floats = [x.dtype for x in args if isinstance(x, shell_type) and x.is_floating_point()]
        if torch.float32 not in floats:
            return floats[0] if floats else torch.float32
    return torch.float32
