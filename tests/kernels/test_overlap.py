"""filter_overlap: against plain loops in float64, awkward values, bounded memory."""

import subprocess
import sys
import textwrap
from itertools import combinations

import pytest
import torch

import we_kernels as wk
from tests.banks import DTYPES, FORMATS, place, random_values
from we_kernels.overlap import operators, reference

SHAPES = [((7, 5, 3, 3), 0), ((9, 4, 1, 1), 0), ((6, 11), 1), ((13,), 0), ((1, 3, 2, 2), 0), ((8, 1, 3, 3), 0)]
EPS = 2.0**-23


def oracle(weight, dim):
    """Mean and maxima from Python sums of float64."""
    filters = [f.flatten().tolist() for f in weight.double().movedim(dim, 0)]
    norms = [sum(x * x for x in f) ** 0.5 for f in filters]
    maxima, pairs = [0.0] * len(filters), []
    for i, j in combinations(range(len(filters)), 2):
        dot = sum(a * b for a, b in zip(filters[i], filters[j], strict=True))
        cosine = abs(dot) / (norms[i] * norms[j]) if norms[i] * norms[j] else 0.0
        pairs.append(cosine)
        maxima[i], maxima[j] = max(maxima[i], cosine), max(maxima[j], cosine)
    return sum(pairs) / max(len(pairs), 1), maxima


def assert_overlap(found, expected, elements):
    tolerance = (4 + max(elements) ** 0.5) * EPS
    torch.testing.assert_close(found.mean, torch.tensor([mean for mean, _ in expected]), rtol=0, atol=tolerance)
    maxima = torch.tensor([value for _, part in expected for value in part])
    torch.testing.assert_close(found.maximum, maxima, rtol=0, atol=tolerance)


MIXES = {
    **{f"mixed-{memory_format}": (DTYPES[i:] + DTYPES[:i], memory_format) for i, memory_format in enumerate(FORMATS)},
    **{str(dtype): ((dtype,), "contiguous") for dtype in DTYPES},
}
"""Dtypes in turn with every memory format, and each dtype alone."""


@pytest.mark.parametrize("mix", MIXES)
def test_against_plain_loops(backend, mix):
    dtypes, memory_format = MIXES[mix]
    cases = [
        place(random_values(shape, dtypes[i % len(dtypes)], i), memory_format, dim)
        for i, (shape, dim) in enumerate(SHAPES)
    ]
    before = [case.buffer.clone() for case in cases]
    bank = wk.FilterBank([case.weight for case in cases], [case.filter_dim for case in cases])
    expected = [oracle(case.weight, case.filter_dim) for case in cases]
    found = wk.filter_overlap(bank)
    assert_overlap(found, expected, [45])
    assert found.mean.dtype == found.maximum.dtype == torch.float32
    assert all(torch.equal(case.buffer, old) for case, old in zip(cases, before, strict=True))


def test_all_dtypes_in_one_bank_and_more_filters_than_a_tile(backend):
    sizes = (66, 9, 7, 5) if backend == "triton" else (259, 65, 7, 5)
    weights = [random_values((n, 3, 2, 2), dtype, n) for n, dtype in zip(sizes, DTYPES, strict=True)]
    found = wk.filter_overlap(wk.FilterBank(weights))
    expected = []
    for weight in weights:
        rows = torch.nn.functional.normalize(weight.double().flatten(1), dim=1)
        cosine = (rows @ rows.T).abs().fill_diagonal_(0)
        expected.append((float(cosine.sum() / (len(rows) * (len(rows) - 1))), cosine.amax(1).tolist()))
    assert_overlap(found, expected, [12])


def test_rows_longer_than_a_block(backend):
    weight = random_values((5, 67, 3, 3), torch.float32, 4)
    assert_overlap(wk.filter_overlap(wk.FilterBank([weight])), [oracle(weight, 0)], [603])


def test_float64_is_computed_in_float64(backend):
    weight = torch.tensor([[1.0, 0.0], [1.0, 1e-12]], dtype=torch.float64)
    weight[1] = torch.tensor([1e-12, 1.0])
    assert float(wk.filter_overlap(wk.FilterBank([weight])).mean) == pytest.approx(1e-12, rel=1e-6)


def test_known_values(backend):
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    found = wk.filter_overlap(wk.FilterBank([rows[:3].clone(), rows[2:4].clone(), rows[4:].clone(), rows]))
    half = 0.5**0.5
    torch.testing.assert_close(found.mean, torch.tensor([1 / 3, half, 0.0, (1 + 3 * half) / 10]))
    torch.testing.assert_close(found.maximum, torch.tensor([1, 0, 1, half, half, 0, 1, half, 1, half, 0]))
    assert float(found.maximum.max()) <= 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", ["huge", "tiny"])
def test_squares_neither_overflow_nor_vanish(backend, dtype, scale):
    limits = torch.finfo(dtype)
    factor = limits.max / 2 if scale == "huge" else limits.smallest_normal / 64
    weight = (torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64) * factor).to(dtype)
    found = wk.filter_overlap(wk.FilterBank([weight]))
    torch.testing.assert_close(found.mean, torch.tensor([2 * 0.5**0.5 / 3]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_spoil_their_own_layer_only(backend, bad):
    weights = [torch.randn(4, 3, 3, 3), torch.randn(5, 2, 3, 3), torch.randn(1, 2, 3, 3)]
    weights[0][1, 0, 0, 0] = bad
    weights[2][0, 1, 2, 2] = bad
    found = wk.filter_overlap(wk.FilterBank(weights))
    assert found.mean.isnan().tolist() == [True, False, False]
    assert found.maximum.isnan().tolist() == [True] * 4 + [False] * 6
    assert float(found.mean[2]) == float(found.maximum[-1]) == 0.0


def test_layers_without_pairs(backend):
    found = wk.filter_overlap(wk.FilterBank([torch.randn(1, 3), torch.empty(0, 3), torch.ones(2, 3)]))
    assert found.mean.tolist()[:2] == [0.0, 0.0]
    assert float(found.mean[2]) == pytest.approx(1.0, abs=2 * EPS)
    assert found.maximum.tolist()[0] == 0.0
    empty = wk.filter_overlap(wk.FilterBank([]))
    assert empty.mean.shape == empty.maximum.shape == (0,)


def test_is_no_matter_for_autocast(backend):
    bank = wk.FilterBank([torch.randn(6, 50)])
    expected = wk.filter_overlap(bank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = wk.filter_overlap(bank)
    assert torch.equal(found.maximum, expected.maximum)


def test_repeats_bit_for_bit(backend):
    bank = wk.FilterBank([torch.randn(8, 30), torch.randn(5, 3, 3, 3)])
    first, second = wk.filter_overlap(bank), wk.filter_overlap(bank)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.maximum, second.maximum)


def test_operator(backend, opcheck):
    weights = [torch.randn(7, 5, 3, 3), torch.randn(4, 9, 1, 1), torch.randn(11).double()]
    opcheck(torch.ops.we_kernels.filter_overlap.default, (weights, [0, 1, 0], [0, 0, 0]))
    compiled = torch.compile(lambda w: wk.filter_overlap(wk.FilterBank(w)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weights).maximum, wk.filter_overlap(wk.FilterBank(weights)).maximum)


PEAK = """
    import resource, torch, we_kernels as wk
    weight = torch.rand(4096, 512)
    wk.filter_overlap(wk.FilterBank([weight[:300]]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mean = float(wk.filter_overlap(wk.FilterBank([weight])).mean)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, mean)
"""


def test_no_square_matrix_is_kept():
    """4096 filters of 512 elements: 64 MiB of cosines, 8 MiB of weights; the peak grows by some tiles only."""
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK)], capture_output=True, text=True, check=True
    ).stdout
    kib, mean = output.split()
    assert int(kib) < 32 * 1024
    assert float(mean) == pytest.approx(0.75, abs=0.01)  # E[x]^2 / E[x^2] of uniform numbers


def test_native_and_torch_are_one():
    """So that one measurement of memory is enough."""
    assert operators.filter_overlap._choose("native", "cpu")[1] is reference.filter_overlap
