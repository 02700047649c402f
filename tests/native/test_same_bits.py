"""Every instruction set and number of threads gives the same bits, and those of the reference."""

import copy

import pytest
import torch

import we_kernels as wk
from tests.banks import DTYPES, FORMATS, place, random_values

LEVELS = ("baseline", "avx2", "avx512")

# Kernels of 1, 2, 3, 4, 6, 9, 25, 49 elements; channels below, at and above vector widths; rows of 1 to 1,000 elements.
SHAPES = [
    (29, 1, 3, 3),
    (19, 16, 3, 3),
    (7, 37, 3, 3),
    (5, 18, 5, 5),
    (6, 3, 7, 7),
    (11, 20, 3, 1),
    (8, 17, 2, 2),
    (13, 5, 2, 3),
    (9, 33, 1, 1),
    (4, 250, 2, 2, 1),
    (10, 21, 3),
    (3, 35, 2, 3, 4),
    (15, 70),
    (67,),
]


def filter_dims(shape):
    return (0,) if len(shape) == 1 else (0, 1)


def make_bank(dtype, memory_format, flavour="normal"):
    cases = [
        place(random_values(shape, dtype, seed, flavour), memory_format, dim)
        for seed, shape in enumerate(SHAPES)
        for dim in filter_dims(shape)
    ]
    return cases, wk.FilterBank([case.weight for case in cases], [case.filter_dim for case in cases])


def on_every_level(native, work):
    """The results of `work` on each instruction set this processor has, with 1, 2 and 5 threads."""
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


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_importance(native, dtype, memory_format):
    cases, bank = make_bank(dtype, memory_format)
    results = on_every_level(native, lambda: wk.filter_importance(bank))
    with wk.use_backend("torch"):
        expected = wk.filter_importance(bank)
    for found in results:
        assert torch.equal(found, results[0])
    torch.testing.assert_close(results[0], expected, rtol=2e-6, atol=0)
    assert all(case.guards_intact() for case in cases)


ACTIVATIONS = [
    (3, 5, 70, 90),
    (9, 130, 3, 5),
    (40, 7, 6, 6),
    (33, 1200),
    (70, 3, 9),
    (2, 3, 4, 50, 60),
    (3, 2, 200, 600),
    (700, 33),
]
"""Runs and rows, short and long, some of several parts."""


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activity(native, dtype, memory_format):
    cases = [place(random_values(shape, dtype, seed), memory_format) for seed, shape in enumerate(ACTIVATIONS)]

    def work():
        sums = [torch.ones(case.weight.shape[1], dtype=torch.float64) for case in cases]
        for own, case in zip(sums, cases, strict=True):
            wk.add_channel_activity_(own, case.weight)
        return sums

    results = on_every_level(native, work)
    for found in results:
        assert all(torch.equal(a, b) for a, b in zip(found, results[0], strict=True))
    for found, case in zip(results[0], cases, strict=True):
        wanted = 1 + case.weight.double().abs().transpose(0, 1).flatten(1).sum(1)
        torch.testing.assert_close(found, wanted, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)
    assert all(case.guards_intact() for case in cases)


@pytest.mark.sampled(20)
@pytest.mark.parametrize("flavour", ["normal", "ties", "zeros", "tiny"])
@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_crossover(native, dtype, memory_format, rule, flavour):
    start, start_bank = make_bank(dtype, memory_format, flavour)
    donor = odd_rows_learn_from_even_ones(start_bank)

    def bank_of(cases):
        return wk.FilterBank([case.weight for case in cases], [case.filter_dim for case in cases])

    def work():
        cases = copy.deepcopy(start)
        wk.crossover_(bank_of(cases), donor, rule)
        return cases

    expected = copy.deepcopy(start)
    with wk.use_backend("torch"):
        wk.crossover_(bank_of(expected), donor, rule)
    results = on_every_level(native, work)
    for cases in results:
        for found, first in zip(cases, results[0], strict=True):
            assert torch.equal(bits(found.buffer), bits(first.buffer))
    changed = 0
    for found, wanted, before in zip(results[0], expected, start, strict=True):
        changed += int((wanted.weight != before.weight).sum())
        blended = found.weight.dim() < 3 or found.weight.shape[max(found.weight.dim() - 2, 2)] == 1
        if blended:
            assert found.guards_intact()
            torch.testing.assert_close(found.weight, wanted.weight, **blend_tolerance(wanted.weight))
        else:
            assert torch.equal(bits(found.buffer), bits(wanted.buffer))
    assert changed > 100


def odd_rows_learn_from_even_ones(bank):
    generator = torch.Generator().manual_seed(1)
    donors = []
    for size in bank.sizes:
        donor = 2 * torch.randint((size + 1) // 2, (size,), generator=generator, dtype=torch.int32)
        donor[::2] = -1
        donors.append(donor)
    return torch.cat(donors)


def blend_tolerance(weight):
    """Two norms, rounded apart by their order of summation; then one rounding to the dtype."""
    info = torch.finfo(weight.dtype)
    eps = max(info.eps, 2.0**-23 if weight.dtype != torch.float64 else 0.0)
    return {"rtol": 4 * eps, "atol": 4 * eps * float(weight.double().abs().max()) + info.smallest_normal * info.eps}


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@pytest.mark.parametrize("flavour", ["normal", "ties", "zeros"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_evolution(native, dtype, flavour):
    start, _ = make_bank(dtype, "contiguous", flavour)

    def work():
        cases = copy.deepcopy(start)
        weights, dims = [case.weight for case in cases], [case.filter_dim for case in cases]
        bank = wk.FilterBank(weights, dims, groups=[i % 2 for i in range(len(cases))])
        starvation = torch.tensor([0, 1], dtype=torch.int32)
        found = wk.evolve_(
            bank, rate=[0.9, 0.6], local_ratio=[0.95, 0.001], starvation=starvation, starvation_limit=2.5
        )
        return [*found, starvation, *(bits(case.buffer) for case in cases)]

    results = on_every_level(native, work)
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    assert int((results[0][0] >= 0).sum()) > 5


@pytest.mark.sampled(8)
@pytest.mark.parametrize("share", [1.0, 0.97, 0.6, 0.4, 2.0**-20, 2.0**-30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropies_of_a_huge_range(native, dtype, share):
    """Where edges, sums of them and inverses of a bin's width may overflow."""
    most = share * torch.finfo(dtype).max
    generator = torch.Generator().manual_seed(3)
    spread = 2 * torch.rand(7, 700, generator=generator, dtype=torch.float64) - 1
    weights = [torch.tensor([[0.0, 1.0, most]]), *(most * part for part in (spread, spread.abs(), 1 - spread / 500))]
    weights = [weight.to(torch.float64).clamp(-most, most).to(dtype) for weight in weights]
    bank = wk.FilterBank([*weights, *(-weight for weight in weights)])

    def work():
        return [
            wk.weight_entropy(bank, bins, per=per) for bins in (1, 3, 10, 15, 16, 100) for per in ("tensor", "filter")
        ]

    results = on_every_level(native, work)
    with wk.use_backend("torch"):
        expected = work()
    for found in results:
        assert [x.tolist() for x in found] == [x.tolist() for x in expected]


def test_the_programs_float_mode_does_not_matter(native):
    """Subnormal numbers count even where torch was told to flush them to zero."""
    weight = torch.full((4, 16, 3, 3), 1e-40)
    weight[1] *= 0.5
    expected = wk.filter_importance(wk.FilterBank([weight]))
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush")
    try:
        found = wk.filter_importance(wk.FilterBank([weight]))
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(bits(found), bits(expected))
    assert float(expected[1]) > 0
