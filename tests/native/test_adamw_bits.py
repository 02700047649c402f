"""AdamW: the same bits on every instruction set and number of threads, and as PyTorch rounds."""

import copy
import math
import subprocess
import sys
import time
from functools import cache

import pytest
import torch
from torch.optim.adam import adam

import we_kernels as wk
from tests.banks import DTYPES, FORMATS, place, random_values
from tests.matrix import as_bits as bits
from tests.native.test_asynchronous_bits import SIZES, on_every_level
from tests.processes import environment
from we_kernels.runtime import torch_rounding

SHAPES = ((29, 1, 3, 3), (20, 16, 3, 3), (8, 37, 1, 1), (5, 18, 5, 5), (15, 70), (67,), (3, 35, 2, 3, 4), (1, 700))
GROUPS = (1, 4, 2, 5, 3, 1, 1, 1)
FORMS = ({}, {"decoupled_weight_decay": False, "amsgrad": True, "maximize": True})
OPTIONS = {"lr": 0.03, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


def resets(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 5, shape[:1], generator=generator).float() for shape in SHAPES]
    sizes = [count * (shape[1] if len(shape) > 1 else 1) for shape, count in zip(SHAPES, GROUPS, strict=True)]
    return rows, [torch.randint(0, 5, (size,), generator=generator).float() for size in sizes]


@pytest.mark.sampled(20)
@pytest.mark.parametrize("form", FORMS, ids=len)
@pytest.mark.parametrize("flavour", ["normal", "tiny"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_level_and_number_of_threads(native, dtype, memory_format, flavour, form):
    start = [
        [place(random_values(shape, dtype, seed + i, flavour), memory_format) for i, shape in enumerate(SHAPES)]
        for seed in (0, 100, 200, 300, 400)
    ]
    for case in start[3] + start[4]:
        case.weight.abs_()

    def work(rows, columns):
        cases = copy.deepcopy(start)
        tensors = [[case.weight for case in part] for part in cases]
        wk.unit_adamw_(*tensors, rows, columns, GROUPS, [5] * len(SHAPES), **OPTIONS | form)
        assert all(case.guards_intact() for part in cases for case in part)
        return [case.buffer for part in cases for case in part]

    for when in ((None, None), resets(1)):
        results = on_every_level(native, lambda when=when: work(*when))
        for found in results[1:]:
            for a, b in zip(found, results[0], strict=True):
                assert torch.equal(bits(a), bits(b))
        with wk.use_backend("torch"):
            wanted = work(*when)
        for a, b in zip(results[0], wanted, strict=True):
            if dtype.itemsize > 2 or memory_format != "sliced":  # there torch's own depend on the layout
                assert bool(((bits(a) == bits(b)) | (a.isnan() & b.isnan())).all())


@cache
def start_of(dtype):
    """Parameters, gradients, means, squares and maxima of every size."""
    tensors = [[random_values((size,), dtype, seed + size) for size in SIZES] for seed in range(0, 5000, 1000)]
    return tensors[:3] + [[tensor.abs() for tensor in part] for part in tensors[3:]]


def step_like_torch(threads):
    """One step on every dtype and size is torch's, bit for bit."""
    torch.set_num_threads(threads)
    for form in FORMS:
        options = OPTIONS | {"amsgrad": False, "maximize": False, "decoupled_weight_decay": True} | form
        beta1, beta2 = options["betas"]
        settings = {name: value for name, value in options.items() if name != "betas"}
        for dtype in DTYPES:
            ours, theirs = copy.deepcopy(start_of(dtype)), copy.deepcopy(start_of(dtype))
            steps = [torch.tensor(4.0) for _ in SIZES]
            adam(*theirs, steps, foreach=True, beta1=beta1, beta2=beta2, **settings)
            wk.unit_adamw_(*ours, None, None, 1, [5] * len(SIZES), **options)
            for i, (part, wanted) in enumerate(zip(ours, theirs, strict=True)):
                for a, b in zip(part, wanted, strict=True):
                    assert torch.equal(bits(a), bits(b)), (i, dtype, len(a), threads, form)


@pytest.mark.parametrize("threads", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_sizes_and_threads(native, threads):
    step_like_torch(threads)


@pytest.mark.parametrize("capability", ["default", pytest.param("avx2", marks=pytest.mark.slow)])
def test_as_torch_rounds_on_older_processors(native, capability):
    program = "import tests.native.test_adamw_bits as t; t.step_like_torch(1); t.step_like_torch(2)"
    settings = environment(ATEN_CPU_CAPABILITY=capability, WE_KERNELS_BACKEND="native")
    subprocess.run([sys.executable, "-c", program], env=settings, check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_square_roots_are_torchs(dtype):
    """Of all magnitudes, by the function that was found; where none was, the processor's own."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(20000, generator=generator, dtype=torch.float64) * 70 - 40
    squares = torch.cat([(10.0**exponents).to(dtype), torch.tensor([0.0, math.inf, math.nan, 1.0, 4.0], dtype=dtype)])
    param, mean = torch.zeros_like(squares), torch.ones_like(squares)
    options = {"lr": 1.0, "betas": (0.0, 1 - 2.0**-53), "eps": 0.0, "weight_decay": 0.0}
    ours = [x.clone() for x in (param, mean, mean, squares)]
    theirs = [x.clone() for x in (param, mean, mean, squares)]
    for backend, tensors in (("native", ours), ("torch", theirs)):
        with wk.use_backend(backend):
            wk.unit_adamw_(*([x] for x in tensors), None, None, None, 1, [1], **options)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0, equal_nan=True)


def test_no_function_where_the_processor_is_right(monkeypatch):
    def fails(*arguments):
        raise AssertionError("not asked")

    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: torch.tensor(list(map(math.sqrt, x.tolist())), dtype=x.dtype))
    assert torch_rounding._square_root(fails, torch.float32) == 0
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda x: x)
    assert torch_rounding._square_root(lambda *arguments: None, torch.float64) == 0  # it does not give these bits


def test_no_team_of_threads_in_each_of_ours(native):
    """MKL starts one at some hundred numbers: a step of two threads then took ten times as much processor time."""
    tensors = [[torch.rand(1 << 20)] for _ in range(4)]

    def used(threads):
        torch.set_num_threads(threads)
        found = []
        for _ in range(5):
            start = time.process_time()
            wk.unit_adamw_(*tensors, None, None, None, 1, [2], lr=0.1)
            found.append(time.process_time() - start)
        return min(found)

    assert used(2) < 4 * used(1)
