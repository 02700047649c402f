"""One rank of test_low_rank: every case on all ranks or on a few, compared with one process here and now.

python -m tests.ranks PROCESSES tests.sharding.low_rank_worker FOLDER [beginning of a case's name ...]
"""

import copy
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

import we_kernels as wk
from tests.low_rank.networks import branches
from tests.low_rank.svd_oracle import project, scale_of
from tests.sharding import worker
from tests.sharding.networks import make, shard
from tests.sharding.worker import FOLDER, MESHES, assert_equal, is_in, whole, with_error
from weight_evolution import ExchangeError, LowRankProjection
from weight_evolution.low_rank import compact_like
from weight_evolution.low_rank.sharded_layer import ShardedLayer
from weight_evolution.model.copies import copy_whole
from weight_evolution.model.sharded_state import ShardedState

TOLERANCE = 1e-5
"""Of the largest element of a tensor, or one rounding of its dtype."""

CASES = {}
STARTS = (2, 4, 8)


case = partial(worker.case, cases=CASES)


def main(folder, *only):
    warnings.filterwarnings("ignore", "torch.distributed has .* other ranks")  # of the references
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    worker.run(CASES, folder, *only, starts=STARTS, most=4)


def with_statistics(model, seed):
    """Running variances of its own; scales of either sign and zero, none so small that a row's rounding matters."""
    generator, common = (torch.Generator().manual_seed(number) for number in (seed, 0))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            if module.weight is not None:
                module.weight.data.copy_(torch.rand(module.weight.shape, generator=common) + 0.5)
                module.weight.data[::3] *= -1
                module.weight.data[1::5] = 0
    return model


def pair(mesh, name, dtype=torch.float32):
    """A network of one process, with the first rank's statistics, and the same on shards, with other statistics."""
    reference = with_statistics(make(name, dtype), 0)
    model = with_statistics(make(name, dtype), dist.get_rank())
    return reference, shard(model, mesh)


def load(model, values):
    """Overwrite parameters by whole ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            held, value = parameter, values[name]
            if isinstance(parameter, DTensor):
                held, mesh = parameter.to_local(), parameter.device_mesh
                for dim, placement in enumerate(parameter.placements):
                    if placement.is_shard():
                        rows = -(-len(value) // mesh.size(dim))
                        value = value[rows * mesh.get_local_rank(dim) :][:rows]
            held.copy_(value)


def assert_close(first, second, tolerance=TOLERANCE):
    assert list(first) == list(second)
    for name, expected in first.items():
        most = max(tolerance, torch.finfo(expected.dtype).eps) * float(expected.detach().double().abs().max())
        torch.testing.assert_close(
            second[name], expected, rtol=0, atol=most, msg=lambda text, name=name: f"{name}: {text}"
        )


def same_on_all_ranks(mesh, value):
    """By its text."""
    for dim in range(mesh.ndim):
        found = [None] * mesh.size(dim)
        dist.all_gather_object(found, repr(value), group=mesh.get_group(dim))
        assert len(set(found)) == 1


def assert_same_step(alone, sharded, reference, model, tolerance=TOLERANCE):
    one, other = alone.step(), sharded.step()
    assert one.ranks == other.ranks
    assert one.batch_norms == other.batch_norms
    assert one.skipped == other.skipped
    for name, kept in one.energy_kept.items():
        assert other.energy_kept[name] == pytest.approx(kept, rel=1e-5, nan_ok=True)
    assert_close(whole(reference), whole(model), tolerance)
    return other


def expect_optimal(before, projection, statistics, after, tolerance=TOLERANCE):
    """Every projected weight is that of one singular value decomposition. ``statistics``: a model with the scales."""
    for name, rank in projection.ranks.items():
        norm = projection.batch_norm_pairs.names[name]
        scale = None if norm is None else scale_of(statistics.get_submodule(norm))
        weight, made = before[f"{name}.weight"], after[f"{name}.weight"]
        expected = project(weight, rank, scale)
        most = max(tolerance, torch.finfo(weight.dtype).eps) * float(expected.abs().max())
        torch.testing.assert_close(made.double(), expected, rtol=0, atol=most)


@case(1, "resnet", "float32", False, slow=True)
@case(2, "resnet", "float32", False)
@case(2, "convnext", "float32", True)
@case(2, "mobilenet", "float32", True)
@case(2, "mobilenet", "float64", True, slow=True)
@case(2, "resnet", "bfloat16", True, slow=True)
@case(2, "convnext", "float16", True, slow=True)
@case("hsdp", "resnet", "float32", True)
@case(4, "resnet", "float64", False)
@case(4, "convnext", "bfloat16", True)
@case(4, "mobilenet", "float32", True)
@case(8, "resnet", "float32", True)
@case(8, "mobilenet", "float16", True)
@case(8, "convnext", "float32", True)
def fsdp(mesh, name, dtype, linear):
    """As in one process, and as one decomposition; a second step, warm, after the weights have moved."""
    dtype = getattr(torch, dtype)
    reference, model = pair(mesh, name, dtype)
    alone, sharded = (LowRankProjection(m, prune_ratio=0.5, linear=linear) for m in (reference, model))
    assert alone.skipped == sharded.skipped
    assert alone.ranks == sharded.ranks
    before, statistics = whole(reference), copy.deepcopy(reference)
    for tolerance in (TOLERANCE, 1e-3):
        assert_same_step(alone, sharded, reference, model, tolerance)
        after = whole(model)
        expect_optimal(before, sharded, statistics, after, tolerance)
        changed = [name for name in before if not torch.equal(before[name], after[name])]
        assert changed == [f"{name}.weight" for name in sharded.ranks]
        before = moved(after)
        load(reference, before)
        load(model, before)
        load(statistics, before)
    same_on_all_ranks(mesh, sharded.state_dict())
    same_on_all_ranks(mesh, after)
    assert sharded.steps == 2


@case(2, {"energy_transfer": False})
@case(2, {"rectify_batch_norm": False}, slow=True)
@case(2, {"budget": 0.6, "input_size": (3, 8, 8)})
@case(2, {"ranks": {"2.first": 2, "4.shortcut": 3}}, slow=True)
@case("hsdp", {"budget": 0.6, "input_size": (3, 8, 8)}, slow=True)
def options(mesh, changed):
    reference, model = pair(mesh, "resnet")
    alone, sharded = (LowRankProjection(m, **changed) for m in (reference, model))
    assert_same_step(alone, sharded, reference, model)


@case(2)
@case(4)
def mixed_with_whole_parameters(mesh):
    """Some weights, some norms whole, one norm without parameters; a rank whose copy differs follows the first."""
    reference, model = with_statistics(make("resnet"), 0), with_statistics(make("resnet"), dist.get_rank())
    for network in (reference, model):
        network[4].norm2 = nn.BatchNorm2d(10, affine=False)
        with_statistics(network[4], 0 if network is reference else dist.get_rank())
    whole_ones = {model[2].first.weight, model[2].norm2.weight, model[4].shortcut.weight}
    if mesh.get_rank():
        with torch.no_grad():
            model[2].first.weight.add_(0.1)
            model[2].norm2.weight.mul_(2)
    fully_shard(model, mesh=mesh, ignored_params=whole_ones)
    assert not isinstance(model[2].first.weight, DTensor)
    before = whole(reference)
    alone, sharded = (LowRankProjection(m, prune_ratio=0.5) for m in (reference, model))
    statistics = copy.deepcopy(reference)
    assert sharded.batch_norm_pairs.names["4.second"] == "4.norm2"
    alone.step()
    sharded.step()
    after = whole(model)
    expect_optimal(before, sharded, statistics, after)
    for name in sharded.ranks:
        assert_close({name: reference.get_submodule(name).weight.detach()}, {name: after[f"{name}.weight"]})
    same_on_all_ranks(mesh, {name: after[f"{name}.weight"] for name in sharded.ranks})


@case(2)
def replicated(mesh):
    """DTensors of which every rank has all rows; and a running variance of which none has."""
    reference, model = with_statistics(make("resnet"), 0), with_statistics(make("resnet"), dist.get_rank())
    for layer in (model[2].first, model[4].first):
        layer.weight = nn.Parameter(DTensor.from_local(layer.weight.detach(), mesh, [Replicate()]))
    variance = reference[2].norm2.running_var.chunk(mesh.size())[mesh.get_local_rank()].clone()  # a sharded statistic
    model[2].norm2.running_var = DTensor.from_local(variance, mesh, [Shard(0)], shape=(7,), stride=(1,))
    alone, sharded = (LowRankProjection(m, prune_ratio=0.5) for m in (reference, model))
    assert_same_step(alone, sharded, reference, model)
    same_on_all_ranks(mesh, whole(model))


@case(2, "fill")
@case(2, "reset", slow=True)
@case(2, "keep", slow=True)
@case("hsdp", "fill", slow=True)
def state_of_the_optimizer(mesh, choice):
    """Adam's moments and a slow copy of the weights."""
    reference, model = pair(mesh, "convnext")
    plain, spread = (torch.optim.Adam(network.parameters(), 1e-4) for network in (reference, model))
    generator = torch.Generator().manual_seed(3)
    model(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
    spread.step()
    with torch.no_grad():
        for parameter, ours in zip(reference.parameters(), model.parameters(), strict=True):
            spread.state[ours]["slow"] = ours * 0.9
            parameter.copy_(ours.full_tensor())
            plain.state[parameter] = {
                key: value.full_tensor() if isinstance(value, DTensor) else value.clone()
                for key, value in spread.state[ours].items()
            }
    alone, sharded = (
        LowRankProjection(network, linear=True, optimizer=optimizer, optimizer_state=choice)
        for network, optimizer in ((reference, plain), (model, spread))
    )
    assert_same_step(alone, sharded, reference, model)
    with_moments = 0
    for parameter, ours in zip(reference.parameters(), model.parameters(), strict=True):
        for key, value in plain.state[parameter].items():
            if key != "step":
                there = spread.state[ours][key].full_tensor()
                torch.testing.assert_close(there, value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
                with_moments += key == "exp_avg" and bool((there == 0).all())
    assert (with_moments > 2) == (choice != "keep")


@case(2)
@case(4)
@case(8)
def traffic(mesh):
    """docs/scaling.md, "What travels", of all ranks together."""
    ranks = mesh.size()
    torch.manual_seed(0)
    layers = [nn.Conv2d(24, 32, 3, bias=False), nn.BatchNorm2d(32), nn.Conv2d(32, 96 * ranks, 1, bias=False)]
    layers += [nn.Conv2d(96 * ranks, 48, 1, bias=False), nn.Conv2d(48, 56, 1, bias=False)]
    shapes = [(len(layer.weight), layer.weight[0].numel()) for layer in layers]
    model = shard(nn.Sequential(*layers), mesh)
    projection = LowRankProjection(model, prune_ratio=0.5)
    with received(mesh) as got:
        projection.step()
    total = torch.tensor([got["all_to_all_single"], got["broadcast"]])
    dist.all_reduce(total, group=mesh.get_group())
    expected = 0
    for name, rank in projection.ranks.items():
        rows, columns = shapes[int(name)]
        twice = 2 * 4 * rows * columns // ranks
        triangles = 4 * columns * (columns + 1)
        by_gram = rows > columns and triangles < twice
        assert by_gram == (name == "2" or (name == "4" and ranks == 2))
        expected += (ranks - 1) * (4 * min(rows, columns) * rank + (triangles + 8 if by_gram else twice))
    assert int(total[0]) == expected
    assert int(total[1]) == (ranks - 1) * 8 * 2 * 32
    assert got["all_gather"] == 4 * ranks * (3 + 2 * 32 // ranks) + 4 * ranks * (3 + 8 * len(projection.ranks))
    weights = sum(4 * rows * columns for rows, columns in shapes)
    bases = sum(4 * min(shapes[int(name)]) * rank for name, rank in projection.ranks.items())
    assert int(total[0]) / ranks < 2 / ranks * weights + bases


@contextmanager
def received(mesh):
    """Bytes that this rank receives: of all-gathers its own, too."""
    got = {"all_gather": 0, "all_to_all_single": 0, "broadcast": 0}
    all_gather, all_to_all_single, broadcast = dist.all_gather, dist.all_to_all_single, dist.broadcast

    def gathered(tensors, tensor, **options):
        got["all_gather"] += sum(part.nbytes for part in tensors)
        return all_gather(tensors, tensor, **options)

    def exchanged(output, given, sizes_in, sizes_out, **options):
        got["all_to_all_single"] += sum(sizes_in) - sizes_in[mesh.get_local_rank()]
        return all_to_all_single(output, given, sizes_in, sizes_out, **options)

    def broadcasted(tensor, source, **options):
        got["broadcast"] += tensor.nbytes if dist.get_rank() != source else 0
        return broadcast(tensor, source, **options)

    with patch.multiple(dist, all_gather=gathered, all_to_all_single=exchanged, broadcast=broadcasted):
        yield got


@case(2)
@case("hsdp", slow=True)
def a_rank_that_fails_tells_the_others(mesh):
    """When it looks at the model, projects, and sums up the optimizer's state; then all go on together."""
    reference, model = pair(mesh, "resnet")
    optimizers = [torch.optim.SGD(network.parameters(), 0.1, 0.9) for network in (reference, model)]
    alone, sharded = (
        LowRankProjection(network, optimizer=optimizer, optimizer_state="reset")
        for network, optimizer in zip((reference, model), optimizers, strict=True)
    )
    sharded.step()
    alone.step()
    before, state = whole(model), sharded.state_dict()
    failing = dist.get_rank() == int(mesh.mesh.max())
    places = [(sharded._layers, "look"), (ShardedLayer, "rows_of"), (ShardedState, "sums")]
    if mesh.size(-1) > 1:  # else the first rank does all the work
        places += [(ShardedLayer, "to_owner")]
    if mesh.size(-1) == 2:  # of more ranks the last one may be no layer's owner
        places += [(wk, "project_low_rank_"), (ShardedLayer, "solve")]
    for target, name in places:
        with patch.object(target, name, side_effect=OSError("no such file")) if failing else nullcontext():
            if failing:
                with_error(OSError, "no such file", sharded.step)
            else:
                with_error(ExchangeError, "of the group failed.*nothing was changed", sharded.step)
        assert_equal(before, whole(model))
        assert repr(sharded.state_dict()) == repr(state)
    assert_same_step(alone, sharded, reference, model, 1e-3)


@case(2)
def ranks_that_disagree_are_told(mesh):
    model = shard(make("resnet"), mesh)
    sharded = LowRankProjection(model)
    state = sharded.state_dict()
    before = whole(model)
    if mesh.get_rank():
        sharded.load_state_dict(state | {"steps": 4})
    with_error(ExchangeError, "about to do different things.*projection", sharded.step)
    assert_equal(before, whole(model))
    assert not any(basis.any() for basis in sharded.state_dict()["bases"].values())


@case(2)
def what_is_not_finite(mesh):
    """On one rank: all raise the same, and nothing changes; a norm is told from a weight."""
    for broken in ("2.first.weight", "2.norm1"):
        for check_finite in (True, False):
            model = shard(make("resnet"), mesh)
            sharded = LowRankProjection(model, check_finite=check_finite)
            with torch.no_grad():
                if broken == "2.norm1":
                    model[2].norm1.weight.to_local()[:1] = float("inf")
                elif mesh.get_rank() == 1:
                    model[2].first.weight.to_local()[0, 0, 0, 0] = float("nan")
            before = {name: part.nan_to_num(77) for name, part in whole(model).items()}
            if check_finite:
                with_error(wk.NonFiniteWeightError, broken, sharded.step)
            else:
                report = sharded.step()
                assert not report.finite
                assert set(report.skipped) >= set(report.ranks)
            assert_equal(before, {name: part.nan_to_num(77) for name, part in whole(model).items()})
            assert not any(basis.any() for basis in sharded.state_dict()["bases"].values())


@case(2)
def layers_that_are_left_alone(mesh):
    """They vanish, or their projection is beyond float32; by rows, and by Gram matrices, which tall ones take."""
    for factor, reason in ((1e-9, "largest singular value"), (3e36, "beyond the range of torch.float32")):
        torch.manual_seed(1)
        reference = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 24, 1, bias=False), nn.Conv2d(24, 7, 1))
        with torch.no_grad():
            for layer in list(reference)[:2]:
                layer.weight.div_(layer.weight.abs().max()).mul_(factor)
                if factor > 1:  # the energy of the small ones goes to the large one
                    layer.weight.fill_(0.9 * torch.finfo(torch.float32).max)
                    layer.weight[::2, ::2] *= -1
                    layer.weight[1] *= 0.2
        model = shard(copy.deepcopy(reference), mesh)
        alone, sharded = (LowRankProjection(network, ranks={"0": 1, "1": 1, "2": 3}) for network in (reference, model))
        report = assert_same_step(alone, sharded, reference, model)
        assert [reason in report.skipped.get(name, "") for name in "012"] == [True, True, False], report.skipped


@case(2, slow=True)
def frozen_since(mesh):
    reference, model = pair(mesh, "resnet")
    alone, sharded = (LowRankProjection(network) for network in (reference, model))
    for network in (reference, model):
        network[2].first.weight.requires_grad_(False)
    report = assert_same_step(alone, sharded, reference, model)
    assert report.skipped["2.first"].startswith("frozen")
    for network in (reference, model):
        network.requires_grad_(False)
    report = assert_same_step(alone, sharded, reference, model)
    assert report.ranks == {}


@case(2)
def after_validation(mesh):
    """The root keeps gathered copies after a forward pass alone, in all that looks at weights."""
    reference, model = with_statistics(make("resnet"), 0), with_statistics(make("resnet"), dist.get_rank())
    shard(model, mesh, layers=nn.Conv2d)
    with torch.no_grad():
        model.eval()(torch.randn(2, 3, 8, 8))
    assert not isinstance(model[1].weight, DTensor)
    alone, sharded = (LowRankProjection(network) for network in (reference, model))
    with torch.no_grad():
        model(torch.randn(2, 3, 8, 8))
    assert_same_step(alone, sharded, reference, model)
    with torch.no_grad():
        model(torch.randn(2, 3, 8, 8))
    assert sharded.compact_ranks == alone.compact_ranks


@case(1, slow=True)
@case(2)
@case("hsdp", slow=True)
@case(4)
def compact(mesh):
    """A whole plain model on every rank that shares no memory, and the report, as those of one process."""
    torch.manual_seed(0)
    reference, model = branches(), branches()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and dist.get_rank():
            module.running_var.mul_(1.5)
    shard(model, mesh)
    alone, sharded = (LowRankProjection(network, prune_ratio=0.6, linear=True) for network in (reference, model))
    model.register_forward_hook(print)
    assert_same_step(alone, sharded, reference, model)
    before = whole(model)
    assert sharded.compact_ranks == alone.compact_ranks
    one, other = alone.report((3, 9, 9)), sharded.report((3, 9, 9))
    assert one.to_dict() == other.to_dict()
    made = sharded.compact()
    assert_equal(before, whole(model))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert not any(isinstance(tensor, DTensor) for tensor in (*made.parameters(), *made.buffers()))
    assert [type(module) for module in made.modules()] == [type(module) for module in alone.compact().modules()]
    assert "FSDP" not in repr(made)
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))
    for name, buffer in made.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name))
        buffer.copy_(reference.get_buffer(name))
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(images), reference.eval()(images), rtol=1e-4, atol=1e-4)
    compact_like(branches(), sharded.compact_ranks).load_state_dict(made.state_dict())
    with torch.no_grad():
        for parameter in (*made.parameters(), *copy_whole(model).parameters()):
            parameter.zero_()
    assert_equal(before, whole(model))


@case(2)
def what_cannot_work_is_refused_when_made(mesh):
    def sharded_by(placements, mesh, part="weight", layer=0):
        model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
        parameter = getattr(model[layer], part)
        held = parameter.detach()
        for dim, placement in enumerate(placements):
            if isinstance(placement, Shard):
                held = held.chunk(mesh.size(dim), placement.dim)[mesh.get_local_rank(dim)]
        setattr(model[layer], part, nn.Parameter(DTensor.from_local(held, mesh, placements)))
        return model

    advice = r"0.weight is a DTensor placed as .*Shard\(0\) or Replicate\(\).*exclude=\['0'\]"
    with_error(TypeError, advice, lambda: LowRankProjection(sharded_by([Shard(1)], mesh)))
    uneven = nn.Sequential(nn.Conv2d(4, 8, 3))
    rows = (3, 5)[mesh.get_rank()]
    held = DTensor.from_local(torch.randn(rows, 4, 3, 3), mesh, [Shard(0)], shape=(8, 4, 3, 3), stride=(36, 9, 3, 1))
    uneven[0].weight = nn.Parameter(held)
    with_error(ValueError, r"0.weight: this rank holds . of 8 rows.*fully_shard", lambda: LowRankProjection(uneven))
    late = make("resnet")
    projection = LowRankProjection(late, rectify_batch_norm=False)
    shard(late, mesh)
    with_error(ValueError, "2.first has changed.*became a DTensor", projection.step)


@case(4)
def two_sharded_dimensions_are_refused(mesh):
    square = DeviceMesh("cpu", mesh.mesh.view(2, 2), mesh_dim_names=("a", "b"))
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
    held = DTensor.from_local(torch.randn(2, 4, 3, 3), square, [Shard(0), Shard(0)])
    model[0].weight = nn.Parameter(held)
    with_error(TypeError, "sharded along 2 dimensions of its mesh.*HSDP", lambda: LowRankProjection(model))


@case(2, 2, 1)
@case(2, 1, 2, slow=True)
@case(2, 2, 2, slow=True)
@case(4, 4, 2)
def a_checkpoint_resumes_on_other_ranks(everyone, ranks, others):
    """torch.distributed.checkpoint, with the bases; on as many ranks the bits of a run that never stopped."""
    import torch.distributed.checkpoint as dcp

    folder, kept = FOLDER[0] / f"checkpoint-{ranks}-{others}", {}
    if is_in(mesh := MESHES[ranks]):
        model = shard(with_statistics(make("resnet"), 0), mesh)  # the same on all: whose are saved is not ours to say
        projection = LowRankProjection(model, prune_ratio=0.5)
        projection.step()
        load(model, moved(whole(model)))
        state = {"model": model.state_dict(), "projection": projection.state_dict()}
        dcp.save(state, checkpoint_id=folder, process_group=mesh.get_group())
        assert all(basis.any() for basis in state["projection"]["bases"].values())
        projection.step()
        kept = whole(model)
    dist.barrier(everyone.get_group())
    if is_in(mesh := MESHES[others]):
        model = shard(with_statistics(make("resnet", seed=4), 7), mesh)
        projection = LowRankProjection(model, prune_ratio=0.7)
        state = {"model": model.state_dict(), "projection": LowRankProjection(model, prune_ratio=0.5).state_dict()}
        dcp.load(state, checkpoint_id=folder, process_group=mesh.get_group())
        model.load_state_dict(state["model"])
        projection.load_state_dict(state["projection"])
        assert projection.steps == 1
        bases = projection.state_dict()["bases"]
        assert len(bases) == len(projection.ranks)
        assert all(basis.any() for basis in bases.values())
        projection.step()
        resumed = whole(model)
        if kept and ranks == others:
            assert_equal(kept, resumed)
        elif kept:
            assert_close(kept, resumed, 1e-3)


def moved(values):
    """Weights after some training, the same on every rank."""
    generator = torch.Generator().manual_seed(11)
    return {
        name: value + 0.01 * value.std() * torch.randn(value.shape, generator=generator).to(value.dtype)
        if value.dim() > 1
        else value
        for name, value in values.items()
    }
