"""How ranks are chosen: by ratio, by name, by budget."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import we_kernels as wk
from tests.low_rank import networks
from weight_evolution import LowRankProjection
from weight_evolution.low_rank.layers import Layer
from weight_evolution.low_rank.ranks import rank_of_ratio, ranks_for_budget

SIZE = (3, 12, 12)


def convs(*shapes):
    return nn.ModuleList([nn.Conv2d(c, n, k) for n, c, k in shapes])


@pytest.mark.parametrize(
    ("full", "ratio", "rank"),
    [(16, 0.7, 4), (32, 0.7, 9), (64, 0.7, 19), (64, 0.6, 25), (8, 0.0, 8), (2, 0.9, 1), (1, 0.5, 1)],
)
def test_rank_of_ratio(full, ratio, rank):
    assert rank_of_ratio(full, ratio) == rank


def test_default_ratio_and_the_smaller_side():
    # n is min(N, C * kernel): 27 inputs of the first, 40 outputs of the second
    projection = LowRankProjection(convs((50, 3, 3), (40, 50, 3)))
    assert projection.ranks == {"0": 8, "1": 12}


def test_one_ratio_per_layer():
    model = networks.branches()
    projection = LowRankProjection(model, prune_ratio=[0.5, 0.25, 0.75, 0.0, 0.9, 0.6])
    assert projection.layers == list(networks.PAIRS)
    assert projection.ranks == {"stem": 6, "left": 12, "right": 3, "twice_used": 1, "last": 8}
    assert projection.skipped["bare"] == "rank 16 is not smaller than min(16, 144)"


def test_ranks_by_name():
    projection = LowRankProjection(networks.branches(), ranks={"last": 5, "stem": 12, "left": 99})
    assert projection.ranks == {"last": 5}
    assert projection.skipped["bare"] == "no rank was given"
    assert "not smaller than min(12, 27)" in projection.skipped["stem"]
    assert "not smaller than min(16, 108)" in projection.skipped["left"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prune_ratio": 1.0}, ValueError, r"prune_ratio must be in \[0, 1\)"),
        ({"prune_ratio": -0.1}, ValueError, "prune_ratio must be in"),
        ({"prune_ratio": float("nan")}, ValueError, "prune_ratio must be in"),
        ({"prune_ratio": True}, TypeError, "prune_ratio must be a number"),
        ({"prune_ratio": "0.5"}, TypeError, "prune_ratio must be a number"),
        ({"prune_ratio": [0.5, 0.5]}, ValueError, "2 entries for 6 layers: stem, left"),
        ({"prune_ratio": [0.5] * 5 + [2.0]}, ValueError, r"prune_ratio\[5\]"),
        ({"ranks": [3]}, TypeError, "ranks must be a dict"),
        ({"ranks": {"nowhere": 3}}, ValueError, "'nowhere' is not a layer.*stem"),
        ({"ranks": {"depthwise": 3}}, ValueError, "'depthwise'.*20 groups"),
        ({"ranks": {"stem": 0}}, ValueError, r"ranks\['stem'\] must be an integer from 1"),
        ({"ranks": {"stem": 2.0}}, TypeError, r"ranks\['stem'\] must be an integer, got float"),
        ({"ranks": {"stem": 2}, "prune_ratio": 0.5}, ValueError, "one of prune_ratio, ranks and budget"),
        ({"budget": 0.5, "prune_ratio": 0.5}, ValueError, "one of prune_ratio, ranks and budget"),
        ({"budget": 0.5}, ValueError, "needs input_size"),
        ({"budget": 0.0, "input_size": SIZE}, ValueError, r"budget must be in \(0, 1\]"),
        ({"budget": 1.1, "input_size": SIZE}, ValueError, r"budget must be in \(0, 1\]"),
        ({"budget": True, "input_size": SIZE}, TypeError, "budget must be a number"),
        ({"budget": 0.5, "input_size": (3, 0, 5)}, ValueError, "input_size must be"),
        ({"budget": 0.5, "input_size": 32}, ValueError, "input_size must be"),
    ],
)
def test_bad_choices(options, error, message):
    with pytest.raises(error, match=message):
        LowRankProjection(networks.branches(), **options)


@pytest.mark.parametrize("budget", [0.15, 0.3, 0.5, 0.77, 1.0])
def test_budget_is_met_by_the_compact_model(budget):
    projection = LowRankProjection(networks.branches(), budget=budget, input_size=SIZE)
    report = projection.report(SIZE)
    assert report.macs_after <= budget * report.macs_before
    # and used: one more rank of the cheapest layer would not fit (or nothing is cut)
    assert report.macs_after > 0.9 * budget * report.macs_before


def test_budget_counts_example_inputs_of_any_batch():
    small = LowRankProjection(networks.branches(), budget=0.4, input_size=SIZE)
    batch = LowRankProjection(networks.branches(), budget=0.4, example_inputs=torch.zeros(5, *SIZE))
    assert batch.ranks == small.ranks
    assert batch.report().macs_before == 5 * small.report(SIZE).macs_before


def test_budget_that_cannot_be_met_names_one_that_can():
    with pytest.raises(ValueError, match="rank 1 in every layer") as caught:
        LowRankProjection(networks.branches(), budget=0.02, input_size=SIZE)
    reachable = float(str(caught.value).split("every layer ")[1].split()[0])
    projection = LowRankProjection(networks.branches(), budget=reachable, input_size=SIZE)
    assert set(projection.ranks.values()) == {1}
    with pytest.raises(ValueError, match="cannot be met"):
        LowRankProjection(networks.branches(), budget=reachable - 2e-4, input_size=SIZE)


def test_budget_favours_the_layer_whose_energy_needs_it():
    model = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 20, 3, padding=1))
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(model[0].weight.flatten(1), full_matrices=False)
        decaying = (u * (s * 0.4 ** torch.arange(20))) @ vt
        model[0].weight.copy_(decaying.view_as(model[0].weight))
    ranks = LowRankProjection(model, budget=0.5, input_size=(20, 8, 8)).ranks
    assert ranks["0"] < 8 < ranks["2"]


def test_budget_sees_the_batch_norm():
    # Two outputs carry everything behind the BatchNorm, so two ranks are all that is worth keeping.
    same = {"padding": 1}
    model = nn.Sequential(nn.Conv2d(20, 20, 3, **same), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 20, 3, **same))
    model[1].weight.data[2:] = 1e-3
    with_norm = LowRankProjection(model, budget=0.4, input_size=(20, 8, 8)).ranks
    without = LowRankProjection(model, budget=0.4, input_size=(20, 8, 8), rectify_batch_norm=False).ranks
    assert with_norm["0"] == 2 < without["0"]
    assert with_norm["3"] > without["3"]


def test_budget_of_a_model_with_nan_names_the_layer():
    model = networks.branches()
    model.bare.weight.data[3, 2, 1, 0] = float("nan")
    with pytest.raises(wk.NonFiniteWeightError, match=r"bare\.weight"):
        LowRankProjection(model, budget=0.4, input_size=SIZE)


def kept_and_cost(layers, energies, macs, ranks):
    """Sum of the kept shares, and MACs, where two layers that would not save anything are not made."""
    kept = cost = 0.0
    for layer, values, count, rank in zip(layers, energies, macs, ranks, strict=True):
        factored = rank * (layer.rows + layer.columns) * count / (layer.rows * layer.columns)
        if factored >= count:
            rank, factored = layer.full_rank, count
        kept += sum(values[:rank]) / sum(values)
        cost += factored
    return kept, cost


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 24), st.integers(1, 9), st.sampled_from([1, 3])), min_size=1, max_size=5),
    st.floats(0.01, 0.95),
    st.integers(0, 10**6),
)
def test_budget_is_no_worse_than_any_uniform_ratio(shapes, ratio, seed):
    layers = [Layer(str(i), module) for i, module in enumerate(convs(*shapes))]
    random = np.random.default_rng(seed)
    energies = [
        sorted((random.random(layer.full_rank) * random.random() ** np.arange(layer.full_rank)).tolist(), reverse=True)
        for layer in layers
    ]
    macs = [layer.rows * layer.columns * int(random.integers(1, 50)) for layer in layers]
    total = sum(macs) + int(random.integers(0, 1000))
    uniform = [rank_of_ratio(layer.full_rank, ratio) for layer in layers]
    uniform_kept, uniform_cost = kept_and_cost(layers, energies, macs, uniform)
    budget = min(1.0, (uniform_cost + total - sum(macs) + 0.5) / total)

    ranks = ranks_for_budget(layers, energies, macs, total, budget)

    kept, cost = kept_and_cost(layers, energies, macs, ranks)
    assert cost + total - sum(macs) <= budget * total
    assert kept >= uniform_kept - 1e-9
    assert all(1 <= rank <= layer.full_rank for rank, layer in zip(ranks, layers, strict=True))


def test_greedy_beats_uniform_where_layers_differ():
    layers = [Layer(str(i), module) for i, module in enumerate(convs((32, 16, 3), (32, 16, 3)))]
    energies = [[0.5**i for i in range(32)], [1.0] * 32]
    macs = [layer.cost for layer in layers]
    ranks = ranks_for_budget(layers, energies, macs, sum(macs), 0.5)
    kept, cost = kept_and_cost(layers, energies, macs, ranks)
    uniform_kept, uniform_cost = kept_and_cost(layers, energies, macs, [13, 13])
    assert cost <= 0.5 * sum(macs)
    assert uniform_cost > 0.49 * sum(macs)
    assert kept > uniform_kept + 0.15


def test_layer_that_is_never_called_keeps_its_rank():
    layers = [Layer(str(i), module) for i, module in enumerate(convs((32, 16, 3), (32, 16, 3)))]
    ranks = ranks_for_budget(layers, [[1.0] * 32] * 2, [layers[0].cost, 0], layers[0].cost, 0.5)
    assert ranks[0] < 32 == ranks[1]
