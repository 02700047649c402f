"""One rank of test_sharded_grafting: networks over ranks, compared with all of them in one process, here and now.

python -m tests.ranks PROCESSES tests.sharding.grafting_worker FOLDER [case ...]
"""

import copy
import os
import pickle
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import we_kernels as wk
from tests.processes import ROOT
from tests.sharding.networks import make, shard
from tests.sharding.worker import assert_equal, with_error
from weight_evolution import ExchangeError, FilterGrafting
from weight_evolution.grafting import ring

TIMEOUT = timedelta(seconds=60)
SHORT = timedelta(seconds=8)

CASES = {}


def main(folder, *names):
    run(CASES, folder, names)


def run(cases, folder, names):
    """Those of these names, one after the other; the last may lose a rank."""
    torch.set_num_threads(1)
    ring.CHUNK_BYTES = 2000  # several chunks even here
    dist.init_process_group("gloo", timeout=TIMEOUT)
    outcomes = {}
    for name in names:
        function, shape, arguments, _ = cases[name]
        outcomes[name] = "ended"
        torch.save(outcomes, Path(folder) / f"rank-{dist.get_rank()}.pt")
        try:
            function(*arguments, networks=Networks(shape))
            outcomes[name] = "done"
        except (Exception, pytest.fail.Exception):
            outcomes[name] = traceback.format_exc()
    torch.save(outcomes, Path(folder) / f"rank-{dist.get_rank()}.pt")
    os._exit(0)  # one rank may be gone, so wait for none


def names(cases, ranks, slow):
    """Of the cases on so many ranks; those that take long, or the others."""
    return [name for name, (_, shape, _, late) in cases.items() if torch.Size(shape).numel() == ranks and late == slow]


def case(*shape, arguments=(), slow=False, cases=CASES):
    """Registers a function of networks on a mesh of this shape, whose first dimension counts the networks."""

    def register(function):
        name = " ".join(map(str, (function.__name__, "x".join(map(str, shape)), *arguments)))
        cases[name] = (function, shape, arguments, slow)
        return function

    return register


class Networks:
    """A mesh of networks, and where in it this rank is."""

    def __init__(self, shape):
        names = ("network", "replicate", "shard") if len(shape) == 3 else ("network", "shard")
        self.mesh = DeviceMesh("cpu", torch.arange(dist.get_world_size()).view(shape), mesh_dim_names=names)
        self.count = shape[0]
        self.number = self.mesh.get_local_rank("network")
        self.opposite = self.mesh.get_group("network")
        self.own = self.mesh[names[1:]]
        """The mesh of this rank's network."""

    def whole(self, name, dtype=torch.float32):
        """All networks."""
        return [random_statistics(make(name, dtype, seed)) for seed in range(self.count)]

    def sharded(self, name, dtype=torch.float32, **options):
        """That of this rank, spread over its mesh."""
        return shard(self.whole(name, dtype)[self.number], self.own, **options)

    def assert_same_steps(self, wholes, model, steps=1, **options):
        """Grafts both; the same reports and bits, and something changes."""
        alone, spread = FilterGrafting(wholes, **options), FilterGrafting(model, **options)
        for _ in range(steps):
            before = held(model)
            one, other = alone.step().to_dict(), spread.step().to_dict()
            assert (one.pop("own"), other.pop("own")) == (None, self.number)
            assert one == other
            assert alone.state_dict() == spread.state_dict()
            assert_equal(everything(wholes[self.number]), everything(model))
            assert any(not torch.equal(before[name], now) for name, now in held(model).items())
            with torch.no_grad():  # two networks are equal now
                for network, i in [*zip(wholes, range(self.count), strict=True), (model, self.number)]:
                    for parameter in network.parameters():
                        parameter.mul_(parameter.abs() + i)
        alone.load_state_dict(spread.state_dict())


def random_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


def everything(model):
    """Every parameter and buffer, gathered."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
        for name, t in model.state_dict().items()
    }


@case(2, 2, arguments=("resnet", "float16", {"level": "filter"}), slow=True)
@case(2, 2, arguments=("mobilenet", "bfloat16", {"criterion": "filter-entropy", "round_coefficient": True}), slow=True)
@case(2, 2, arguments=("convnext", "float64", {"criterion": "l1", "sharpness": 0.01}), slow=True)
@case(2, 2, arguments=("mobilenet", "float32", {"level": "filter", "bins": 37}))
@case(4, 2, arguments=("resnet", "float16", {"level": "filter"}), slow=True)
@case(2, 4, arguments=("mobilenet", "float32", {"strength": 0.9}), slow=True)
@case(2, 4, arguments=("resnet", "bfloat16", {"level": "filter", "criterion": "filter-entropy"}), slow=True)
@case(2, 2, 2, arguments=("resnet", "float32", {"level": "filter"}), slow=True)
@case(4, 1, arguments=("convnext", "float16", {}), slow=True)
@case(2, 2, 1, arguments=("resnet", "float64", {"level": "filter"}))
@case(2, 2, 1, arguments=("mobilenet", "float32", {"criterion": "filter-entropy"}), slow=True)
@case(2, 2, 2, arguments=("convnext", "float32", {}), slow=True)
def fsdp(name, dtype, options, networks):
    dtype = getattr(torch, dtype)
    networks.assert_same_steps(networks.whole(name, dtype), networks.sharded(name, dtype), **options)


@case(2, 2, arguments=("resnet", {"level": "filter", "criterion": "filter-entropy"}))
@case(2, 2, arguments=("convnext", {}), slow=True)
def mixed_with_whole_parameters(name, options, networks):
    """A convolution, norms and Linears stay whole; the statistics of BatchNorms always are."""
    wholes, model = networks.whole(name), networks.whole(name)[networks.number]
    ignored = nn.BatchNorm2d, nn.LayerNorm, nn.Linear
    whole = {p for m in model.modules() if isinstance(m, ignored) for p in m.parameters()} | {*model[0].parameters()}
    fully_shard(model, mesh=networks.own, ignored_params=whole)
    assert {isinstance(p, DTensor) for p in model.parameters()} == {True, False}
    networks.assert_same_steps(wholes, model, **options)


@case(2, 2, slow=True)
def sharded_parameters_that_take_no_part(networks):
    """Then ranks hold whole networks."""
    wholes, model = networks.whole("resnet"), networks.whole("resnet")[networks.number]
    fully_shard(model[-1], mesh=networks.own)
    alone, spread = FilterGrafting(wholes, exclude=["7"]), FilterGrafting(model, exclude=["7"], ranks_per_network=2)
    alone.step()
    spread.step()
    assert_equal(everything(wholes[networks.number]), everything(model))


@case(2, 2)
def after_validation(networks):
    """The root keeps gathered copies after a forward pass alone."""
    wholes, model = networks.whole("resnet"), networks.sharded("resnet", reshard_after_forward=False)
    for network in (*wholes, model):
        network.eval()
        with torch.no_grad():
            network(torch.ones(1, 3, 8, 8))
    networks.assert_same_steps(wholes, model, steps=2)


@case(2, 2)
def placed_by_hand(networks):
    """Ranks of a network that are not next to each other, and DTensors along other dimensions."""
    everyone = DeviceMesh("cpu", torch.arange(4).view(2, 2), mesh_dim_names=("shard", "network"))
    number, mesh = everyone.get_local_rank("network"), everyone["shard"]
    wholes = []
    for seed in range(2):
        torch.manual_seed(seed)
        layers = nn.ConvTranspose2d(3, 5, 2), nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3), nn.Linear(3, 1)
        wholes.append(random_statistics(nn.Sequential(*layers)))
    model = copy.deepcopy(wholes[number])
    placements = [Shard(1)], [Shard(0)], [Replicate()], [Shard(1)], [Shard(0)]
    for layer, placement in zip(model, placements, strict=True):
        layer.weight = nn.Parameter(distribute_tensor(layer.weight, mesh, placement))
    model[1].weight.requires_grad_(False)
    wholes[0][1].weight.requires_grad_(False)
    wholes[1][1].weight.requires_grad_(False)
    networks.number = number
    ring.CHUNK_BYTES = 1  # each tensor on its own, also what is empty on a rank
    networks.assert_same_steps(wholes, model, level="filter")


@case(2, 2)
def the_page(networks):
    """The examples of docs/grafting.md."""
    text = (ROOT / "docs" / "grafting.md").read_text(encoding="utf-8").split("## Sharded networks", 1)[1]
    codes = text.split("\n## ", 1)[0].split("```python\n")[1:]
    names = {}
    for code, own in zip(codes, (networks.number, None), strict=True):
        exec(code.split("```", 1)[0].replace('torch.distributed.init_process_group("gloo")', ""), names)
        assert names["report"].networks == 2
        assert names["report"].own == own


@case(2, 2)
def traffic(networks):
    """docs/scaling.md, "Grafting"."""
    model = networks.sharded("resnet")
    grafting = FilterGrafting(model, bins=7)
    with counted() as sent:
        grafting.step()
    ranks, convs = 4, sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert sent["all_reduce"] == 8 * (ranks + 2 * 2 * convs) + 8 * (ranks + 2 * (7 * convs + 2))
    own = [tensor for tensor in held(model).values() if tensor.is_floating_point()]
    assert sent["batch_isend_irecv"] == sum(-(-tensor.nbytes // 16) * 16 for tensor in own)
    assert sent["batch_isend_irecv"] < 0.6 * sum(4 * t.numel() for t in everything(model).values())
    assert sent["all_gather_object"] < 2 * 300


@contextmanager
def counted():
    """Bytes that this rank gives to the collectives of a step, and that it sends."""
    sizes = {
        "all_reduce": lambda tensor, *_: tensor.nbytes,
        "batch_isend_irecv": lambda operations: sum(p.tensor.nbytes for p in operations if p.op is dist.isend),
        "all_gather_object": lambda _, own: len(pickle.dumps(own)),
    }
    sent = dict.fromkeys(sizes, 0)

    def counting(name, function):
        def count(*arguments, **options):
            sent[name] += sizes[name](*arguments)
            return function(*arguments, **options)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for name in sizes:
            patch.setattr(dist, name, counting(name, getattr(dist, name)))
        yield sent


def fail(*_):
    raise OSError("no such file")


@case(2, 2)
def a_rank_that_fails_tells_the_others(networks):
    """Wherever it fails; then all go on together."""
    wholes, model = networks.whole("resnet"), networks.sharded("resnet")
    alone, spread = FilterGrafting(wholes), FilterGrafting(model)
    before = held(model)
    network = spread._networks[0]
    for place in ("first_bad", "_ends", "_numbers", "vector"):
        if dist.get_rank() == 2:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(network, place, fail)
                with_error(OSError, "no such file", spread.step)
        else:
            with_error(ExchangeError, "rank 2 failed.*nothing was changed", spread.step)
        assert_equal(before, held(model))
        assert spread.steps == 0
    alone.step()
    spread.step()
    assert_equal(everything(wholes[networks.number]), everything(model))


@case(2, 2)
def a_weight_that_is_not_finite(networks):
    """On one rank: all raise the same, and nothing changes."""
    model = networks.sharded("resnet")
    spread = FilterGrafting(model)
    with torch.no_grad():
        if dist.get_rank() == 3:
            model[2].first.weight.to_local()[0, 0, 0, 0] = float("inf")
    before = held(model)
    with_error(wk.NonFiniteWeightError, r"rank 3: 2.first.weight is NaN or infinite; nothing was changed", spread.step)
    assert_equal(before, held(model))


@case(2, 2)
def what_cannot_work_is_refused_on_all_ranks(networks):
    own, number = networks.own, networks.number

    def refused(kind, pattern, model, **options):
        with_error(kind, pattern, lambda: FilterGrafting(model, **options))

    def by_hand(mesh, placement, layer):
        """A network whose first weight is placed so."""
        held = layer.weight.detach()
        if isinstance(placement, Shard):
            held = held.chunk(mesh.size(), placement.dim)[mesh.get_local_rank()]
        layer.weight = nn.Parameter(DTensor.from_local(held, mesh, [placement]))
        return nn.Sequential(layer, nn.BatchNorm2d(8))

    model = networks.sharded("resnet")
    refused(ValueError, "ranks_per_network=4, but the model is sharded over 2 ranks; leave", model, ranks_per_network=4)
    refused(ValueError, "over the ranks .*, which are not all among the", model, process_group=networks.opposite)
    everyone = DeviceMesh("cpu", torch.arange(4))
    refused(ValueError, "at least 2 networks, 4 ranks with 4 each make 1", shard(make("resnet"), everyone))
    pairs = [DeviceMesh("cpu", pair) for pair in ([0, 1], [1, 2], [2, 3])]
    overlapping = pairs[(0, 1, 1, 2)[dist.get_rank()]]
    refused(ValueError, "of which each must be in one", by_hand(overlapping, Shard(0), nn.Conv2d(4, 8, 3)))
    parts = r"0.weight is a DTensor placed as S.*1.*no rank has whole filters.*Shard\(0\).*exclude=\['0.weight'\]"
    refused(TypeError, parts, by_hand(own, Shard(1), nn.Conv2d(4, 8, 3)))
    refused(TypeError, "0.weight is a DTensor placed as P.*Replicate", by_hand(own, Partial(), nn.Conv2d(4, 8, 3)))
    refused(
        TypeError, "0.weight.*groups.*ignored_params", by_hand(own, Shard(0), nn.ConvTranspose2d(24, 8, 3, groups=8))
    )
    other = by_hand(own, Shard(0) if number else Replicate(), nn.Conv2d(4, 8, 3))
    refused(ValueError, r"rank 2 differs from.*rank 0: 0.weight is .* placed as .*not .*placed as", other)
    two = by_hand(own, Shard(0), nn.Conv2d(4, 8, 3)).append(by_hand(everyone, Shard(0), nn.Conv2d(8, 8, 3)))
    refused(ValueError, "2.0.weight is sharded over .*give fully_shard one mesh", two)
    if dist.get_rank() == 2:
        model = make("resnet")
    refused(ValueError, "rank 2 has the options", model)
    late = make("resnet")
    grafting = FilterGrafting(late, ranks_per_network=2)
    shard(late, own)
    with_error(TypeError, "weight is a DTensor.*shard them first", grafting.step)


@case(2, 2, arguments=("_ends",), slow=True)
@case(2, 2, arguments=("_numbers",), slow=True)
@case(2, 2, arguments=("vector",), slow=True)
def a_rank_that_hangs(place, networks):
    """Before ranges or counts are reduced, or when it has sent weights: the others raise within the time-out."""
    model = networks.sharded("convnext")
    grafting = FilterGrafting(model, process_group=impatient_group())
    if dist.get_rank() == 1:
        setattr(grafting._networks[0], place, lambda *_: time.sleep(2 * SHORT.seconds))
        with pytest.raises(Exception, match=r"time|NoneType|lost"):
            grafting.step()
    else:
        loses_another_rank(grafting, model)


@case(2, 2)
def a_rank_that_ends(networks):
    """When it has received all weights, so that others may have what they need. The last case, for the rank is gone."""
    model = networks.sharded("convnext")
    grafting = FilterGrafting(model, process_group=impatient_group())
    if dist.get_rank() == 1:
        agree = grafting._exchange.agree
        grafting._exchange.agree = lambda compute, what: (
            (compute(), os._exit(0)) if "blended" in what else agree(compute, what)
        )
        grafting.step()
    loses_another_rank(grafting, model)


def impatient_group():
    dist.barrier()  # its ranks must make it within its time-out, too
    return dist.new_group(timeout=SHORT)


def loses_another_rank(grafting, *models):
    before, start = [held(model) for model in models], time.monotonic()
    with_error(ExchangeError, "within the time-out .*the weights of this rank are unchanged", grafting.step)
    assert time.monotonic() - start < 3 * SHORT.seconds
    for old, model in zip(before, models, strict=True):
        assert_equal(old, held(model))
    assert grafting.steps == 0


def held(model):
    """What this rank has of every parameter and buffer."""
    return {
        name: (t.to_local() if isinstance(t, DTensor) else t).detach().clone() for name, t in model.state_dict().items()
    }
