"""One rank over nccl on a GPU (over gloo with ``GPU_TESTS_ON=cpu``): a mesh of one, and what ranks exchange."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.gpu import DEVICE, full_float32, needs_device  # noqa: F401
from tests.sharding.networks import make, shard
from tests.training.parallel_rank import config_of, digits, train
from weight_evolution import (
    AsynchronousSGD,
    AsynchronousUpdate,
    FilterGrafting,
    LowRankProjection,
    UnitAdamW,
    UnitReactivation,
    WeightEvolution,
)
from weight_evolution.grafting.side_by_side import SideBySide
from weight_evolution.sharding.exchange import exchange
from weight_evolution.sharding.gather import gather
from weight_evolution.sharding.placement import Placement
from weight_evolution.training.parallel.shards import Shards
from weight_evolution.training.trainer import Trainer

pytestmark = [needs_device, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("full_float32")]
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mesh():
    """Of the only rank of a group."""
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh(DEVICE.type, (1,))
    dist.destroy_process_group()


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def evolution(model):
    optimizer = momentum(model)
    step = WeightEvolution(model, optimizer=optimizer, conv_rate=0.5, local_ratio=0.5).step
    return optimizer, lambda: step(epoch=0)


def asynchronous_update(model):
    optimizer = momentum(model)
    AsynchronousUpdate(optimizer, model, seed=3)
    return optimizer, None


def asynchronous_sgd(model):
    return AsynchronousSGD(model.parameters(), lr=0.05, momentum=0.9, model=model, seed=3), None


def low_rank(model):
    return momentum(model), LowRankProjection(model, prune_ratio=0.5).step


def reactivation(model):
    optimizer = UnitAdamW(model.parameters(), lr=0.01)
    step = UnitReactivation(model, optimizer, every=1, importance="l1", threshold=0.9, seed=2).step
    return optimizer, step


def reactivation_by_activity(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    reactivation = UnitReactivation(model, optimizer, every=1, batches=1, threshold=0.9, seed=2)

    def step():
        model(IMAGES.to(DEVICE)).sum().backward()
        return reactivation.step()

    return optimizer, step


METHODS = (
    *(evolution, asynchronous_update, asynchronous_sgd, low_rank),
    *(reactivation, reactivation_by_activity),
)


def set_gradients(model, seed):
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        grad = torch.randn(parameter.shape, generator=draws).to(DEVICE)
        if isinstance(parameter, DTensor):
            grad = distribute_tensor(grad, parameter.device_mesh, parameter.placements)
        parameter.grad = grad


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_weights(model, sharded):
    before = dict(model.state_dict())
    after = {name: whole(tensor) for name, tensor in sharded.state_dict().items()}
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("network", ["resnet", "mobilenet"])
def test_a_mesh_of_one_gives_the_bits_of_a_whole_model(method, network, mesh):
    model = make(network).to(DEVICE)
    untouched = copy.deepcopy(model.state_dict())
    sharded = shard(copy.deepcopy(model), mesh)
    of_both = [(each, *method(each)) for each in (model, sharded)]
    for seed in range(3):
        for each, optimizer, step in of_both:
            set_gradients(each, seed)
            optimizer.step()
            if step is not None:
                step()
        assert_same_weights(model, sharded)
    assert any(not torch.equal(tensor, untouched[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"level": "filter"}, {"criterion": "l1"}], ids=str)
def test_networks_that_lie_side_by_side_are_grafted_as_whole_ones(options, mesh):
    models = [make("resnet", seed=seed).to(DEVICE) for seed in (0, 2)]
    sharded = [shard(copy.deepcopy(model), mesh) for model in models]
    reports = [FilterGrafting(each, **options).step() for each in (models, sharded)]
    assert reports[0].entropies == reports[1].entropies
    for model, other in zip(models, sharded, strict=True):
        assert_same_weights(model, other)


def test_what_ranks_tell_each_other_arrives(mesh):
    """By each collective of the methods, on the device of the weights."""
    group = mesh.get_group()
    numbers = torch.arange(5.0, device=DEVICE)
    assert torch.equal(gather(Placement(group, [5], [True]), lambda: numbers, 7, "a test", DEVICE)[0, :5], numbers)
    filled = torch.empty(3, dtype=torch.bfloat16, device=DEVICE), torch.empty(2, 2, dtype=torch.float64, device=DEVICE)
    sent = [torch.full_like(each, i + 0.5) for i, each in enumerate(filled)]
    exchange(Placement(group, [5], [True]), [sent], [filled], DEVICE)
    assert all(map(torch.equal, filled, sent))
    together = SideBySide(group, 2)
    together.arrange([[0]])
    assert together.agree(lambda: {"a": 1}, "a test") == [{"a": 1}]
    rows = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([3.0, 4.0], dtype=torch.float64)]
    for operation in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
        assert torch.equal(together.reduce(lambda: rows, 2, operation, DEVICE, "a test"), torch.stack(rows))


@pytest.mark.parametrize("method", ["evolution+asynchronous", "low-rank", "reactivation"])
def test_the_trainer_over_one_rank(method, mesh):
    config = config_of(method, epochs=2, ema=0.5)
    alone = train(Trainer(config, 3, digits(), DEVICE))
    together = train(Trainer(config, 3, digits(), DEVICE, ranks=Shards(DEVICE)))
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(whole(together.model.state_dict()[name]), tensor, rtol=1e-6, atol=1e-6)
    assert [row["test_accuracy"] for row in alone.history] == [row["test_accuracy"] for row in together.history]
