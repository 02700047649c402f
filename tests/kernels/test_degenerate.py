"""Zeros, cancellation and non-finite weights: no backend may produce or spread a NaN."""

import itertools

import pytest
import torch

import we_kernels as wk
from tests.banks import DTYPES

SHAPES = {"element": (5, 3, 3, 3), "blend": (6, 4, 1, 1), "rows": (7, 5), "vector": (8,)}


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_zero_layer_keeps_its_values(backend, shape, rule, dtype):
    weight = torch.zeros(shape, dtype=dtype)
    donor = torch.full((shape[0],), -1, dtype=torch.int32)
    donor[2] = 1
    wk.crossover_(wk.FilterBank([weight]), donor, rule)
    assert torch.equal(weight, torch.zeros_like(weight))
    wk.evolve_(wk.FilterBank([weight]), rate=0.9, local_ratio=1.0, rule=rule)
    assert torch.equal(weight, torch.zeros_like(weight))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_zero_filter_takes_its_donor(backend, shape):
    weight = torch.randn(shape) + 2
    weight[3] = 0
    donor = torch.full((shape[0],), -1, dtype=torch.int32)
    donor[3] = 0
    wk.crossover_(wk.FilterBank([weight]), donor)
    if len(shape) == 4 and shape[2] > 1:
        assert torch.equal(weight[3].flatten(1)[:, 0], weight[0].flatten(1).amax(1))  # first of equals, a = 0
        assert torch.equal(weight[3].flatten(1)[:, 1:], torch.zeros(3, 8))
    else:
        assert torch.equal(weight[3], weight[0])


def test_released_rule_where_s_is_minus_l(backend):
    weight = torch.zeros(2, 3, 1, 2).transpose(2, 3).contiguous()  # kernels of 2 x 1
    weight[0, :, 0, 0] = torch.tensor([2.0, 2.0, 2.0])
    weight[1] = torch.tensor([[-2.0, -3.0], [-2.000001, -3.0], [-2.5, -2.5]]).view(3, 2, 1)
    wk.crossover_(wk.FilterBank([weight]), torch.tensor([-1, 0], dtype=torch.int32), "released")
    assert weight[1, 0].flatten().tolist() == [-2.0, -3.0]  # s + l == 0: kept
    assert weight[1, 1, 0].abs() > 1e5  # no bound near it, as released
    assert weight[1, 2].flatten().tolist() == [20.0, 20.0]  # every element equal to s
    assert weight.isfinite().all()


def test_released_rule_leaves_elements_of_the_other_sign(backend):
    weight = torch.tensor([[2.0, 1.0, 0.5, 1.5], [0.5, -0.5, 0.5, 1.0]]).view(2, 1, 4, 1)
    wk.crossover_(wk.FilterBank([weight]), torch.tensor([-1, 0], dtype=torch.int32), "released")
    torch.testing.assert_close(weight[1].flatten(), torch.tensor([0.8, -0.5, 0.8, 1.0]))  # 2 s l / (s + l)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_result_beyond_the_dtype_keeps_the_old_value(backend, dtype):
    big = torch.finfo(dtype).max
    weight = torch.zeros(2, 1, 3, 1, dtype=dtype)
    weight[0] = big
    weight[1] = -big * (1 - torch.finfo(dtype).eps)
    before = weight.clone()
    wk.crossover_(wk.FilterBank([weight]), torch.tensor([-1, 0], dtype=torch.int32), "released")
    assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paper_rule_stays_between_s_and_l(backend, dtype):
    torch.manual_seed(1)
    weight = (torch.randn(20, 7, 3, 3) * 10.0 ** torch.randint(-4, 4, (20, 7, 1, 1))).to(dtype)
    low, high = weight.min(), weight.max()
    wk.evolve_(wk.FilterBank([weight]), rate=0.9, local_ratio=1.0)
    assert weight.min() >= low
    assert weight.max() <= high


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [(0, 0), (1, 3), (2, 0)])
def test_one_bad_weight_stops_the_whole_step(backend, bad, where):
    torch.manual_seed(2)
    weights = [torch.randn(5, 3, 3, 3), torch.randn(6, 4, 1, 1), torch.randn(8)]
    weights[where[0]].view(-1)[where[1]] = bad
    before = [weight.clone() for weight in weights]
    starvation = torch.tensor([3, 5], dtype=torch.int32)
    selection = wk.evolve_(
        wk.FilterBank(weights, groups=[0, 0, 1]), rate=0.9, local_ratio=0.9, starvation=starvation, starvation_limit=1.0
    )
    assert selection.donor.tolist() == [-1] * 19
    assert selection.threshold.isnan().all()
    assert selection.inferior.tolist() == [0, 0, 0]
    assert starvation.tolist() == [3, 5]
    for weight, old in zip(weights, before, strict=True):
        assert torch.equal(weight.nan_to_num(7.0), old.nan_to_num(7.0))


def test_importances_that_are_not_norms(backend):
    bank = wk.FilterBank([torch.randn(4, 2, 3, 3)])
    for bad in (float("nan"), float("inf"), -1.0):
        importance = torch.tensor([1.0, 2.0, bad, 3.0])
        assert wk.match_filters(bank, importance, rate=0.9, local_ratio=1.0).donor.tolist() == [-1] * 4
    signed_zero = torch.tensor([1.0, -0.0, 0.0, 3.0])
    assert wk.match_filters(bank, signed_zero, rate=0.5, local_ratio=0.5).donor.tolist() == [-1, 3, 0, -1]


@pytest.mark.parametrize("by_group", [False, True])
def test_dead_filters_past_the_share_of_the_rate(backend, by_group):
    """Half of the filters are 0, so the threshold is 0 and nothing lies strictly below it."""
    importance = torch.tensor([0.0, 2.0, -0.0, 3.0, 0.0, 5.0, 4.0, 0.0])
    bank = wk.FilterBank([torch.empty(4), torch.empty(4)], groups=[0, 1])
    options = {"rate": 0.2, "local_ratio": 0.1}
    assert wk.match_filters(bank, importance, **options).donor.tolist() == [-1] * 8
    flags = [False, True] if by_group else True
    found = wk.match_filters(bank, importance, **options, zero_is_inferior=flags)
    assert found.donor.tolist() == [*([-1] * 4 if by_group else [3, -1, 1, -1]), 1, -1, -1, 2]
    assert found.threshold.tolist() == [0.0, 0.0]
    assert found.inferior.tolist() == [0 if by_group else 2, 2]


def test_dead_filters_take_their_donors(backend):
    torch.manual_seed(4)
    weight = torch.randn(6, 3, 3, 3)
    weight[2:5] = 0
    counter = torch.zeros(1, dtype=torch.int32)
    options = {"rate": 0.2, "local_ratio": 0.1, "starvation": counter, "starvation_limit": 1.0}
    bank = wk.FilterBank([weight])
    assert wk.evolve_(bank, **options).donor.tolist() == [-1] * 6
    found = wk.evolve_(bank, **options, zero_is_inferior=True)
    assert sorted(found.donor.tolist()) == [-1, -1, -1, 0, 1, 5]
    assert found.inferior.tolist() == [3]
    assert wk.filter_importance(bank).gt(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_subnormals_are_not_flushed(backend, dtype):
    tiny = torch.finfo(dtype).smallest_normal / 64
    weight = torch.full((2, 1, 3, 1), tiny, dtype=dtype)
    weight[0, 0, 1] = 3 * tiny
    wk.crossover_(wk.FilterBank([weight]), torch.tensor([-1, 0], dtype=torch.int32))
    assert weight[1, 0, 0, 0] == pytest.approx(2.5 * float(tiny), rel=0.1)


def test_rules_differ(backend):
    torch.manual_seed(3)
    start = torch.randn(9, 4, 3, 3)
    results = []
    for rule in ("paper", "released"):
        weight = start.clone()
        wk.evolve_(wk.FilterBank([weight]), rate=0.5, local_ratio=1.0, rule=rule)
        results.append(weight)
    for a, b in itertools.combinations([start, *results], 2):
        assert not torch.equal(a, b)
