"""The formats of `aligndet.export`: how a file of each is made and run.

All of them have the inputs `images` and `image_sizes` and the outputs of `ExportedDetector`, for
batches of any number, height and width. ONNX is written by PyTorch's older exporter
(`dynamo=False`), from a trace as TorchScript is: it takes seconds, where `torch.export`, on which
the newer one builds, reasons about the sizes of all maps, and cannot do without a least one.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aligndet.export_graph import DIVISOR, ExportedDetector
from aligndet.export_steps import suppress

INPUTS = ("images", "image_sizes")
ABOUT = "aligndet"  # the entry of a file that says, as JSON, how to use it
OPSET = 18
ONNX_PACKAGES = ("onnx", "onnxruntime")

Run = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class Format(NamedTuple):
    """One format."""

    suffix: str  # of files
    make: Callable[[nn.Module, Mapping[str, Any]], bytes]  # a detector, and what it says of itself
    load: Callable[[bytes], Run]
    packages: tuple[str, ...] = ()  # needed beside the product's own


def require_packages(name: str) -> None:
    """Raise a ValueError that names the command if packages of a format are not installed."""
    packages = FORMATS[name].packages
    if missing := [p for p in packages if importlib.util.find_spec(p) is None]:
        raise ValueError(
            f"--format {name} needs {' and '.join(packages)}, but {missing[0]} is not installed; "
            f"install them with: pip install {' '.join(packages)}"
        )


def make_onnx(detector: nn.Module, about: Mapping[str, Any]) -> bytes:
    """An ONNX file; what it says of itself is in its `metadata_props`."""
    graph = ExportedDetector(detector, NonMaxSuppression.apply)
    axes = {name: {0: "detections"} for name in graph.outputs}
    axes |= {"images": {0: "batch", 2: "height", 3: "width"}, "image_sizes": {0: "batch"}}
    file = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's age, and of numbers that are fixed
        torch.onnx.export(
            graph,
            example(detector),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(graph.outputs),
            dynamic_axes=axes,
        )
    onnx = importlib.import_module("onnx")
    model = onnx.load_model_from_string(file.getvalue())
    model.metadata_props.add(key=ABOUT, value=json.dumps(about))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def load_onnx(content: bytes) -> Run:
    """Run by onnxruntime on the CPU, with as many threads as PyTorch."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        values = (images.contiguous().numpy(), image_sizes.numpy())
        found = session.run(None, dict(zip(INPUTS, values, strict=True)))
        return tuple(torch.from_numpy(value) for value in found)

    return run


class NonMaxSuppression(torch.autograd.Function):
    """`export_steps.suppress`, which in ONNX is one operation with rows and groups of its own."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
        """Called in tracing."""
        return suppress(boxes, scores, iou)

    @staticmethod
    def symbolic(graph: Any, boxes: Any, scores: Any, iou: float) -> Any:
        """What is written instead: the kept ones as indices (row, group, place), then as a mask."""

        def constant(value: float, dtype: torch.dtype) -> Any:
            return graph.op("Constant", value_t=torch.tensor([value], dtype=dtype))

        def filled(shape: Any, value: bool) -> Any:
            return graph.op("ConstantOfShape", shape, value_t=torch.tensor([value]))

        shape = graph.op("Shape", scores)
        most = graph.op("Gather", shape, constant(2, torch.int64))
        lowest = constant(torch.finfo(torch.float32).min, torch.float32)
        limits = most, constant(iou, torch.float32), lowest
        kept = graph.op("NonMaxSuppression", boxes, scores, *limits)
        count = graph.op("Gather", graph.op("Shape", kept), constant(0, torch.int64))
        mask = graph.op("ScatterND", filled(shape, False), kept, filled(count, True))
        return mask.setType(scores.type().with_dtype(torch.bool))


def make_torchscript(detector: nn.Module, about: Mapping[str, Any]) -> bytes:
    """A TorchScript file; what it says of itself is its extra file `aligndet`."""
    file = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as for ONNX
        graph = ExportedDetector(detector, suppress)
        traced = torch.jit.trace(graph, example(detector), check_trace=False)
        torch.jit.save(traced, file, _extra_files={ABOUT: json.dumps(about)})
    return file.getvalue()


def load_torchscript(content: bytes) -> Run:
    """Run by PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return without_gradient(torch.jit.load(io.BytesIO(content)))


def make_torch_export(detector: nn.Module, about: Mapping[str, Any]) -> bytes:
    """A file of `torch.export`; what it says of itself is its extra file `aligndet`."""
    file = io.BytesIO()
    torch.export.save(program_of(detector), file, extra_files={ABOUT: json.dumps(about)})
    return file.getvalue()


def program_of(detector: nn.Module) -> torch.export.ExportedProgram:
    """What is in that file."""
    batch, least = torch.export.Dim("batch", min=1), least_side(detector)
    sides = {2: torch.export.Dim("height", min=least), 3: torch.export.Dim("width", min=least)}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torchvision has not caught up with
        return torch.export.export(
            ExportedDetector(detector, suppress),
            example(detector),
            dynamic_shapes=({0: batch, **sides}, {0: batch}),
        )


def load_torch_export(content: bytes) -> Run:
    """Run by PyTorch."""
    return without_gradient(torch.export.load(io.BytesIO(content)).module())


def without_gradient(model: Callable[..., tuple[Tensor, ...]]) -> Run:
    """The same, as it is called to detect."""

    def run(images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return model(images, image_sizes)

    return run


FORMATS = {
    "onnx": Format(".onnx", make_onnx, load_onnx, ONNX_PACKAGES),
    "torch_export": Format(".pt2", make_torch_export, load_torch_export),
    "torchscript": Format(".torchscript", make_torchscript, load_torchscript),
}


def least_side(detector: nn.Module) -> int:
    """The shortest side, in pixels, of images for `torch_export`: every map must have two cells, as
    it takes a side of one cell for a number that is always 1."""
    return max(DIVISOR, *detector.strides) + 1


def example(detector: nn.Module) -> tuple[Tensor, Tensor]:
    """Two images of noise, on which a detector is traced; every map has several cells."""
    height, width = 2 * max(DIVISOR, *detector.strides), 3 * max(DIVISOR, *detector.strides)
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, height, width), generator=noise, dtype=torch.uint8)
    return images, torch.tensor([[height, width], [height - 7, width - 9]])
