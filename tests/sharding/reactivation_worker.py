"""One rank of test_sharded_reactivation: every case compared with one process here and now.

python -m tests.ranks PROCESSES tests.sharding.reactivation_worker FOLDER
"""

from functools import partial
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from tests.sharding import worker
from tests.sharding.networks import InvertedResidual, shard
from tests.sharding.worker import FOLDER, MESHES, counted, full, is_in, with_error
from weight_evolution import ExchangeError, UnitActivity, UnitAdamW, UnitReactivation

CASES = {}
case = partial(worker.case, cases=CASES)

ACTS = 2
"""Acting steps that are compared, every second iteration."""
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.01, foreach=False),
    "amsgrad": partial(torch.optim.AdamW, lr=0.01, amsgrad=True, foreach=False),
    "unit-adamw": partial(UnitAdamW, lr=0.01),
}


def main(folder):
    worker.run(CASES, folder, most=4)


class Grouped(nn.Module):
    """A depthwise convolution of two outputs for each input, then one of 2 groups, whose rows 4 ranks cut."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(12, 6, 1, groups=2)
        self.last = nn.Conv2d(6, 5, 1)

    def forward(self, x):
        y = self.depthwise(self.norm(self.first(x)).relu()).relu()
        return self.last(self.grouped(y).relu())


def network(dtype=torch.float32):
    """MobileNetV2's block, with dead units, then a layer of one unit and Linears."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), InvertedResidual(6, 13), nn.ReLU(), Grouped(), nn.ReLU(),
        nn.Conv2d(5, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 11), nn.ReLU(), nn.Linear(11, 9), nn.ReLU(),
        nn.Linear(9, 3),
    ).to(dtype)  # fmt: skip
    with torch.no_grad():
        model[2].norm1.bias[::3] = -30
        model[4].norm.bias[1] = -30
        model[9].bias[2:5] = -30
        model[11].bias[1] = -30
        model[6].bias.fill_(3)
    return model


by_block = partial(shard, layers=(InvertedResidual, Grouped, nn.Linear))


class Pair:
    """A whole network and a sharded one, with the same gradients."""

    def __init__(self, mesh, optimizer="unit-adamw", dtype=torch.float32, shard=by_block, **options):
        self.networks = [network(dtype), shard(network(dtype), mesh)]
        self.optimizers = [OPTIMIZERS[optimizer](model.parameters()) for model in self.networks]
        options = {"every": 2, "batches": 1, "threshold": 0.6, "seed": 3, "all_ranks": mesh.ndim > 1} | options
        self.reactivations = [
            UnitReactivation(model, optimizer, **options)
            for model, optimizer in zip(self.networks, self.optimizers, strict=True)
        ]

    def train(self, seed):
        """A step of both; the same batch on all ranks."""
        x = images(seed, next(self.networks[0].parameters()).dtype)
        for model, optimizer in zip(self.networks, self.optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    def act(self):
        return [reactivation.step() for reactivation in self.reactivations]

    def check(self, rtol=0.0):
        """Parameters, buffers, and the optimizers' state."""
        alone, sharded = self.networks
        alike = partial(torch.testing.assert_close, rtol=rtol, atol=rtol)
        sharded.reshard()
        for (name, one), other in zip(alone.state_dict().items(), sharded.state_dict().values(), strict=True):
            alike(full(other), one, msg=name)
        for (name, one), other in zip(alone.named_parameters(), sharded.parameters(), strict=True):
            states = self.optimizers[0].state[one], self.optimizers[1].state[other]
            for key, value in states[0].items():
                alike(full(states[1][key]), value, msg=f"{key} of {name}")
            for key in states[1].keys() - states[0].keys():
                assert not full(states[1][key]).any(), f"{key} of {name}"

    def run(self, acts=ACTS, exact_state=True, rtol=0.0):
        revived = 0
        for act in range(acts):
            for _ in range(2):
                self.train(act)
                reports = self.act()
                self.check(rtol)
            one, other = (report.to_dict() for report in reports)
            assert one == other
            states = [reactivation.state_dict(all_ranks=True) for reactivation in self.reactivations]
            assert not exact_state or states[0] == states[1]
            revived += reports[0].total
        assert revived > acts


def images(seed, dtype=torch.float32):
    return torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


@case(2, "adamw", slow=True)
@case(2, "unit-adamw")
@case(4, "sgd", slow=True)
@case("hsdp", "unit-adamw", slow=True)
@case(1, "unit-adamw", slow=True)
def default_options(mesh, optimizer):
    """Each layer a group of its own."""
    Pair(mesh, optimizer, shard=shard).run()


@case(2, "donor", "unit-adamw", "fill")
@case(4, "donor", "adamw", "reset", slow=True)
@case(2, "initial", "amsgrad", "fill", slow=True)
@case(4, "layer", "amsgrad", "keep", slow=True)
def scales_and_states(mesh, scale, optimizer, choice):
    Pair(mesh, optimizer, scale=scale, optimizer_state=choice).run()


@case(2, "float64", "amsgrad", slow=True)
@case(4, "bfloat16", "unit-adamw", slow=True)
def dtypes(mesh, dtype, optimizer):
    """Means are sums of float64 in another order, which a float64 shows."""
    Pair(mesh, optimizer, getattr(torch, dtype)).run(rtol=1e-12 if dtype == "float64" else 0.0)


@case(2, {"importance": "l1", "threshold": 0.9}, slow=True)
@case(2, {"replacement_rate": 0.3, "maturity": 1})
@case(4, {"replacement_rate": 0.3, "maturity": 1, "utility": "adaptation"}, slow=True)
@case(4, {"outgoing": "keep", "importance": "l1", "threshold": 0.9, "scale": "donor"}, slow=True)
@case(4, {"include": ["2"]}, slow=True)
def selections(mesh, options):
    """Utilities hold sums over ranks, which differ in the last bits."""
    Pair(mesh, **options).run(exact_state="replacement_rate" not in options)


@case(2, slow=True)
@case(4, slow=True)
def own_initialisation(mesh):
    """Of whole weights, with the same seed on all ranks."""
    for scale in ("layer", "initial"):
        Pair(mesh, init=nn.init.normal_, scale=scale).run(2)


@case(2, slow=True)
def copies_of_the_weights(mesh):
    """State of the optimizer's own beside moments: a slow copy follows the weight, a sum is filled."""
    pair = Pair(mesh, "adamw")
    pair.train(0)
    for model, optimizer in zip(pair.networks, pair.optimizers, strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                optimizer.state[parameter] |= {"slow": parameter * 0.9, "energy": parameter.square() + 2}
    pair.act()
    pair.train(1)
    before = full(pair.optimizers[1].state[pair.networks[1][9].weight]["energy"]).clone()
    reports = pair.act()
    assert reports[0].to_dict() == reports[1].to_dict()
    assert reports[0].revived["9"]
    pair.check(1e-6)
    assert not torch.equal(full(pair.optimizers[1].state[pair.networks[1][9].weight]["energy"]), before)


@case(2)
@case(4, slow=True)
def some_parameters_are_whole(mesh):
    """And the validation between leaves gathered copies in the root."""

    def mixed(model, mesh):
        kept = {*model[2].project.parameters(), *model[9].parameters(), model[4].norm.weight, model[11].bias}
        return fully_shard(model, mesh=mesh, ignored_params=kept)

    pair = Pair(mesh, shard=mixed, replacement_rate=0.3, maturity=1)
    for act in range(2):
        for _ in range(2):
            pair.train(act)
            with torch.no_grad():
                pair.networks[1](images(9))
                pair.networks[0](images(9))
            assert not isinstance(pair.networks[1][11].weight, DTensor)
            pair.act()
            pair.check()


class Transposed(nn.Module):
    """Whose units lie along the second dimension of its weight."""

    def __init__(self):
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.last(self.up(self.first(x).relu()).relu())


@case(2, slow=True)
def transposed_convolutions(mesh):
    """Work where they are whole."""
    networks = []
    for _ in range(2):
        torch.manual_seed(1)
        networks.append(Transposed())
        networks[-1].first.bias.data[2] = networks[-1].up.bias.data[1] = -9
    fully_shard(networks[1], mesh=mesh, ignored_params={networks[1].up.weight})
    options = {"every": 1, "batches": 1, "threshold": 0.5, "all_ranks": False, "init": nn.init.normal_}
    for model in networks:
        model.acting = UnitReactivation(model, torch.optim.SGD(model.parameters(), 0.1), **options)
    for seed in range(2):
        for model in networks:
            model(images(seed)).sum().backward()
            model.report = model.acting.step()
        assert networks[0].report.to_dict() == networks[1].report.to_dict()
        assert networks[0].report.revived["up"]
        for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
            assert torch.equal(one, full(other))
    whole = fully_shard(Transposed(), mesh=mesh)
    refused(TypeError, r"up.weight is a DTensor, of a transposed.*ignored_params.*exclude=\['first', 'up'\]", whole)


def refused(kind, pattern, model, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with_error(kind, pattern, lambda: UnitReactivation(model, optimizer, **options))


@case(2)
def what_cannot_work_is_refused_when_made(mesh):
    def placed(placement, mesh=mesh):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        held = model[0].weight.detach()
        if isinstance(placement, Shard):
            held = held.chunk(mesh.size(), placement.dim)[mesh.get_local_rank()]
        model[0].weight = nn.Parameter(DTensor.from_local(held, mesh, [placement]))
        return model

    for placement in (Shard(1), Partial()):
        model = placed(placement)
        refused(TypeError, r"0.weight is a DTensor placed as.*Shard\(0\) or Replicate.*exclude=\['0'\]", model)
        message = r"params\[0\] is a DTensor placed as.*Replicate\(\).*use torch.optim.AdamW"
        with_error(TypeError, message, lambda model=model: UnitAdamW(model.parameters()))
    for placement in (Shard(0), Replicate()):
        model = placed(placement)
        UnitReactivation(model, UnitAdamW(model.parameters()))
    optimizer = UnitAdamW(placed(Shard(0)).parameters())
    parameter = optimizer.param_groups[0]["params"][0]
    parameter.grad = DTensor.from_local(torch.ones(8, 4), mesh, [Replicate()])
    with_error(ValueError, "gradient of a parameter.*not spread over the ranks as the", optimizer.step)
    optimizer.state[parameter] = {name: torch.zeros(8, 4) for name in ("step", "exp_avg", "exp_avg_sq")}
    parameter.grad = torch.zeros_like(parameter)
    with_error(ValueError, "state of a parameter.*not spread over the ranks.*set_state_dict", optimizer.step)


@case("hsdp", slow=True)
def replicas_must_agree(mesh):
    refused(ValueError, "all_ranks=False is not possible.*HSDP", shard(network(), mesh), all_ranks=False)


@case(2, slow=True)
@case(4, slow=True)
def resets_by_hand(mesh):
    """Global rows and columns, groups that ranks cut; and no communication, which a rank alone in it would wait for."""
    pair = Pair(mesh)
    pair.train(0)
    rows, columns = torch.arange(6) % 3 == 1, torch.arange(12) % 5 == 2
    for model, optimizer in zip(pair.networks, pair.optimizers, strict=True):
        optimizer.reset_units_(model[4].grouped.weight, rows, columns, groups=2)
        optimizer.reset_units_(model[9].weight, columns=torch.arange(16) % 2 == 1)
    pair.check()
    with patch.object(dist, "all_gather", None), patch.object(dist, "all_reduce", None):
        pair.optimizers[1].step()
    pair.optimizers[0].step()
    pair.check()


@case(2, slow=True)
@case(4, slow=True)
def activity_report(mesh):
    """Of UnitActivity."""
    reports = []
    for model in (network(), shard(network(), mesh)):
        with UnitActivity(model, example_inputs=images(0)) as activity, torch.no_grad():
            model(images(0))
            reports.append(activity.report(all_ranks=False))
    one, other = reports
    assert list(one.activation) == list(other.activation)
    for name in one.activation:
        assert torch.equal(one.activation[name], other.activation[name])
        assert torch.equal(one.incoming[name], other.incoming[name])
        torch.testing.assert_close(one.outgoing[name], other.outgoing[name], rtol=1e-6, atol=0)


@case(2)
@case(4, slow=True)
def traffic(mesh):
    """docs/scaling.md, "What travels": nothing but in acting steps, and there this."""
    ranks = mesh.size()
    for options, summed in (
        ({}, lambda drawn, means: drawn + means),
        ({"scale": "donor", "replacement_rate": 0.3}, lambda drawn, means: means),
    ):
        pair = Pair(mesh, **options)
        sharded = pair.reactivations[1]
        pair.train(0)
        with counted() as sent:
            assert sharded.step() is None
        assert not any(sent.values())
        pair.train(0)
        with counted() as sent:
            report = sharded.step()
        units = list(report.units.values())
        drawn, means = len(units), sum(layer.norm is not None for layer in sharded.graph.layers.values())
        most = sum(-(-count // ranks) for count in units) if options else 0
        first = 3 + most + (2 * sum(units) if options else 0)
        assert sent["all_gather"] == 4 * ranks * (first + 3 + 8 * summed(drawn, means))


@case(2)
def a_rank_that_fails_tells_the_others(mesh):
    """While it looks at the tensors, and while it draws; then all go on together."""
    pair = Pair(mesh, init=nn.init.normal_, replacement_rate=0.3, maturity=0)
    alone, sharded = pair.reactivations
    pair.train(0)
    pair.act()
    pair.train(1)
    state = sharded.state_dict()
    for name in ("_see", "_own_weights"):
        failing = patch.object(sharded._acting, name, side_effect=OSError("no such file"))
        if mesh.get_local_rank() == 1:
            with failing:
                with_error(OSError, "no such file", sharded.step)
        else:
            with_error(ExchangeError, "rank 1 of the group failed.*nothing was changed", sharded.step)
        pair.check()
        assert sharded.state_dict() == state
    assert sharded.step().to_dict() == alone.step().to_dict()
    pair.check()


@case(2, slow=True)
def ranks_that_disagree_are_told(mesh):
    pair = Pair(mesh, seed=mesh.get_local_rank())
    pair.train(0)
    pair.reactivations[1].step()
    pair.train(1)
    with_error(ExchangeError, "about to do different things.*same epoch, options", pair.reactivations[1].step)
    pair.check()


class Run:
    """On one batch for all ranks, so that any number of them computes the same gradients."""

    def __init__(self, mesh=None):
        self.model = network()
        if mesh is not None:
            by_block(self.model, mesh)
        self.optimizer = UnitAdamW(self.model.parameters(), lr=0.01)
        self.reactivation = UnitReactivation(
            self.model, self.optimizer, every=2, batches=2, threshold=0.6, all_ranks=False
        )

    def go(self, iterations):
        for _ in range(iterations):
            self.optimizer.zero_grad()
            self.model(images(self.reactivation.iterations)).square().mean().backward()
            self.optimizer.step()
            self.reactivation.step()

    def state(self):
        from torch.distributed.checkpoint.state_dict import get_state_dict  # starts threads, so not before the fork

        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "reactivation": self.reactivation.state_dict()}

    def load(self, state):
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.reactivation.load_state_dict(state["reactivation"])


@case(2, 2, 1)
@case(4, 4, 2, slow=True)
@case(4, 1, 4, slow=True)
def a_checkpoint_resumes_on_other_ranks(everyone, ranks, others):
    """torch.distributed.checkpoint, after two of four acting steps; compared with one process that never stopped."""
    import torch.distributed.checkpoint as dcp

    without_stop = Run()
    without_stop.go(8)
    folder = FOLDER[0] / f"reactivation-{ranks}"
    if is_in(MESHES[ranks]):
        first = Run(MESHES[ranks])
        first.go(4)
        assert full(first.optimizer.state[first.model[9].weight]["row_reset"]).any()
        assert first.optimizer.state[first.model[4].grouped.weight]["column_reset"].any()
        dcp.save(first.state(), checkpoint_id=folder, process_group=MESHES[ranks].get_group())
    dist.barrier(everyone.get_group())
    if is_in(MESHES[others]):
        second = Run(MESHES[others])
        state = second.state()
        dcp.load(state, checkpoint_id=folder, process_group=MESHES[others].get_group())
        second.load(state)
        assert second.reactivation.steps == 2
        second.go(4)
        for (name, one), other in zip(without_stop.model.named_parameters(), second.model.parameters(), strict=True):
            assert torch.equal(one, full(other)), name
    dist.barrier(everyone.get_group())


@case(2)
def a_measurement_resumes(mesh):
    """Of batches of their own on all ranks: one state for all, in which each counts once."""
    without_stop, resumed = Run(mesh), Run(mesh)
    own = images(10 + mesh.get_local_rank())
    without_stop.model(own)
    state = without_stop.reactivation.state_dict(all_ranks=True)
    first = [state]
    dist.broadcast_object_list(first, 0, group=mesh.get_group())
    assert state == first[0]
    assert state["activity"]
    resumed.reactivation.load_state_dict(state)
    for run in (without_stop, resumed):
        run.model(own + 1)
    one, other = (run.reactivation._activity.activations() for run in (without_stop, resumed))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@case(2, slow=True)
def ages_are_not_lost_in_silence(mesh):
    """Where the groups of a convolution are not known yet, as no UnitReactivation was made before loading."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    first = Run(mesh)
    first.go(4)
    folder = FOLDER[0] / "ages"
    dcp.save({"optimizer": first.state()["optimizer"]}, checkpoint_id=folder, process_group=mesh.get_group())
    model = shard(network(), mesh)
    optimizer = UnitAdamW(model.parameters(), lr=0.01)
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    with pytest.raises(CheckpointException, match=r"(?s)Size mismatch.*column_reset"):
        dcp.load(state, checkpoint_id=folder, process_group=mesh.get_group())


@case(2, slow=True)
def state_of_adamw_loads(mesh):
    """As docs/scaling.md says: it has no ages."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model, folder = shard(network(), mesh), FOLDER[0] / "adamw"
    adamw, ours = torch.optim.AdamW(model.parameters()), UnitAdamW(model.parameters())
    model(images(0)).square().mean().backward()
    adamw.step()
    adamw.zero_grad()  # with gradients there, PyTorch makes no state for what is loaded
    state = {"optimizer": get_optimizer_state_dict(model, adamw)}
    dcp.save(state, checkpoint_id=folder, process_group=mesh.get_group())
    loaded = {"optimizer": get_optimizer_state_dict(model, ours)}
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(loaded, checkpoint_id=folder, process_group=mesh.get_group(), planner=planner)
    set_optimizer_state_dict(model, ours, loaded["optimizer"])
    for parameter in model.parameters():
        assert torch.equal(full(ours.state[parameter]["exp_avg"]), full(adamw.state[parameter]["exp_avg"]))
        assert not full(ours.state[parameter]["row_reset"]).any()
