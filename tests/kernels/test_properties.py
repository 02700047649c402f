"""Every backend against the reference on random banks: shapes, dtypes, memory formats, ties, zeros, subnormals."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import we_kernels as wk
from tests.banks import DTYPES, Case, cases

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}

banks = st.lists(cases(), min_size=1, max_size=6)
fractions = st.one_of(st.sampled_from((0.0, 0.1, 0.5, 1.0)), st.floats(0, 1))
ratios = st.one_of(st.none(), fractions)


def bank_of(tensors: list[Case], groups: int = 1) -> wk.FilterBank:
    return wk.FilterBank(
        [case.weight for case in tensors],
        [case.filter_dim for case in tensors],
        groups=[i % groups for i in range(len(tensors))],
    )


def test_importance(backend, examples):
    @examples
    @given(banks)
    def check(tensors):
        bank = bank_of(tensors)
        found = wk.filter_importance(bank)
        with wk.use_backend("torch"):
            expected = wk.filter_importance(bank)
        longest = max(weight.numel() for weight in bank.weights)
        torch.testing.assert_close(found, expected, rtol=EPS[torch.float32] * max(8.0, longest**0.5), atol=0)
        assert all(case.guards_intact() for case in tensors)

    check()


def test_matching(backend, examples):
    @examples
    @given(banks, fractions, fractions, ratios, st.sampled_from((None, 0.5, 1.0, 2.0, 3.5)), st.integers(1, 2))
    def check(tensors, rate, second_rate, ratio, limit, groups):
        bank = bank_of(tensors, groups)
        with wk.use_backend("torch"):
            importance = wk.filter_importance(bank)
        rates = [rate, second_rate][: bank.num_groups]
        counters = [None if limit is None else torch.ones(bank.num_groups, dtype=torch.int32) for _ in range(2)]
        arguments = {"rate": rates, "local_ratio": ratio, "starvation_limit": limit}
        found = wk.match_filters(bank, importance, starvation=counters[0], **arguments)
        with wk.use_backend("torch"):
            expected = wk.match_filters(bank, importance, starvation=counters[1], **arguments)
        assert found.donor.tolist() == expected.donor.tolist()
        assert found.threshold.tolist() == expected.threshold.tolist()
        assert found.inferior.tolist() == expected.inferior.tolist()
        if limit is not None:
            assert counters[0].tolist() == counters[1].tolist()

    check()


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_crossover(backend, examples, rule):
    @examples
    @given(banks, fractions)
    def check(tensors, rate):
        expected = copy.deepcopy(tensors)
        bank, reference = bank_of(tensors), bank_of(expected)
        with wk.use_backend("torch"):
            donor = wk.match_filters(reference, wk.filter_importance(reference), rate=rate, local_ratio=None).donor
            wk.crossover_(reference, donor, rule)
        wk.crossover_(bank, donor, rule)
        for case, wanted in zip(tensors, expected, strict=True):
            assert_crossed_over(case, wanted)

    check()


def test_evolution_is_the_three_operators_in_one(backend, examples):
    @examples
    @given(banks, fractions, st.sampled_from(("paper", "released")), st.sampled_from((1.0, 2.5)))
    def check(tensors, rate, rule, limit):
        expected = copy.deepcopy(tensors)
        bank, reference = bank_of(tensors), bank_of(expected)
        counters = [torch.zeros(1, dtype=torch.int32) for _ in range(2)]
        found = wk.evolve_(bank, rate=rate, local_ratio=0.3, rule=rule, starvation=counters[0], starvation_limit=limit)
        importance = wk.filter_importance(reference)
        assert found.importance.tolist() == importance.tolist()
        selection = wk.match_filters(
            reference, importance, rate=rate, local_ratio=0.3, starvation=counters[1], starvation_limit=limit
        )
        wk.crossover_(reference, selection.donor, rule)
        assert [part.tolist() for part in found] == [part.tolist() for part in selection]
        assert counters[0].tolist() == counters[1].tolist()
        for case, wanted in zip(tensors, expected, strict=True):
            assert torch.equal(case.buffer, wanted.buffer)

    check()


def assert_crossed_over(case: Case, wanted: Case) -> None:
    """Element crossover is bit-equal; a blend differs by the rounding of its two norms (and of the dtype)."""
    dims = wanted.weight.dim()
    kernel = [size for dim, size in enumerate(wanted.weight.shape) if dim not in (0, 1)]
    blends = dims < 3 or kernel[max(len(kernel) - 2, 0)] == 1
    if not blends and case.weight.dtype in (torch.float32, torch.float64):
        assert torch.equal(case.buffer, wanted.buffer)
        return
    eps = EPS[case.weight.dtype]
    scale = wanted.weight.double().abs().amax() if wanted.weight.numel() else torch.tensor(0.0)
    tiny = torch.finfo(case.weight.dtype).smallest_normal * eps
    torch.testing.assert_close(
        case.weight.double(), wanted.weight.double(), rtol=4 * eps, atol=max(4 * eps * float(scale), tiny)
    )
    assert case.guards_intact()


def test_dtypes_are_those_of_the_package():
    assert set(DTYPES) == set(EPS)
