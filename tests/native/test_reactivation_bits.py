"""Reactivation: the same bits on every instruction set and number of threads, and those of the reference."""

import subprocess
import sys

import pytest
import torch

import we_kernels as wk
from tests.banks import DTYPES, FORMATS
from tests.native.conftest import LEVELS
from tests.processes import environment
from tests.units import GIVEN, TENSORS, UNITS, make_cases, plan_of, targets_of

REVIVED = torch.rand(UNITS, generator=torch.Generator().manual_seed(1)) < 0.3
MEANS = ("scale", "second moment")


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def reactivated(dtype, memory_format, scale):
    """The memory of every tensor, by name, and the tensors in it."""
    cases = make_cases(dtype, memory_format)
    plan = plan_of([case.weight for case in cases])
    targets = targets_of(plan) if scale == "targets" else scale
    wk.reactivate_(plan, REVIVED, seed=2**40 + 5, step=2**33 + 9, scale=targets, given=GIVEN)
    return dict(zip(TENSORS, cases, strict=True))


@pytest.mark.parametrize("scale", ["layer", "initial", "targets"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_the_reference(native, dtype, memory_format, scale):
    native.wake_threads_from(1)
    with wk.use_backend("torch"):
        wanted = reactivated(dtype, memory_format, scale)
    first = None
    for level in LEVELS:
        native.limit_simd(level)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found = reactivated(dtype, memory_format, scale)
            first = first or found
            for name, case in found.items():
                assert torch.equal(bits(case.buffer), bits(first[name].buffer)), (name, level, threads)
    for name, case in first.items():
        draws = "draw" in TENSORS[name][4:]
        if name in MEANS or (scale == "layer" and draws):  # sums in another order
            eps = torch.finfo(case.weight.dtype).eps
            torch.testing.assert_close(case.weight, wanted[name].weight, rtol=2 * max(eps, 2.0**-24), atol=0)
        else:
            assert torch.equal(bits(case.buffer), bits(wanted[name].buffer)), name


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_tensors(native, threads):
    """Many slices per tensor, and sums of many rows."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(2)
    weight, moment = (torch.randn(300, 200, 3, 3, generator=generator) for _ in range(2))
    rows, columns = torch.arange(300), torch.arange(200)
    revived = torch.rand(300, generator=generator) < 0.05
    moment[0, 0], moment[1, 1, 0, 0] = torch.inf, torch.nan
    others = moment[~revived][:, ~revived[:200]].double()
    others = others[others.isfinite()]
    norm = weight[~revived].double().abs().sum() / (~revived).sum()
    kept = weight.clone()
    plan = wk.UnitPlan(
        [
            wk.UnitTensor(weight, rows, columns, row_value="draw", column_value="zero"),
            wk.UnitTensor(moment, rows, columns, row_value="mean", column_value="mean"),
        ],
        300,
    )
    wk.reactivate_(plan, revived, seed=0, step=0)
    for written in (moment[revived], moment[:, revived[:200]]):
        assert len(set(written.flatten().tolist())) == 1
        assert float(written[0, 0, 0, 0]) == pytest.approx(float(others.mean()), rel=1e-7)
    assert (weight[:, revived[:200]] == 0).all()
    assert torch.equal(weight[~revived][:, ~revived[:200]], kept[~revived][:, ~revived[:200]])
    drawn = weight[revived].double().abs().sum((1, 2, 3))
    # Zeroed columns took their share of the norm.
    torch.testing.assert_close(drawn / (~revived[:200]).double().mean(), norm.expand_as(drawn), rtol=0.06, atol=0)


UNTOUCHED = """
import ctypes, mmap
import torch
import we_kernels as wk

def guarded(protection, *shape):
    memory = mmap.mmap(-1, 4 * torch.Size(shape).numel())
    tensor = torch.frombuffer(memory, dtype=torch.float32).view(shape)
    tensor.fill_(1)
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(len(memory)), protection) == 0
    return tensor

none, readable = guarded(0, 64, 64), guarded(1, 64, 64)
free = torch.ones(64, 64)
rows = torch.arange(64)
plan = wk.UnitPlan(
    [
        wk.UnitTensor(none, rows, row_value="draw"),
        wk.UnitTensor(torch.ones(64, 64), rows, row_value="zero"),
        wk.UnitTensor(free, rows + 64, row_value="draw"),
    ],
    128,
)
revived = torch.zeros(128, dtype=torch.bool)
for unit in (None, 70):
    if unit is not None:
        revived[unit] = True
    wk.reactivate_(plan, revived, seed=0, step=0)
assert (free[6] != 1).all() and free.sum() - free[6].sum() == 63 * 64
kept = wk.UnitPlan([wk.UnitTensor(readable, rows), wk.UnitTensor(free, rows, row_value="zero")], 64)
wk.reactivate_(kept, torch.ones(64, dtype=torch.bool), seed=0, step=0)
assert not free.any()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects memory as Linux does")
def test_tensors_without_a_revived_unit_are_neither_read_nor_written():
    """They are in memory where either would end the process."""
    settings = environment(WE_KERNELS_BACKEND="native")
    done = subprocess.run([sys.executable, "-c", UNTOUCHED], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
