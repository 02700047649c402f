"""Over torch.distributed: gloo on loopback, forked processes. NCCL needs GPUs and is not tested."""

import pytest
import torch

from tests.grafting.grafting_networks import assert_equal, clone, small
from tests.processes import run_ranks
from weight_evolution import FilterGrafting

CASES = {
    2: [
        "graft",
        "half",
        "other_shape",
        "other_options",
        "no_convolution",
        "changed_later",
        "not_finite",
        "hangs_in_exchange",
        "dies_in_exchange",
    ],
    3: ["graft", "filters", "uneven", "time_out", "dies_before_agreement"],
    4: ["graft", "replicas", "default_group", "one_network"],
}


def run_cases(processes, folder, cases):
    """Outcome of each case and rank, where there is one."""
    done = run_ranks(processes, "tests.grafting.ring_worker", folder, *cases)
    outcomes = {
        case: [
            torch.load(path, weights_only=True) if (path := folder / f"{case}-{rank}.pt").exists() else None
            for rank in range(processes)
        ]
        for case in cases
    }
    assert outcomes[cases[0]][0] is not None, done.stderr
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(processes, case) -> outcome of each rank; one start for each number of processes."""
    cache = {}

    def get(processes, case):
        if processes not in cache:
            cache[processes] = run_cases(processes, tmp_path_factory.mktemp("ring"), CASES[processes])
        return cache[processes][case]

    return get


pytestmark = pytest.mark.xdist_group("ring")


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_equals_the_same_networks_in_one_process_bit_for_bit(outcomes, processes):
    models = [small(seed) for seed in range(processes)]
    grafting = FilterGrafting(models)
    reports = [grafting.step(), grafting.step()]
    for rank, outcome in enumerate(outcomes(processes, "graft")):
        assert_equal(models[rank], outcome["after"])
        assert outcome["entropies"] == reports[1].entropies
        assert outcome["invalid"] == (reports[1].invalid_before, reports[1].invalid_after)
        assert outcome["own"] == rank
        for ours, theirs in zip(reports, outcome["reports"], strict=True):
            assert theirs.replace(f", this is network {rank}", "") == ours.table()


def test_level_filter(outcomes):
    models = [small(seed) for seed in range(3)]
    grafting = FilterGrafting(models, level="filter")
    grafting.step()
    grafting.step()
    for model, outcome in zip(models, outcomes(3, "filters"), strict=True):
        assert_equal(model, outcome["after"])


def test_mixed_dtypes(outcomes):
    models = [small(seed).half() for seed in range(2)]
    for model in models:
        model.fc.double()
    FilterGrafting(models).step()
    for model, outcome in zip(models, outcomes(2, "half"), strict=True):
        assert_equal(model, outcome["after"])


def test_several_ranks_of_a_network(outcomes):
    for position in range(2):
        models = [small(0), small(1)]
        for model in models:
            with torch.no_grad():
                model.norm1.running_mean += position
        FilterGrafting(models).step()
        for network in range(2):
            outcome = outcomes(4, "replicas")[2 * network + position]
            assert_equal(models[network], outcome["after"])
            assert (outcome["own"], outcome["networks"]) == (network, 2)


def test_the_default_group(outcomes):
    models = [small(seed) for seed in range(4)]
    FilterGrafting(models).step()
    for model, outcome in zip(models, outcomes(4, "default_group"), strict=True):
        assert_equal(model, outcome["after"])


@pytest.mark.parametrize(
    ("processes", "case", "error", "message"),
    [
        (2, "other_shape", "ValueError", "the network of rank 1 differs from the network of rank 0: conv1.weight is"),
        (2, "other_options", "ValueError", "rank 1 has the options"),
        (2, "changed_later", "ValueError", "differs from the network of rank 0: scale is torch.float64"),
        (2, "not_finite", "NonFiniteWeightError", "rank 1: fc.bias is NaN or infinite; nothing was changed"),
        (3, "uneven", "ValueError", "ranks_per_network=2 does not divide the 3 ranks"),
        (4, "one_network", "ValueError", "at least 2 networks, 4 ranks with 4 each make 1"),
    ],
)
def test_all_ranks_refuse(outcomes, processes, case, error, message):
    for outcome in outcomes(processes, case):
        assert outcome["error"] == error
        assert message in outcome["message"]
        assert outcome.get("unchanged", True)


def test_a_rank_that_cannot_make_its_network(outcomes):
    own, other = outcomes(2, "no_convolution")
    assert own["error"] == "ValueError"
    assert "no convolution" in own["message"]
    assert other["error"] == "ExchangeError"
    assert "rank 0 failed with ValueError: the model has no convolution" in other["message"]


@pytest.mark.parametrize("case", ["time_out", "dies_before_agreement"])
def test_a_lost_rank_leaves_the_others_unchanged(outcomes, case):
    first, second, lost = outcomes(3, case)
    assert not lost
    for outcome in (first, second):
        assert outcome["error"] == "ExchangeError"
        assert "lost another rank, or one did not come within the time-out" in outcome["message"]
        assert "the weights of this rank are unchanged" in outcome["message"]
        assert outcome["unchanged"]
        assert outcome["seconds"] < 10
    phase = {"time_out": "comparing networks", "dies_before_agreement": "agreeing that all have blended"}[case]
    assert f"filter grafting, {phase}: rank 0 of 3" in first["message"]


@pytest.mark.parametrize("case", ["hangs_in_exchange", "dies_in_exchange"])
def test_a_rank_that_does_not_send_its_weights(outcomes, case):
    first, second = outcomes(2, case)
    assert (second is None) == (case == "dies_in_exchange")
    assert first["seconds"] < 10
    assert first["error"] == "ExchangeError"
    assert first["message"].startswith("filter grafting, exchanging weights: rank 0 of 2 lost another rank")
    assert first["unchanged"]


def test_clones_are_different():
    """The networks of the tests differ, so that a ring in the wrong direction shows."""
    a, b = clone(small(0)), clone(small(2))
    assert not torch.equal(a["conv1.weight"], b["conv1.weight"])
