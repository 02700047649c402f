"""One rank of test_sharded_models: every case on all ranks or on a few, compared with one process here and now.

python -m tests.ranks PROCESSES tests.sharding.worker FOLDER
"""

import traceback
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import we_kernels as wk
from tests.sharding.networks import make, resnet, shard
from weight_evolution import (
    AsynchronousSGD,
    AsynchronousUpdate,
    ExchangeError,
    WeightEvolution,
    count_invalid_filters,
    filter_health,
    filter_overlap,
)

MUCH = {"conv_rate": 0.5, "norm_scale_rate": 0.5, "norm_shift_rate": 0.4, "linear_rate": 0.5, "local_ratio": 0.5}
MUCH["schedule"] = lambda rate, epoch: rate
STEPS = 2
TIMEOUT = timedelta(seconds=60)

CASES = {}
FOLDER = []
MESHES = {}
"""Of the first so many ranks, made by all of them together."""


STARTS = (4, 8)


def main(folder, *only):
    run(CASES, folder, *only, starts=STARTS, most=8)


def names(cases, ranks, starts, most):
    """Of the cases that are to run where there are so many ranks.

    Args:
        starts: the numbers of ranks that tests start. A case of a mesh runs on as few of these as will do.
        most: slow cases run on so many, or more.
    """
    found = []
    for name, (_, mesh, _, slow) in cases.items():
        least = max(most if slow else 0, 0 if mesh == "hsdp" else mesh)
        again = mesh != "hsdp" and any(least <= fewer < ranks for fewer in starts)
        if least <= ranks and not again:
            found.append(name)
    return found


def run(cases, folder, *only, most, starts=()):
    """Every case of `names`, on the ranks of its mesh.

    Args:
        only: beginnings of names, of all cases when left out.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    ranks = dist.get_world_size()
    MESHES.update({count: DeviceMesh("cpu", torch.arange(count)) for count in (1, 2, 3, 4, 8) if count <= ranks})
    if ranks % 2 == 0:
        MESHES["hsdp"] = DeviceMesh("cpu", torch.arange(ranks).view(2, -1), mesh_dim_names=("replicate", "shard"))
    FOLDER.append(Path(folder))
    outcomes = {}
    for name in names(cases, ranks, starts, most):
        function, mesh, arguments, _ = cases[name]
        outcomes[name] = None
        if mesh not in MESHES or not is_in(MESHES[mesh]) or not name.startswith(only or ""):
            continue
        try:
            function(MESHES[mesh], *arguments)
            outcomes[name] = "done"
        except (Exception, pytest.fail.Exception):
            outcomes[name] = traceback.format_exc()
    torch.save(outcomes, Path(folder) / f"rank-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


def is_in(mesh):
    """Whether this rank is one of the mesh."""
    return dist.get_rank() in mesh.mesh.flatten().tolist()


def case(mesh, *arguments, slow=False, cases=CASES):
    """Registers a function of a mesh and the arguments; a slow one runs only where there are the most ranks."""

    def register(function):
        name = " ".join(map(str, (function.__name__, mesh, *arguments)))
        cases[name] = (function, mesh, arguments, slow or mesh == 8)
        return function

    return register


def whole(model):
    """Every parameter, gathered."""
    model.reshard() if hasattr(model, "reshard") else None
    return {name: full(p).detach().clone() for name, p in model.named_parameters()}


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_equal(first, second):
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name}: {int((tensor != second[name]).sum())} differ"


def assert_same_steps(alone, sharded, reference, model, steps=STEPS):
    """Both evolutions find and do the same, and something."""
    changed = 0
    for _ in range(steps):
        assert alone.skipped == sharded.skipped
        before = whole(reference)
        one, other = alone.step(), sharded.step()
        assert one.to_dict() == other.to_dict()
        assert_equal(one.importance_after, other.importance_after)
        assert alone.state_dict() == sharded.state_dict()
        after = whole(reference)
        assert_equal(after, whole(model))
        changed += sum(not torch.equal(before[name], after[name]) for name in before)
    assert changed > steps


@case(1, "resnet", "float32", "paper")
@case(2, "resnet", "float32", "paper")
@case(2, "mobilenet", "float64", "released", slow=True)
@case(4, "resnet", "bfloat16", "released")
@case(4, "mobilenet", "float32", "paper")
@case(4, "convnext", "float16", "paper")
@case("hsdp", "convnext", "float32", "paper")
@case(3, "convnext", "float64", "released", slow=True)
@case(8, "resnet", "float32", "paper")
@case(8, "mobilenet", "bfloat16", "paper")
@case(8, "convnext", "float32", "released")
def fsdp(mesh, name, dtype, crossover):
    dtype = getattr(torch, dtype)
    # Odd seeds round, so that there are ties.
    reference, model = make(name, dtype, mesh.size() - 1), make(name, dtype, mesh.size() - 1)
    shard(model, mesh)
    alone, sharded = (WeightEvolution(m, crossover=crossover, **MUCH) for m in (reference, model))
    assert_same_steps(alone, sharded, reference, model)


@case(4, "starving")
@case(4, "inferior shifts")
@case(4, "own importance", slow=True)
@case(4, "torch backend", slow=True)
def options(mesh, which):
    changed = {
        "starving": {"local_ratio": 1e-6, "starvation_divisor": 3.0},
        "inferior shifts": {"norm_shift_rate": "inferior"},
        "own importance": {"importance": lambda bank: wk.filter_importance(bank).sqrt().reciprocal().clamp(max=9)},
    }.get(which, {})
    reference, model = make("resnet"), shard(make("resnet"), mesh)
    alone, sharded = (WeightEvolution(m, **{**MUCH, **changed}) for m in (reference, model))
    if which == "torch backend":
        with wk.use_backend("torch"):
            assert_same_steps(alone, sharded, reference, model)
    else:
        assert_same_steps(alone, sharded, reference, model)


@case(4)
def preview_and_unmeasured(mesh):
    reference, model = make("resnet"), shard(make("resnet"), mesh)
    alone, sharded = (WeightEvolution(m, **MUCH, measure_after=False) for m in (reference, model))
    before = whole(model)
    assert alone.preview().to_dict() == sharded.preview().to_dict()
    assert_equal(before, whole(model))
    one, other = alone.step(), sharded.step()
    assert one.to_dict() == other.to_dict()
    assert_equal(whole(reference), whole(model))


@case(4)
def mixed_with_whole_parameters(mesh):
    """Linears and one convolution stay whole on every rank; a rank whose copy differs follows the first."""
    reference, model = make("convnext"), make("convnext")
    ignored = {*model[3].parameters(), *model[1].widen.parameters()}
    fully_shard(model, mesh=mesh, ignored_params=ignored)
    alone, sharded = (WeightEvolution(m, **MUCH) for m in (reference, model))
    assert not isinstance(model[3].weight, DTensor)
    assert_same_steps(alone, sharded, reference, model)


@case(2, True, slow=True)
@case(2, False)
def after_training_and_validation(mesh, reshard_after_forward):
    """The root keeps gathered copies after a forward pass alone; float32 shards with computation in bfloat16."""
    model = make("resnet")
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=policy)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
    reference = make("resnet")
    sharded = WeightEvolution(model, **MUCH, optimizer=optimizer, optimizer_state="keep")
    alone = WeightEvolution(reference, **MUCH)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).float().square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for name, values in whole(model).items():
                reference.get_parameter(name).copy_(values)
            model(torch.randn(2, 3, 8, 8))
        assert not isinstance(model[1].weight, DTensor)
        assert_same_steps(alone, sharded, reference, model, steps=1)
        with torch.no_grad():  # the next pass sees what was written
            model(torch.randn(2, 3, 8, 8))
            assert torch.equal(model[1].weight, reference[1].weight)


@case(3, "fill")
@case(1, "fill")
@case(2, "reset", slow=True)
@case(2, "keep", slow=True)
def state_of_the_optimizer(mesh, choice):
    check_state_of_the_optimizer(make("convnext"), shard(make("convnext"), mesh), choice, assert_same_steps)


def give_gradients(reference, model):
    """The same random ones to both."""
    for parameter, ours in zip(reference.parameters(), model.parameters(), strict=True):
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
        spread = isinstance(ours, DTensor)
        ours.grad = (
            distribute_tensor(parameter.grad, ours.device_mesh, ours.placements) if spread else parameter.grad.clone()
        )


def check_state_of_the_optimizer(reference, model, choice, assert_same_steps):
    """Its moments, a slow copy of the weights and a sum that is no copy, under names of the optimizer's own."""
    plain, spread = (torch.optim.Adam(network.parameters(), 1e-4, foreach=False) for network in (reference, model))
    give_gradients(reference, model)
    spread.step()
    with torch.no_grad():
        for parameter, ours in zip(reference.parameters(), model.parameters(), strict=True):
            ours_state = spread.state[ours]
            ours_state |= {"slow": ours * 0.9, "energy": ours.square() + 2}
            parameter.copy_(full(ours))
            plain.state[parameter] = {key: full(value).clone() for key, value in ours_state.items()}
    alone, sharded = (
        WeightEvolution(network, **MUCH, optimizer=optimizer, optimizer_state=choice)
        for network, optimizer in ((reference, plain), (model, spread))
    )
    assert_same_steps(alone, sharded, reference, model)
    changed = 0
    for parameter, ours in zip(reference.parameters(), model.parameters(), strict=True):
        for key, value in plain.state[parameter].items():
            if key == "step":
                continue
            there = full(spread.state[ours][key])
            exact = choice != "fill" or key in ("exp_avg", "slow")
            torch.testing.assert_close(there, value, rtol=0 if exact else 1e-6, atol=0)
            changed += key == "slow" and not torch.equal(value, parameter * 0.9)
    assert changed > 2


@case(4, "channels_last")
@case(2, "transposed")
def other_layouts(mesh, which):
    """DTensors that did not come from FSDP2."""
    torch.manual_seed(3)
    kind = nn.ConvTranspose2d if which == "transposed" else nn.Conv2d
    dim = 1 if which == "transposed" else 0
    reference = nn.Sequential(kind(6, 10, 3), nn.BatchNorm2d(10), kind(10, 8, 3))
    with torch.no_grad():
        for layer in (reference[0], reference[2]):
            outputs = layer.weight.shape[dim]
            scale = torch.logspace(-2, 1, outputs).view([-1 if i == dim else 1 for i in range(4)])
            layer.weight.mul_(scale)
            if which == "channels_last":
                layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    model = nn.Sequential(kind(6, 10, 3), nn.BatchNorm2d(10), kind(10, 8, 3))
    model.load_state_dict(reference.state_dict())
    for mine, layer in zip(model, reference, strict=True):
        if not isinstance(mine, kind):
            continue
        rows = layer.weight.detach().chunk(mesh.size(), dim)
        local = rows[mesh.get_rank()] if mesh.get_rank() < len(rows) else layer.weight.detach().narrow(dim, 0, 0)
        weight = layer.weight
        spread = DTensor.from_local(local.clone(), mesh, [Shard(dim)], shape=weight.shape, stride=weight.stride())
        mine.weight = nn.Parameter(spread)
    alone, sharded = (WeightEvolution(m, **MUCH, include=["*"]) for m in (reference, model))
    assert_same_steps(alone, sharded, reference, model)


@case(4, "resnet")
def traffic(mesh, name):
    """docs/scaling.md, "What travels": under 1% of the weights' bytes and the blended rows."""
    torch.manual_seed(0)
    widths = (64, 64, 128, 128)
    layers = [nn.Conv2d(a, b, 3, bias=False) for a, b in pairwise(widths)]
    layers.append(nn.Conv2d(128, 256, 1, bias=False))
    model = nn.Sequential(*layers)
    scales = []
    with torch.no_grad():
        for layer in layers:
            scales.append(torch.logspace(-3, 0, len(layer.weight))[torch.randperm(len(layer.weight))])
            layer.weight.mul_(scales[-1].view(-1, 1, 1, 1))
    shard(model, mesh)
    evolution = WeightEvolution(model, conv_rate=0.2, include=["*"])
    with counted() as sent:
        report = evolution.step()
    ranks, filters = mesh.size(), sum(map(len, report.donors.values()))
    blended = elements = 0
    for layer, donors in zip(layers, report.donors.values(), strict=True):
        rows = (donors >= 0).nonzero().flatten()
        chunk = -(-len(donors) // ranks)
        away = rows // chunk != donors[rows] // chunk
        per_row = 4 * layer.in_channels
        if layer.kernel_size == (1, 1):
            blended += int(away.sum()) * per_row
        else:
            elements += int(away.sum()) * per_row
    assert elements > 0
    assert blended > 0
    total = torch.tensor(sent["all_to_all_single"])
    dist.all_reduce(total, group=mesh.get_group())
    assert int(total) == elements + blended
    assert sent["all_gather"] == 2 * ranks * 4 * (3 + -(-filters // ranks)), "two all-gathers, with a header of 3"
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    assert (int(total) - blended) / ranks + sent["all_gather"] < 0.01 * weights


@contextmanager
def counted():
    """Bytes that this rank receives in all-gathers and sends in all-to-alls."""
    sent = {"all_gather": 0, "all_to_all_single": 0}
    all_gather, all_to_all_single = dist.all_gather, dist.all_to_all_single

    def gathered(tensors, tensor, **options):
        sent["all_gather"] += sum(part.nbytes for part in tensors)
        return all_gather(tensors, tensor, **options)

    def exchanged(output, given, *sizes, **options):
        sent["all_to_all_single"] += given.nbytes
        return all_to_all_single(output, given, *sizes, **options)

    dist.all_gather, dist.all_to_all_single = gathered, exchanged
    try:
        yield sent
    finally:
        dist.all_gather, dist.all_to_all_single = all_gather, all_to_all_single


@case(4)
def a_rank_that_fails_tells_the_others(mesh):
    """In the measuring before and after the crossover; then all go on together."""
    calls = {"failing": None, "seen": 0}

    def importance(bank):
        calls["seen"] += 1
        if calls["seen"] == calls["failing"] and mesh.get_rank() == 2:
            raise OSError("no such file")
        return wk.filter_importance(bank)

    reference, model = make("resnet"), shard(make("resnet"), mesh)
    sharded = WeightEvolution(model, **MUCH, importance=importance)
    alone = WeightEvolution(reference, **MUCH, importance=wk.filter_importance)
    before, state = whole(model), sharded.state_dict()
    for failing in (1, 2):
        calls.update(failing=failing, seen=0)
        if mesh.get_rank() == 2:
            with_error(OSError, "no such file", sharded.step)
        else:
            with_error(ExchangeError, "rank 2 of the group failed.*nothing was changed", sharded.step)
        assert_equal(before, whole(model))
        assert sharded.state_dict() == state
    calls["failing"] = None
    sharded.step()
    alone.step()
    assert_equal(whole(reference), whole(model))


@case(4)
def ranks_that_disagree_are_told(mesh):
    model = shard(make("resnet"), mesh)
    sharded = WeightEvolution(model)
    before = whole(model)
    with_error(
        ExchangeError, "about to do different things.*same epoch, options", lambda: sharded.step(epoch=mesh.get_rank())
    )
    assert_equal(before, whole(model))
    assert sharded.epoch == 0


@case(2)
def a_weight_that_is_not_finite(mesh):
    """On one rank: all raise the same, and nothing changes."""
    model = shard(make("resnet"), mesh)
    sharded = WeightEvolution(model, **MUCH)
    with torch.no_grad():
        if mesh.get_rank() == 1:
            model[2].first.weight.to_local()[0, 0, 0, 0] = float("nan")
    before = {name: part.nan_to_num(77) for name, part in whole(model).items()}
    with_error(wk.NonFiniteWeightError, "2.first.weight", sharded.step)
    assert_equal(before, {name: part.nan_to_num(77) for name, part in whole(model).items()})


@case(2)
def what_cannot_work_is_refused_when_made(mesh):
    def conv(placements, mesh=mesh):
        layer = nn.Conv2d(4, 8, 3)
        held = layer.weight.detach()
        for dim, placement in enumerate(placements):
            if isinstance(placement, Shard):
                held = held.chunk(mesh.size(dim), placement.dim)[mesh.get_local_rank(dim)]
        layer.weight = nn.Parameter(DTensor.from_local(held, mesh, placements))
        return nn.Sequential(layer, nn.BatchNorm2d(8))

    advice = r"0.weight is a DTensor placed as Shard.*2.*Shard\(0\), Shard\(1\) or Replicate\(\).*exclude=\['0'\]"
    with_error(TypeError, advice, lambda: WeightEvolution(conv([Shard(2)])))
    WeightEvolution(conv([Replicate()]), **MUCH).step()
    model = conv([Shard(2)])
    WeightEvolution(model, **MUCH, exclude=["0"]).step()
    grouped = shard(nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), mesh)
    with_error(TypeError, r"0.weight.*groups", lambda: WeightEvolution(grouped))
    grouped = shard(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)), mesh)
    with_error(
        TypeError, r"0.weight is a DTensor, a transposed.*ignored_params.*exclude", lambda: WeightEvolution(grouped)
    )
    model = shard(make("resnet"), mesh)
    with_error(
        ValueError, "cuda_graph=True is not possible with DTensors", lambda: WeightEvolution(model, cuda_graph=True)
    )
    linear = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    fully_shard(linear[0], mesh=mesh, ignored_params={linear[0].bias})
    with_error(TypeError, "0.bias is not spread over the ranks as 0.weight", lambda: WeightEvolution(linear, **MUCH))
    images = torch.randn(1, 3, 8, 8)
    for call in (partial(filter_health, batches=[images]), count_invalid_filters, filter_overlap):
        with_error(TypeError, "0.weight is a DTensor.*gather the model", partial(call, model))
    with torch.no_grad():
        model(images)  # leaves a gathered copy in the root, which a method must not take for the weights
    late = make("resnet")
    evolution = WeightEvolution(late, **MUCH)
    shard(late, mesh)
    with_error(TypeError, r"became a DTensor since; shard the model first", evolution.step)


@case(2, False)
@case(3, True)
def asynchronous_updates(mesh, own_sgd):
    """Any number of ranks moves the same filters, of any placement, without communication."""
    for select, rescale in (("filters", own_sgd), ("input_channels", False)):
        reference, model = make("resnet"), shard(make("resnet"), mesh)
        pair = []
        for network in (reference, model):
            if own_sgd:
                optimizer = AsynchronousSGD(
                    network.parameters(), 1e-5, 0.9, model=network, seed=3, select=select, rescale=rescale
                )
                pair.append((optimizer, optimizer))
            else:
                optimizer = torch.optim.SGD(network.parameters(), 1e-5, 0.9)
                pair.append((optimizer, AsynchronousUpdate(optimizer, network, 0.5, 3, select, rescale=rescale)))
        (plain, alone), (other, sharded) = pair
        start = whole(reference)
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))
        for _ in range(2):
            other.zero_grad()
            model(images).square().mean().backward()
            for name, parameter in model.named_parameters():
                reference.get_parameter(name).grad = parameter.grad.full_tensor()
            assert_equal(alone.selection(), sharded.selection())
            plain.step()
            with counted() as sent:
                other.step()
            assert not any(sent.values())
            assert_equal(whole(reference), whole(model))
        moved = [not torch.equal(start[name], now) for name, now in whole(reference).items()]
        assert all(moved)
        assert all(tensor.isfinite().all() for tensor in whole(reference).values())


class Training:
    """Every method at once, on one batch for all ranks, so that any number of them computes the same gradients."""

    def __init__(self, mesh=None):
        torch.manual_seed(2)
        self.model = resnet()
        if mesh is not None:
            shard(self.model, mesh)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01, 0.9)
        self.update = AsynchronousUpdate(self.optimizer, self.model, seed=5)
        options = {**MUCH, "local_ratio": 1.0, "optimizer": self.optimizer}
        self.evolution = WeightEvolution(self.model, **options)

    def epoch(self):
        generator = torch.Generator().manual_seed(self.evolution.epoch)
        for _ in range(2):
            self.optimizer.zero_grad()
            self.model(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
            self.optimizer.step()
        assert sum(self.evolution.step().inferior.values()) > 0

    def state(self):
        from torch.distributed.checkpoint.state_dict import get_state_dict  # starts threads, so not before the fork

        model, optimizer = get_state_dict(self.model, self.optimizer)
        methods = {"evolution": self.evolution.state_dict(), "update": self.update.state_dict()}
        return {"model": model, "optimizer": optimizer, "methods": methods}

    def load(self, state):
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.evolution.load_state_dict(state["methods"]["evolution"])
        self.update.load_state_dict(state["methods"]["update"])


@case(4, 4, 2)
@case(8, 1, 4)
def a_checkpoint_resumes_on_other_ranks(everyone, ranks, others):
    """torch.distributed.checkpoint, after two of four epochs; compared with one process that never stopped."""
    import torch.distributed.checkpoint as dcp

    mesh, resumed_on = MESHES[ranks], MESHES[others]
    without_stop = Training()
    for _ in range(4):
        without_stop.epoch()
    folder = FOLDER[0] / f"checkpoint-{mesh.size()}"
    if is_in(mesh):
        first = Training(mesh)
        first.epoch()
        first.epoch()
        dcp.save(first.state(), checkpoint_id=folder, process_group=mesh.get_group())
    dist.barrier(everyone.get_group())
    if is_in(resumed_on):
        second = Training(resumed_on)
        state = second.state()
        dcp.load(state, checkpoint_id=folder, process_group=resumed_on.get_group())
        second.load(state)
        assert second.evolution.epoch == 2
        second.epoch()
        second.epoch()
        assert_equal(whole(without_stop.model), whole(second.model))


def with_error(kind, pattern, call):
    with pytest.raises(kind, match=pattern):
        call()
