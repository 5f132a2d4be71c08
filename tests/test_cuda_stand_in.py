"""The stand-in for a GPU refuses, counts and casts as CUDA does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers import cuda_rules
from tests.helpers.cuda_stand_in import ROOT, CudaStandIn, CudaTensor


@pytest.fixture
def gpu():
    with CudaStandIn(devices=2) as gpu:
        yield gpu


def on_gpu(*values):
    return torch.tensor(values or (1.0, 2.0, 3.0)).to("cuda")


def waits_of(gpu, function):
    gpu.waits.clear()
    function()
    return sum(gpu.waits.values())


def test_tensors_say_where_they_are(gpu):
    x = on_gpu()
    assert x.device == torch.device("cuda", 0)
    assert (x.is_cuda, x.is_cpu, x.get_device()) == (True, False, 0)
    for made in (
        torch.zeros(3, device="cuda"),
        torch.rand(3, device=x.device),
        torch.arange(3, device="cuda"),
        x.new_zeros(3),
        x.new_tensor([1, 2]),
        torch.empty_like(x),
        x[1:] + 1,
        nn.Linear(3, 2, device="cuda").weight,
        nn.Linear(3, 2).to("cuda")(x),
    ):
        assert made.device == x.device
    assert torch.zeros(1).to("cuda:1").device.index == 1
    assert x.cpu().device.type == torch.as_tensor([1]).device.type == "cpu"
    assert torch.cuda.is_available()


def test_gpu_that_is_not_there(gpu):
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(1, device="cuda:2")


def test_meta_stays_meta(gpu):
    """Skeletons of modules are built there."""
    with torch.device("meta"):
        layer = nn.Linear(3, 2)
    assert layer.weight.is_meta
    assert not isinstance(layer.weight + 1, CudaTensor)
    with pytest.raises(NotImplementedError, match="no data"):
        layer.to("cuda")
    assert layer.to_empty(device="cuda").weight.is_cuda


def test_values_and_gradients_are_those_of_the_cpu(gpu):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 6, 6)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    parameters = list(model.parameters())
    loss = model(images).square().mean()
    loss.backward()
    expected = [p.grad.clone() for p in parameters]
    model.zero_grad()
    model.to("cuda", memory_format=torch.channels_last)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    on_cuda = model(images.to("cuda")).square().mean()
    on_cuda.backward()
    assert on_cuda.item() == pytest.approx(loss.item(), rel=1e-5)
    for parameter, grad in zip(parameters, expected, strict=True):
        assert parameter.grad.is_cuda
        torch.testing.assert_close(parameter.grad.cpu(), grad)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x, c: x + c,
        lambda x, c: torch.cat([x, c]),
        lambda x, c: torch.where(x > 0, x, c),
        lambda x, c: x @ c,
        lambda x, c: F.linear(c[None], x[None]),
        lambda x, c: x.index_add_(0, torch.arange(3), c),
        lambda x, c: c[x.long() - 1],
        lambda x, c: x.clone().__setitem__(x > 0, c),
        lambda x, c: torch.stack([x.sum(), c.sum()]),
        lambda x, c: x + c.to("cuda:1"),
        lambda x, c: x.numpy(),
        lambda x, c: torch.randperm(3, device="cuda", generator=torch.Generator()),
    ],
)
def test_what_cuda_refuses(gpu, operation):
    with pytest.raises((RuntimeError, TypeError), match="device"):
        operation(on_gpu(), torch.ones(3))


def test_what_cuda_takes_from_the_cpu(gpu):
    x, number = on_gpu(), torch.tensor(2.0)
    for result in (x * number, torch.where(x > 1, x, number), x.lerp(x, number), x[[0, 2]]):
        assert result.is_cuda
    x[0] = number
    x.fill_(number)
    x.copy_(torch.ones(3))
    assert x.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (lambda x, m: x + 1, 0),
        (lambda x, m: x[x.long() % 3], 0),
        (lambda x, m: x[0].clone(), 0),
        (lambda x, m: x.masked_fill(m, 0.0), 0),
        (lambda x, m: x.clone().__setitem__(m, 1.0), 0),  # a masked_fill
        (lambda x, m: x.clone().__setitem__(slice(1, 3), 1.0), 0),  # a fill
        (lambda x, m: x.new_full((), 2.0), 0),
        (lambda x, m: torch.arange(4, device=x.device), 0),
        (lambda x, m: x.topk(2), 0),
        (lambda x, m: x.repeat_interleave(x.long(), output_size=6), 0),
        (lambda x, m: torch.ones(3).pin_memory().to("cuda", non_blocking=True), 0),
        (lambda x, m: x[m], 1),
        (lambda x, m: x.clone().__setitem__(m, x[1:]), 1),
        (lambda x, m: x.clone().__setitem__(1, 1.0), 1),  # a copy of one number
        (lambda x, m: x[[0, 1]], 1),
        (lambda x, m: m.nonzero(), 1),
        (lambda x, m: torch.where(m), 1),
        (lambda x, m: x.masked_select(m), 1),
        (lambda x, m: float(x[0]), 1),
        (lambda x, m: bool(m.any()), 1),
        (lambda x, m: x.tolist(), 1),
        (lambda x, m: x.cpu(), 1),
        (lambda x, m: torch.equal(x, x), 1),
        (lambda x, m: x.unique(), 1),
        (lambda x, m: x.long().bincount(), 2),
        (lambda x, m: x.repeat_interleave(x.long()), 1),
        (lambda x, m: torch.tensor([1.0], device="cuda"), 1),
        (lambda x, m: x.new_tensor(1.0), 1),
        (lambda x, m: torch.ones(3).to("cuda"), 1),
        (lambda x, m: x.copy_(torch.ones(3)), 1),
        (lambda x, m: torch.cuda.synchronize(), 1),
    ],
)
def test_waits(gpu, operation, expected):
    x = on_gpu()
    mask = x > 1
    assert waits_of(gpu, lambda: operation(x, mask)) == expected


def test_waits_in_the_backward_pass(gpu):
    x = on_gpu().requires_grad_()
    y = x[x > 1].sum()
    assert waits_of(gpu, y.backward) == 1
    assert next(iter(gpu.waits)).place == "backward of IndexBackward0"


MADE_UP = """
def masked(x):
    return x[x > 1]
def call(x):
    return masked(x)
"""


def test_waits_are_named_by_lines_of_the_product(gpu):
    """The innermost one and the one that called it; in the backward pass with anomaly detection."""
    functions = {}
    exec(compile(MADE_UP, str(ROOT / "models" / "made_up.py"), "exec"), functions)
    x = on_gpu().requires_grad_()
    gpu.waits.clear()
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        functions["call"](x).sum().backward()
    assert [wait.place for wait in gpu.waits] == [
        "models/made_up.py:3, called by models/made_up.py:5",
        "backward of models/made_up.py:3",
    ]


def test_autocast_casts_by_cudas_lists(gpu):
    """Down: what is mostly products. To float32: what sums or can overflow. The rest: nothing."""
    x, weight = torch.rand(1, 2, 4, 4).to("cuda"), torch.rand(2, 2, 1, 1).to("cuda")
    rows = torch.rand(4, 4).to("cuda")
    half = rows.bfloat16()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert F.conv2d(x, weight).dtype == torch.bfloat16
        assert (rows @ rows).dtype == F.linear(rows, rows).dtype == torch.bfloat16
        for up in (half.exp(), half.sum(), F.softmax(half, 0), half.norm(), F.normalize(half)):
            assert up.dtype == torch.float32
        small = F.conv2d(x, weight)
        assert F.interpolate(small, scale_factor=2).dtype == torch.float32
        assert F.cross_entropy(half, torch.tensor([0, 1, 2, 3]).to("cuda")).dtype == torch.float32
        assert torch.addcmul(half, half, rows).dtype == torch.float32  # the widest
        assert torch.addcmul(half, half, half).dtype == half.relu().dtype == torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            assert (rows @ rows).dtype == torch.float32
    assert (rows @ rows).dtype == torch.float32
    assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.float32


def test_every_name_of_an_autocast_list_is_one_of_torch():
    """A name that torch does not know would silently change nothing."""
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if torch._C._dispatch_has_kernel_for_dispatch_key(name, "AutocastCUDA")
    }
    lists = cuda_rules.LOWER_PRECISION | cuda_rules.WIDEST | cuda_rules.LEFT_ALONE
    assert lists <= names


def test_what_nccl_refuses_and_mixes_up(gpu):
    check, images = cuda_rules.check_collective, torch.zeros(2, 3, 4, 4).to("cuda")
    last = images.to(memory_format=torch.channels_last)
    check("c10d::allgather_", [images, images], [], "nccl", 0)
    check("c10d::allreduce_", [last], [images.cpu()], "cpu:gloo,cuda:nccl", 0)
    for shells, plain, current, message in (
        ([], [images.cpu()], 0, "No backend type"),
        ([images], [], 1, "cuda:0 in the process of 1"),
        ([images[..., ::2]], [], 0, "must be contiguous"),
        ([images, last], [], 0, "channels-last"),
    ):
        with pytest.raises(RuntimeError, match=message):
            check("c10d::allgather_", shells, plain, "nccl", current)


def test_random_numbers_come_from_the_seed(gpu):
    torch.manual_seed(3)
    first = torch.rand(3, device="cuda").tolist()
    torch.rand(3)  # the CPU has a generator of its own
    second = torch.rand(3, device="cuda").tolist()
    torch.manual_seed(3)
    assert torch.rand(6, device="cuda").tolist() == first + second


def test_files_say_where_their_tensors_were(tmp_path):
    path = tmp_path / "x.pt"
    with CudaStandIn():
        torch.save({"x": on_gpu(), "y": torch.ones(2)}, path)
        assert torch.load(path, map_location="cpu", weights_only=True)["x"].tolist() == [1, 2, 3]
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
            torch.load(path)
    assert torch.load(path, map_location="cpu", weights_only=True)["y"].tolist() == [1, 1]


def test_memory_that_is_not_pinned(gpu):
    batch = torch.ones(4).pin_memory()
    batch[1:].to("cuda", non_blocking=True)  # a view is pinned, too
    assert not gpu.unpinned
    torch.empty(4, pin_memory=True).to("cuda", non_blocking=True)
    assert not gpu.unpinned
    torch.ones(4).to("cuda", non_blocking=True)
    assert list(gpu.unpinned.values()) == [4]


def test_it_leaves_nothing_behind():
    before = torch.cuda.is_available, torch.Tensor.pin_memory, nn.Module._apply
    with CudaStandIn(), pytest.raises(ValueError, match="stop"):
        raise ValueError("stop")
    assert (torch.cuda.is_available, torch.Tensor.pin_memory, nn.Module._apply) == before
    assert CudaStandIn.running is None
    assert not isinstance(torch.zeros(2), CudaTensor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.rand(2, 2) @ torch.rand(2, 2)).dtype == torch.bfloat16
