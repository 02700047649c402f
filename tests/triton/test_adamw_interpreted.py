"""AdamW under Triton's interpreter: roundings of the kernel, ages, launches, tables."""

import copy
import math
import os

import pytest
import torch

import we_kernels as wk
from tests import matrix
from tests.banks import DTYPES, place, random_values

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the interpreter is off", allow_module_level=True)
pytest.importorskip("triton")

from tests.triton.test_asynchronous_interpreted import fuses
from we_kernels.adamw.triton import adamw
from we_kernels.adamw.triton import launches as steps
from we_kernels.runtime.triton import launch

OPTIONS = {"lr": 0.03, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
FORMS = ({}, {"decoupled_weight_decay": False, "amsgrad": True, "maximize": True}, {"betas": (0.3, 0.5)})


@pytest.fixture
def launches():
    seen = []

    def record(name, arguments, constants):
        seen.append((name, arguments, constants))

    launch.observers.append(record)
    yield seen
    launch.observers.remove(record)


def like_cuda(tensors, age, options):
    """PyTorch's foreach kernels on CUDA: each operation in float32 or wider, rounded to the parameters' dtype."""
    param, grad, mean, square, maximum = tensors
    fused, dtype = fuses(), param.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    (beta1, beta2), lr = options["betas"], options["lr"]

    def number(value):
        return torch.tensor(value, dtype=torch.float64).to(wide)

    def add(a, b, alpha):
        if fused:  # PyTorch's own on a CPU that can
            return torch.add(a.to(wide), b.to(wide), alpha=float(alpha)).to(dtype)
        return (a.to(wide) + b.to(wide) * alpha).to(dtype)

    if options.get("maximize"):
        grad = -grad
    if options.get("decoupled_weight_decay", True):
        param = (param.to(wide) * number(1 - lr * options["weight_decay"])).to(dtype)
    else:
        grad = add(grad, param, number(options["weight_decay"]))
    share = number(1 - beta1)
    difference = grad.to(wide) - mean.to(wide)
    mean = add(mean, difference, share) if share < 0.5 else add(grad, difference, share - 1)
    square = (square.to(wide) * number(beta2)).to(dtype)
    square = add(square, grad.to(wide) * grad.to(wide), number(1 - beta2))
    if options.get("amsgrad"):
        maximum = torch.maximum(maximum, square)
    root = torch.tensor(
        [math.sqrt(x) for x in (maximum if options.get("amsgrad") else square).flatten().tolist()], dtype=torch.float64
    ).view_as(param)
    root = (root.to(dtype).to(wide) / number((1 - beta2**age) ** 0.5)).to(dtype)
    root = (root.to(wide) + number(options["eps"])).to(dtype)
    quotient = mean.to(wide) / root.to(wide)
    return add(param, quotient, number(-lr / (1 - beta1**age))), mean, square, maximum


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this CPU cannot fuse")
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("memory_format", ["contiguous", "shifted", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounds_like_foreach_on_cuda(dtype, memory_format, form):
    """Rows of two ages, in several layouts; the corrections of the host, and those of the device."""
    shapes, options = ((6, 5, 3, 3), (2, 1100), (7,)), OPTIONS | form
    cases = [
        [place(random_values(shape, dtype, seed + i), memory_format) for i, shape in enumerate(shapes)]
        for seed in (0, 100, 200, 300, 400)
    ]
    for case in cases[3] + cases[4]:
        case.weight.abs_()
    before = copy.deepcopy(cases)
    rows = [torch.tensor([0.0, 2.0] * 3), None, torch.tensor([2.0] * 7)]
    with wk.use_backend("triton"):
        wk.unit_adamw_(*[[case.weight for case in part] for part in cases], rows, None, 1, [5] * 3, **options)
    for i, row in enumerate(rows):
        old = [part[i].weight for part in before]
        plain, young = (like_cuda(old, age, options) for age in (5, 3))
        param = plain[0]
        if row is not None:
            at = (row > 0).view(-1, *[1] * (param.dim() - 1))
            param = torch.where(at, young[0], param)
        found = [cases[k][i].weight for k in (0, 2, 3, 4)]
        for ours, wanted in zip(found, (param, *plain[1:]), strict=True):
            assert torch.equal(matrix.as_bits(ours), matrix.as_bits(wanted)), i
    assert all(case.guards_intact() for part in cases for case in part)


def step(layers, dtypes=(torch.float32,), young=False, counted=False, apart=0):
    lists = [[torch.ones(3 + i % 4, 2, 3, 3, dtype=dtypes[i % len(dtypes)]) for i in range(layers)] for _ in range(4)]
    lists[0][:apart] = [param.mT for param in lists[0][:apart]]  # they lie otherwise than their gradients
    rows = [torch.ones(3 + i % 4) for i in range(layers)] if young else None
    numbers = [torch.tensor(2.0) if counted else 2.0 for _ in range(layers)]
    with wk.use_backend("triton"):
        wk.unit_adamw_(*lists, None, rows, None, 1, numbers, lr=0.1)


@pytest.mark.parametrize("layers", [1, 17])
def test_launches_whatever_the_number_of_layers(launches, layers):
    step(layers)
    assert [name for name, *_ in launches] == ["adamw_kernel"]
    step(layers, young=True)
    step(layers, counted=True)
    assert [name for name, *_ in launches][1:] == ["correction_kernel", "adamw_kernel"] * 2


def test_one_more_launch_for_each_further_dtype(launches):
    step(4, DTYPES[:3])
    assert [name for name, *_ in launches] == ["adamw_kernel"] * 3


def test_one_more_launch_for_tensors_that_lie_apart(launches):
    step(4, apart=3)
    assert [constants["DENSE"] for _, _, constants in launches] == [True, False]


def test_every_launch_is_compiled_ahead_of_time(launches):
    from tests.triton import aot_table

    step(8, DTYPES, young=True, apart=4)
    ours = {"correction_kernel", "adamw_kernel"}
    listed = {variant.key() for variant in aot_table.variants() if variant.kernel.__name__ in ours}
    found = set()
    for name, arguments, constants in launches:
        found.add(aot_table.key(name, constants))
        assert [aot_table.type_of(argument) for argument in arguments] == aot_table.signature(name), name
    assert found == listed


def test_vector_guard_and_many_tiles(monkeypatch):
    """A parameter of full blocks, aligned or not, moves in the same way; corrections fill several tiles, too."""
    monkeypatch.setattr(adamw, "BLOCK", 64)
    monkeypatch.setattr(adamw, "STRIP", 16)
    monkeypatch.setattr(adamw, "ENTRIES", 8)
    steps._adamw_tables.cache_clear()
    found = []
    for shift in (0, 1):
        memory = torch.empty(4, 8 + 4 * 81)
        start = -(memory.data_ptr() // 4) % 4
        tensors = [
            [row[start + shift :][: 4 * 81].view(4, 9, 3, 3).copy_(random_values((4, 9, 3, 3), torch.float32, i).abs())]
            for i, row in enumerate(memory)
        ]
        assert (tensors[0][0].data_ptr() % 16 == 0) == (shift == 0)
        with wk.use_backend("triton"):
            columns = [(torch.arange(18) % 3).float()]
            wk.unit_adamw_(*tensors, None, None, columns, 2, [4], lr=0.1)
        found.append([part[0].clone() for part in tensors])
    steps._adamw_tables.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
