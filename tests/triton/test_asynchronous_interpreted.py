"""Asynchronous updates under Triton's interpreter: roundings of the SGD kernel, launches, tables."""

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

from we_kernels.asynchronous.triton import launches as asynchronous
from we_kernels.asynchronous.triton import sgd
from we_kernels.runtime.triton import launch


@pytest.fixture
def launches():
    seen = []

    def record(name, arguments, constants):
        seen.append((name, arguments, constants))

    launch.observers.append(record)
    yield seen
    launch.observers.remove(record)


def fuses():
    """Whether the interpreter's fused multiply-add is one; it was not in all versions."""
    eps = 2.0**-12
    param, grad = torch.tensor([-(1 + 2 * eps)]), torch.tensor([1 + eps])
    with wk.use_backend("triton"):
        wk.asynchronous_sgd_([param], [grad], None, [None], torch.empty(0).bool(), lr=-(1 + eps))
    return bool(param)


def like_cuda(param, grad, buffer, first, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, **flags):
    """PyTorch's foreach kernels on CUDA: each operation in float32 or wider, rounded to the parameters' dtype."""
    fused = fuses()
    wide, dtype = (torch.float64 if param.dtype == torch.float64 else torch.float32), param.dtype

    def add(a, b, alpha):
        if fused:  # PyTorch's own on a CPU that can
            return torch.add(a.to(wide), b.to(wide), alpha=alpha).to(dtype)
        return (a.to(wide) + b.to(wide) * torch.tensor(alpha, dtype=torch.float64).to(wide)).to(dtype)

    update = -grad if flags.get("maximize") else grad
    if weight_decay:
        update = add(update, param, weight_decay)
    if momentum:
        if first:
            buffer = update
        else:
            shrunk = (buffer.to(wide) * torch.tensor(momentum, dtype=torch.float64).to(wide)).to(dtype)
            buffer = add(shrunk, update, 1 - dampening)
        update = add(update, buffer, momentum) if flags.get("nesterov") else buffer
    return add(param, update, -lr), buffer


OPTIONS = (
    {"lr": 0.1},
    {"lr": 0.03, "momentum": 0.9, "dampening": 0.3, "weight_decay": 5e-4},
    {"lr": 0.03, "momentum": 0.85, "nesterov": True, "weight_decay": 1e-2, "maximize": True},
)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this CPU cannot fuse")
@pytest.mark.parametrize("options", OPTIONS, ids=len)
@pytest.mark.parametrize("memory_format", ["contiguous", "shifted", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounds_like_foreach_on_cuda(dtype, memory_format, options):
    shapes, dims = ((6, 5, 3, 3), (2, 1100), (7,), (4, 6, 3, 3)), (0, None, None, 1)
    cases = [
        [place(random_values(shape, dtype, seed + i), memory_format) for i, shape in enumerate(shapes)]
        for seed in (0, 100, 200)
    ]
    before = copy.deepcopy(cases)
    params, grads, buffers = [[case.weight for case in part] for part in cases]
    selected = torch.rand(12, generator=torch.Generator().manual_seed(3)) < 0.5
    firsts = [True, False, False, False]
    has_momentum = "momentum" in options
    with wk.use_backend("triton"):
        wk.asynchronous_sgd_(
            params, grads, buffers if has_momentum else None, dims, selected, first_step=firsts, **options
        )
    masks = iter(selected.split([6, 6]))
    for i, dim in enumerate(dims):
        old, grad, buffer = (part[i].weight for part in before)
        wanted, wanted_buffer = like_cuda(old, grad, buffer, firsts[i], **options)
        if dim is not None:
            moves = next(masks).view([-1 if d == dim else 1 for d in range(old.dim())])
            wanted = torch.where(moves, wanted, old)
        assert torch.equal(matrix.as_bits(params[i]), matrix.as_bits(wanted)), i
        assert torch.equal(matrix.as_bits(buffers[i]), matrix.as_bits(wanted_buffer)), i
    assert all(case.guards_intact() for part in cases for case in part)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_are_not_finite(dtype):
    large = float(torch.finfo(dtype).max)
    values = torch.tensor([math.nan, math.inf, -math.inf, large, -large, 0.0, 1.0]).to(dtype)
    param, grad = values.repeat(7), values.repeat_interleave(7)
    wanted, _ = like_cuda(param, grad, None, False, 0.5)
    with wk.use_backend("triton"):
        wk.asynchronous_sgd_([param], [grad], None, [None], torch.empty(0).bool(), lr=0.5)
    torch.testing.assert_close(param, wanted, rtol=0, atol=0, equal_nan=True)


def step(layers, dtypes=(torch.float32,)):
    params = [torch.ones(3 + i % 4, 2, 3, 3, dtype=dtypes[i % len(dtypes)]) for i in range(layers)]
    params += [torch.ones(5, dtype=dtypes[0])]
    dims = [0] * layers + [None]
    bank = wk.FilterBank(params[:layers])
    buffer = wk.unselected_buffer(bank)
    with wk.use_backend("triton"):
        selected = wk.select_filters(bank, 0.5, seed=2, step=1)
        wk.save_unselected_(bank, selected, buffer)
        wk.restore_unselected_(bank, selected, buffer)
        wk.asynchronous_sgd_(params, params, params, dims, selected, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("layers", [1, 2, 17])
def test_launches_whatever_the_number_of_layers(launches, layers):
    step(layers)
    assert [name for name, *_ in launches] == ["select_kernel", "snapshot_kernel", "snapshot_kernel", "sgd_kernel"]


def test_one_more_launch_for_each_further_dtype(launches):
    step(4, DTYPES[:3])
    assert [name for name, *_ in launches].count("snapshot_kernel") == 2 * 3
    assert [name for name, *_ in launches].count("sgd_kernel") == 3
    assert [name for name, *_ in launches].count("select_kernel") == 1


def test_every_launch_is_compiled_ahead_of_time(launches):
    from tests.triton import aot_table

    step(4, DTYPES)
    with wk.use_backend("triton"):
        wk.select_filters(wk.FilterBank([torch.ones(3)]), 0.5, seed=0, step=0, replacement=True)
    variants = aot_table.variants()
    ours = {"select_kernel", "snapshot_kernel", "sgd_kernel"}
    listed = {variant.key() for variant in variants if variant.kernel.__name__ in ours}
    found = set()
    for name, arguments, constants in launches:
        found.add(aot_table.key(name, constants))
        assert [aot_table.type_of(argument) for argument in arguments] == aot_table.signature(name), name
    assert found == listed


def test_vector_guard_is_exercised(monkeypatch):
    """A parameter of full blocks, aligned or not, moves in the same way."""
    monkeypatch.setattr(sgd, "BLOCK", 64)
    asynchronous._sgd_tables.cache_clear()
    found = []
    for shift in (0, 1):
        memory = torch.empty(3, 8 + 4 * 81)
        start = -(memory.data_ptr() // 4) % 4
        param, grad, buffer = (
            row[start + shift :][: 4 * 81].view(4, 9, 3, 3).copy_(random_values((4, 9, 3, 3), torch.float32, i))
            for i, row in enumerate(memory)
        )
        assert (param.data_ptr() % 16 == 0) == (shift == 0)
        with wk.use_backend("triton"):
            mask = torch.tensor([True, False, False, True])
            wk.asynchronous_sgd_([param], [grad], [buffer], [0], mask, lr=0.1, momentum=0.9)
        found.append((param.clone(), buffer.clone()))
    asynchronous._sgd_tables.cache_clear()
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
