"""The torch backend against the specification in plain loops, and Figure 1 of the paper."""

import math
from itertools import chain

import pytest
import torch

import we_kernels as wk
from tests import oracle
from tests.banks import DTYPES, FORMATS, place, random_values

SHAPES = [
    (7, 5, 3, 3),
    (9, 4, 1, 1),
    (6, 2, 1, 3),
    (5, 3, 3, 1),
    (11, 6),
    (13,),
    (8, 3, 5),
    (4, 3, 2, 3, 2),
    (10, 1, 5, 5),
]


@pytest.fixture(autouse=True)
def _torch_backend():
    with wk.use_backend("torch"):
        yield


def make(dtype, memory_format, flavour="normal"):
    cases = []
    for i, shape in enumerate(SHAPES):
        dim = 1 if i % 4 == 3 else 0
        cases.append(place(random_values(shape, dtype, i, flavour), memory_format, dim))
    dims = [case.filter_dim for case in cases]
    return cases, wk.FilterBank([case.weight for case in cases], dims, groups=[i % 2 for i in range(len(cases))])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_importance(dtype, memory_format):
    _, bank = make(dtype, memory_format)
    expected = torch.tensor([*chain(*oracle.importances(bank.weights, bank.filter_dims))])
    importance = wk.filter_importance(bank)
    assert importance.dtype == torch.float32
    torch.testing.assert_close(importance, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.61, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.7, 1.0, None])
@pytest.mark.parametrize("limit", [None, 1.0, 2.5])
@pytest.mark.parametrize("flavour", ["normal", "ties", "zeros"])
@pytest.mark.parametrize("zero_is_inferior", [False, True])
def test_matching(rate, ratio, limit, flavour, zero_is_inferior):
    _, bank = make(torch.float32, "contiguous", flavour)
    importance = wk.filter_importance(bank)
    layers = [part.tolist() for part in bank.split(importance)]
    start = [1, 0]
    starvation = None if limit is None else torch.tensor(start, dtype=torch.int32)
    expected = oracle.match(
        layers,
        bank.groups,
        [rate, rate / 2],
        [ratio, 0.5],
        None if limit is None else start,
        limit or math.inf,
        zero_is_inferior,
    )
    found = wk.match_filters(
        bank,
        importance,
        rate=[rate, rate / 2],
        local_ratio=[ratio, 0.5],
        starvation=starvation,
        starvation_limit=limit,
        zero_is_inferior=zero_is_inferior,
    )
    assert [part.tolist() for part in bank.split(found.donor)] == expected[0]
    assert found.threshold.tolist() == expected[1]
    assert found.inferior.tolist() == expected[2]
    if starvation is not None:
        assert starvation.tolist() == expected[3]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("flavour", ["normal", "ties", "zeros"])
def test_crossover(dtype, memory_format, rule, flavour):
    cases, bank = make(dtype, memory_format, flavour)
    donor = wk.match_filters(bank, wk.filter_importance(bank), rate=0.6, local_ratio=None).donor
    assert all(int((part >= 0).sum()) > 0 for part in bank.split(donor)[:2])
    expected = [
        oracle.crossover(case.weight, case.filter_dim, part.tolist(), rule)
        for case, part in zip(cases, bank.split(donor), strict=True)
    ]
    wk.crossover_(bank, donor, rule)
    # The released rule divides by s + l, which cancels; its error is relative to the result's own size.
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    for case, wanted in zip(cases, expected, strict=True):
        torch.testing.assert_close(
            case.weight.double(), wanted.double(), rtol=30 * tolerance, atol=tolerance * float(wanted.abs().max())
        )
        assert case.guards_intact()


def test_figure_1_matching():
    importance = torch.tensor([2.332, 9.752, 0.003, 7.585, 2.568, 0.176, 3.556, 0.058])
    bank = wk.FilterBank([torch.zeros(8, 3, 3, 3)])
    donor = wk.match_filters(bank, importance, rate=0.3, local_ratio=0.01).donor
    assert donor.tolist() == [-1, -1, 3, -1, -1, -1, -1, 1]


def test_figure_1_crossover():
    donor, inferior = torch.full((3, 3, 3), 0.5), torch.full((3, 3, 3), 0.3)
    for c, (large, small) in enumerate([(3.1, 0.04), (4.5, 0.01), (2.8, 0.02)]):
        donor[c, 1, 2], inferior[c, 2, 0] = large, small
    weight = torch.stack([donor, inferior])
    wk.crossover_(wk.FilterBank([weight]), torch.tensor([-1, 0], dtype=torch.int32))
    expected = inferior.clone()
    expected[:, 2, 0] = torch.tensor([3.06, 4.49, 2.78])
    torch.testing.assert_close(weight[1], expected, rtol=0, atol=5e-3)
    assert torch.equal(weight[1][expected == 0.3], expected[expected == 0.3])
    assert torch.equal(weight[0], donor)
