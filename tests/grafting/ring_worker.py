"""One rank of the cases of test_ring.py; started with a folder to write the outcome of each case to."""

import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.grafting.grafting_networks import clone, small
from weight_evolution import FilterGrafting
from weight_evolution.grafting import ring

TIME_OUT = 3.0


def main(folder, *cases):
    torch.set_num_threads(1)
    ring.CHUNK_BYTES = 600  # several chunks even here
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    rank = dist.get_rank()
    for case in cases:
        group = dist.new_group(timeout=timedelta(seconds=TIME_OUT if case in LOSING else 30))
        outcome = {}
        try:
            outcome = CASES[case](rank, group)
        except Exception as error:
            outcome |= {"error": type(error).__name__, "message": str(error)}
        torch.save(outcome, Path(folder) / f"{case}-{rank}.pt")


def graft(rank, group, *, seed=None, ranks_per_network=1, **options):
    model = small(rank // ranks_per_network if seed is None else seed)
    grafting = FilterGrafting(model, process_group=group, ranks_per_network=ranks_per_network, **options)
    reports = [grafting.step(), grafting.step()]
    return {"after": clone(model), "reports": [report.table() for report in reports]} | {
        "entropies": reports[1].entropies,
        "own": reports[1].own,
        "invalid": (reports[1].invalid_before, reports[1].invalid_after),
    }


def filters(rank, group):
    return graft(rank, group, level="filter")


def half(rank, group):
    model = small(rank).half()
    model.fc.double()
    FilterGrafting(model, process_group=group).step()
    return {"after": clone(model)}


def replicas(rank, group):
    """Two ranks a network. Their weights are equal; the statistics may differ, which must not change coefficients."""
    model = small(rank // 2)
    with torch.no_grad():
        model.norm1.running_mean += rank % 2
    report = FilterGrafting(model, process_group=group, ranks_per_network=2).step()
    return {"after": clone(model), "own": report.own, "networks": report.networks}


def default_group(rank, group):
    model = small(rank)
    FilterGrafting(model).step()
    return {"after": clone(model)}


def other_shape(rank, group):
    FilterGrafting(small(rank, width=6 if rank == 0 else 7), process_group=group)


def other_options(rank, group):
    FilterGrafting(small(rank), process_group=group, strength=0.4 if rank == 0 else 0.3)


def no_convolution(rank, group):
    FilterGrafting(small(rank) if rank else torch.nn.Linear(2, 2), process_group=group)


def changed_later(rank, group):
    model = small(rank)
    grafting = FilterGrafting(model, process_group=group)
    if rank == 1:
        model.double()
    grafting.step()


def not_finite(rank, group):
    model = small(rank)
    grafting = FilterGrafting(model, process_group=group)
    with torch.no_grad():
        if rank == 1:
            model.fc.bias[2] = torch.nan
    return _unchanged_after(model, grafting.step)


def uneven(rank, group):
    FilterGrafting(small(rank), process_group=group, ranks_per_network=2)


def one_network(rank, group):
    FilterGrafting(small(rank), process_group=group, ranks_per_network=dist.get_world_size())


def time_out(rank, group):
    """The last rank does not come to the step."""
    model = small(rank)
    grafting = FilterGrafting(model, process_group=group)
    if rank == dist.get_world_size() - 1:
        time.sleep(TIME_OUT + 2)
        return {}
    return _unchanged_after(model, grafting.step)


def hangs_in_exchange(rank, group):
    """The last rank comes to the step, and then does not send its weights in time."""
    model = small(rank)
    grafting = FilterGrafting(model, process_group=group)
    if rank == dist.get_world_size() - 1:
        grafting._exchange.blend = lambda *_: time.sleep(TIME_OUT + 2)
    return _unchanged_after(model, grafting.step)


def dies_in_exchange(rank, group):
    """The last rank dies when entropies are known, before it has sent its weights.

    To the others it is a connection lost, as by SIGKILL.
    """
    model = small(rank)
    grafting = FilterGrafting(model, process_group=group)
    if rank == dist.get_world_size() - 1:
        grafting._exchange.blend = lambda *_: os._exit(0)
    return _unchanged_after(model, grafting.step)


def dies_before_agreement(rank, group):
    """The last rank dies when it has sent all its weights, so that others have received what they need."""
    model = small(rank)
    grafting = FilterGrafting(model, process_group=group)
    if rank == dist.get_world_size() - 1:
        agree = grafting._exchange.agree
        grafting._exchange.agree = lambda compute, what: (
            (compute(), os._exit(0)) if "blended" in what else agree(compute, what)
        )
    return _unchanged_after(model, grafting.step)


def _unchanged_after(model, step):
    before = clone(model)
    start = time.monotonic()
    try:
        step()
    except Exception as error:
        after = model.state_dict()
        unchanged = all(torch.equal(t.nan_to_num(7.0), before[name].nan_to_num(7.0)) for name, t in after.items())
        return {
            "error": type(error).__name__,
            "message": str(error),
            "unchanged": unchanged,
            "seconds": time.monotonic() - start,
        }
    return {"after": clone(model)}


CASES = {case.__name__: case for case in list(globals().values()) if callable(case) and hasattr(case, "__code__")}

LOSING = {"time_out", "hangs_in_exchange", "dies_in_exchange", "dies_before_agreement"}
