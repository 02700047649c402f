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

ACTS = 3
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


class Pair:
    """A whole network and a sharded one, with the same gradients."""

    def __init__(self, mesh, optimizer="unit-adamw", dtype=torch.float32, shard=shard, **options):
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

    def check(self):
        """Parameters, buffers, the optimizers' and the reactivations' state."""
        alone, sharded = self.networks
        for (name, one), other in zip(alone.state_dict().items(), sharded.state_dict().values(), strict=True):
            assert torch.equal(one, full(other)), name
        for (name, one), other in zip(alone.named_parameters(), sharded.parameters(), strict=True):
            states = self.optimizers[0].state[one], self.optimizers[1].state[other]
            for key, value in states[0].items():
                assert torch.equal(value, full(states[1][key])), f"{key} of {name}"
            for key in states[1].keys() - states[0].keys():
                assert not full(states[1][key]).any(), f"{key} of {name}"

    def run(self, acts=ACTS, exact_state=True):
        revived = 0
        for act in range(acts):
            for _ in range(2):
                self.train(act)
                reports = self.act()
                self.check()
            one, other = (report.to_dict() for report in reports)
            assert one == other
            states = [reactivation.state_dict() for reactivation in self.reactivations]
            assert not exact_state or states[0] == states[1]
            revived += reports[0].total
        assert revived > acts


def images(seed, dtype=torch.float32):
    return torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


@case(2, "adamw")
@case(2, "unit-adamw")
@case(4, "sgd")
@case("hsdp", "unit-adamw")
@case(1, "unit-adamw")
def default_options(mesh, optimizer):
    Pair(mesh, optimizer).run()


@case(2, "donor", "unit-adamw", "fill")
@case(4, "donor", "adamw", "reset", slow=True)
@case(2, "initial", "amsgrad", "fill")
@case(4, "layer", "amsgrad", "keep", slow=True)
def scales_and_states(mesh, scale, optimizer, choice):
    Pair(mesh, optimizer, scale=scale, optimizer_state=choice).run()


@case(2, "float64", "amsgrad")
@case(4, "bfloat16", "unit-adamw", slow=True)
def dtypes(mesh, dtype, optimizer):
    Pair(mesh, optimizer, getattr(torch, dtype)).run()


@case(2, {"importance": "l1", "threshold": 0.9})
@case(2, {"replacement_rate": 0.3, "maturity": 1})
@case(4, {"replacement_rate": 0.3, "maturity": 1, "utility": "adaptation"}, slow=True)
@case(4, {"outgoing": "keep", "importance": "l1", "threshold": 0.9, "scale": "donor"}, slow=True)
@case(4, {"include": ["2"]}, slow=True)
def selections(mesh, options):
    """Utilities hold sums over ranks, which differ in the last bits."""
    Pair(mesh, **options).run(exact_state="replacement_rate" not in options)
