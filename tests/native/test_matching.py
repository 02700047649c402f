"""Matching against the reference where sorting is hard: many filters, ties, neighbouring and extreme values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import we_kernels as wk
from tests import tiers


def spread(generator, size):
    return torch.rand(size, generator=generator) * 10.0 ** torch.randint(-30, 30, (size,), generator=generator)


FLAVOURS = {
    "uniform": lambda g, n: torch.rand(n, generator=g),
    "spread": spread,
    "ties": lambda g, n: torch.randint(0, 5, (n,), generator=g).float(),
    "one value": lambda g, n: torch.full((n,), 0.25),
    "zeros": lambda g, n: torch.zeros(n) * -1.0,
    "neighbours": lambda g, n: (torch.randint(0, 7, (n,), generator=g, dtype=torch.int32) + 0x3F800000).view(
        torch.float32
    ),
    "two clusters": lambda g, n: torch.rand(n, generator=g) * 1e-6 + (torch.rand(n, generator=g) < 0.6).float(),
    "subnormal": lambda g, n: torch.randint(0, 50, (n,), generator=g, dtype=torch.int32).view(torch.float32),
    "huge": lambda g, n: torch.rand(n, generator=g) * torch.finfo(torch.float32).max,
}


def compare(sizes, flavour, rate, ratio, limit, seed, groups=1, zero_is_inferior=False):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.empty(size) for size in sizes]
    bank = wk.FilterBank(weights, groups=[i % groups for i in range(len(sizes))])
    importance = FLAVOURS[flavour](generator, sum(sizes))
    counters = [None if limit is None else torch.ones(bank.num_groups, dtype=torch.int32) for _ in range(2)]
    arguments = {"rate": rate, "local_ratio": ratio, "starvation_limit": limit, "zero_is_inferior": zero_is_inferior}
    found = wk.match_filters(bank, importance, starvation=counters[0], **arguments)
    with wk.use_backend("torch"):
        expected = wk.match_filters(bank, importance, starvation=counters[1], **arguments)
    assert found.threshold.tolist() == expected.threshold.tolist()
    assert found.inferior.tolist() == expected.inferior.tolist()
    assert torch.equal(found.donor, expected.donor)
    if limit is not None:
        assert torch.equal(*counters)
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_large_layers(flavour, threads):
    torch.set_num_threads(threads)
    sizes = [3000, 1, 64, 1280, 17, 0, 5000, 333]
    for rate, ratio in ((0.2, None), (0.2, 0.9), (0.7, 0.99), (1.0, 1.0), (0.5, 1.0)):
        compare(sizes, flavour, rate, ratio, 1.5, 1, groups=2)


def test_a_large_layer_is_matched():
    found = compare([4000], "uniform", 0.3, None, None, 5)
    assert int((found.donor >= 0).sum()) > 1000


def test_any_layers(request):
    @settings(max_examples=40 if tiers.deselects(request.config) else 300, deadline=None, derandomize=True)
    @given(
        st.lists(st.integers(0, 90), min_size=1, max_size=8),
        st.sampled_from(list(FLAVOURS)),
        st.sampled_from((0.0, 0.05, 0.3, 0.5, 0.9, 1.0)),
        st.sampled_from((None, 0.0, 0.1, 0.5, 0.999, 1.0)),
        st.sampled_from((None, 1.0, 2.5)),
        st.integers(0, 2**16),
        st.integers(1, 3),
        st.booleans(),
    )
    def check(sizes, flavour, rate, ratio, limit, seed, groups, zero_is_inferior):
        compare(sizes, flavour, rate, ratio, limit, seed, groups, zero_is_inferior)

    check()


def test_a_counter_at_its_end_does_not_overflow():
    bank = wk.FilterBank([torch.empty(4)])
    importance = torch.tensor([1.0, 1.0, 1.0, 0.9])
    starvation = torch.tensor([2**31 - 1], dtype=torch.int32)
    wk.match_filters(bank, importance, rate=0.5, local_ratio=0.1, starvation=starvation, starvation_limit=1e300)
    assert starvation.tolist() == [2**31 - 1]
