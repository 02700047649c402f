"""SGD, selection and snapshots: the same bits on every instruction set and number of threads, and as PyTorch rounds."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.optim.sgd import sgd as functional_sgd

import we_kernels as wk
from tests.banks import DTYPES, FORMATS, place, random_values
from tests.processes import environment
from we_kernels.runtime.torch_rounding import rounding

LEVELS = ("baseline", "avx2", "avx512")
SHAPES = ((29, 1, 3, 3), (19, 16, 3, 3), (7, 37, 1, 1), (5, 18, 5, 5), (15, 70), (67,), (3, 35, 2, 3, 4), (1, 700))
OPTIONS = {"lr": 0.03, "momentum": 0.9, "dampening": 0.1, "weight_decay": 1e-3}


def bits(tensor):
    return tensor.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def on_every_level(native, work):
    results = []
    for level in LEVELS:
        native.limit_simd(level)
        if native.simd() != level:
            continue
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(work())
    assert len(results) >= 3
    return results


@pytest.mark.parametrize("flavour", ["normal", "tiny"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sgd(native, dtype, memory_format, flavour):
    start = [
        [place(random_values(shape, dtype, seed + i, flavour), memory_format) for i, shape in enumerate(SHAPES)]
        for seed in (0, 100, 200)
    ]
    dims = [len(shape) > 1 and i % 2 if i % 3 else None for i, shape in enumerate(SHAPES)]
    dims = [None if dim is None else int(dim) for dim in dims]
    filters = sum(shape[dim] for shape, dim in zip(SHAPES, dims, strict=True) if dim is not None)
    selected = torch.rand(filters, generator=torch.Generator().manual_seed(1)) < 0.5

    def work():
        params, grads, buffers = copy.deepcopy(start)
        tensors = [[case.weight for case in cases] for cases in (params, grads, buffers)]
        wk.asynchronous_sgd_(*tensors, dims, selected, **OPTIONS)
        assert all(case.guards_intact() for case in params + buffers)
        return [case.buffer for case in params + buffers]

    results = on_every_level(native, work)
    for found in results[1:]:
        for a, b in zip(found, results[0], strict=True):
            assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_are_not_finite(native, dtype):
    """NaN stays NaN when it is rounded to a narrow type, in full vectors and in the rest."""
    values = torch.tensor([float("nan"), float("inf"), 1.0, -float("inf"), float(torch.finfo(dtype).max), 0.0, -0.0])
    params, grads = values.repeat(7).to(dtype), values.repeat_interleave(7).to(dtype)

    def work():
        param, buffer = params.clone(), torch.zeros_like(params)
        wk.asynchronous_sgd_([param], [grads], [buffer], [None], torch.empty(0).bool(), **OPTIONS)
        return param, buffer

    with wk.use_backend("torch"):
        wanted = work()
    for found in on_every_level(native, work):
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("replacement", [False, True])
def test_selection(native, replacement):
    bank = wk.FilterBank([torch.zeros(n, 1) for n in (5, 130, 1, 64, 700)])
    results = on_every_level(native, lambda: wk.select_filters(bank, 0.4, seed=9, step=3, replacement=replacement))
    assert all(torch.equal(found, results[0]) for found in results)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_snapshot(native, memory_format):
    cases = [place(random_values(shape, DTYPES[i % 4], i), memory_format) for i, shape in enumerate(SHAPES)]
    bank = wk.FilterBank([case.weight for case in cases])
    selected = wk.select_filters(bank, 0.5, seed=0, step=0)

    def work():
        buffer = wk.unselected_buffer(bank).zero_()
        wk.save_unselected_(bank, selected, buffer)
        return buffer

    results = on_every_level(native, work)
    assert results[0].any()
    assert all(torch.equal(found, results[0]) for found in results)


SIZES = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000, 32767, 32768, 32769, 65537, 98305, 140001)
"""Around the widths of vectors and around the sizes that PyTorch cuts into parts for its threads."""


def step_like_torch(threads):
    """One step on every dtype and size is torch's, bit for bit."""
    torch.set_num_threads(threads)
    for dtype in DTYPES:
        params, grads, buffers = (
            [random_values((size,), dtype, seed + size) for size in SIZES] for seed in (0, 1000, 2000)
        )
        theirs = [copy.deepcopy(tensors) for tensors in (params, grads, buffers)]
        functional_sgd(*theirs, foreach=True, nesterov=False, maximize=False, **OPTIONS)
        wk.asynchronous_sgd_(params, grads, buffers, [None] * len(SIZES), torch.empty(0).bool(), **OPTIONS)
        for ours, wanted in zip(params + buffers, theirs[0] + theirs[2], strict=True):
            assert torch.equal(bits(ours), bits(wanted)), (dtype, len(ours), threads)


@pytest.mark.parametrize("threads", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_sizes_and_threads(native, threads):
    step_like_torch(threads)


@pytest.mark.parametrize("lr", [0.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_signs_of_zeros(native, dtype, lr):
    params, grads = torch.zeros(75, dtype=dtype), torch.zeros(75, dtype=dtype)
    params[::2], grads[::3], grads[1::3] = -0.0, -0.0, 1.0
    options = OPTIONS | {"lr": lr}
    wanted = params.clone()
    functional_sgd(
        [wanted], [grads], [torch.zeros_like(params)], foreach=True, nesterov=False, maximize=False, **options
    )
    wk.asynchronous_sgd_([params], [grads], [torch.zeros_like(params)], [None], torch.empty(0).bool(), **options)
    assert torch.equal(bits(params), bits(wanted))


@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.slow)])
def test_as_torch_rounds_on_older_processors(native, capability):
    """PyTorch uses no fused multiply-add there, if the processor has none: its answer is found out, not assumed."""
    program = "import tests.native.test_asynchronous_bits as t; t.step_like_torch(1); t.step_like_torch(2)"
    settings = environment(ATEN_CPU_CAPABILITY=capability, WE_KERNELS_BACKEND="native")
    subprocess.run([sys.executable, "-c", program], env=settings, check=True)


def test_what_torch_does_here_is_found_out():
    fused, steps = rounding()
    assert steps[:2] == (0, 0)
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert fused
        assert all(step in (16, 32, 64) for step in steps[2:])
