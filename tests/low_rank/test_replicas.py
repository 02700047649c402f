"""Gloo processes on loopback: replicas of one network stay equal, or the method refuses."""

import pytest
import torch

from tests.processes import run_ranks

TRAINED = [
    "low-rank",
    "low-rank, SyncBatchNorm",
    "low-rank, budget",
    "low-rank, reset",
    "evolution",
    "evolution, SyncBatchNorm",
    "asynchronous",
    "asynchronous, SyncBatchNorm",
]

pytestmark = pytest.mark.xdist_group("replicas")
counts = pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Number of processes -> what each rank found; one start for each number."""
    cache = {}

    def get(processes):
        if processes not in cache:
            folder = tmp_path_factory.mktemp("replicas")
            done = run_ranks(processes, "tests.low_rank.replicas_worker", folder)
            files = [folder / f"rank-{rank}.pt" for rank in range(processes)]
            cache[processes] = [torch.load(f, weights_only=True) for f in files if f.exists()] or done.stderr
        assert isinstance(cache[processes], list), cache[processes]
        return cache[processes]

    return get


@counts
@pytest.mark.parametrize("case", TRAINED)
def test_replicas_are_bit_equal_after_every_step(outcomes, processes, case):
    first, *others = [rank[case] for rank in outcomes(processes)]
    for other in others:
        assert torch.equal(first["variance"], other["variance"]) == ("SyncBatchNorm" in case)
        assert first.get("ranks") == other.get("ranks")
        for step, (ours, theirs) in enumerate(zip(first["parameters"], other["parameters"], strict=True)):
            for name, tensor in ours.items():
                assert torch.equal(tensor, theirs[name]), (step, name)


@counts
@pytest.mark.parametrize("case", ["grafting, all networks on every rank", "grafting, two ranks a network"])
def test_replicas_are_bit_equal_after_grafting(outcomes, processes, case):
    ranks = [rank[case]["parameters"] for rank in outcomes(processes)]
    for first, second in zip(ranks[::2], ranks[1::2], strict=True):
        for ours, theirs in zip(first, second, strict=True):
            for name, tensor in ours.items():
                assert torch.equal(tensor, theirs[name]), name


@counts
@pytest.mark.parametrize("case", ["grafting", "grafting, by filter", "grafting, wrong count"])
def test_grafting_refuses_replicas_as_networks(outcomes, processes, case):
    for rank in outcomes(processes):
        assert rank[case]["unchanged"]
        assert rank[case]["error"].startswith("ValueError: ")
        assert f"pass ranks_per_network={processes}" in rank[case]["error"]


def test_a_model_without_its_wrapper_warns(outcomes):
    for rank in outcomes(2):
        (warning,) = rank["without wrapper"]["warnings"]
        assert "1 other ranks" in warning
        assert "pass the wrapped model" in warning


def test_a_copy_is_refused(outcomes):
    for rank in outcomes(2):
        assert "belongs to its process group and cannot be copied" in rank["copied"]["error"]
