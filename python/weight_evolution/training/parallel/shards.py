"""FSDP2: each rank has a part of each parameter, and of each batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from weight_evolution.sharding.local_part import reshard

from ..errors import UserError
from .replicas import Replicas

if TYPE_CHECKING:
    from ..config import TrainingConfig
    from ..data import Dataset


_VECTORS = {"row_reset", "column_reset"}
"""State of UnitAdamW, which spreads it itself, that a parameter of one dimension may have the shape of."""


class Shards(Replicas):
    """The ranks of the default group, over which ``fully_shard`` spreads the network.

    Its blocks are sharded one by one, then what is left: a block is an entry of an outermost nn.Sequential or
    nn.ModuleList. Files hold the whole network, gathered on the first rank.

    Args:
        device: of this rank; its type is the mesh's.

    Raises:
        UserError: ranks share a GPU, so that the group is not nccl's.
    """

    mode = "fsdp"

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        if device.type == "cuda" and dist.get_backend() == "gloo":
            raise UserError(
                "--parallel fsdp needs a GPU for each rank; start as many ranks as there are, or pass --parallel ddp"
            )
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self._gradient = 1.0
        """What becomes of a gradient of 1 on each rank, of the networks that were placed."""
        self._copies: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
        """Of each placed network one with whole parameters, on the CPU of the first rank."""

    def check(self, config: TrainingConfig, dataset: Dataset) -> None:
        super().check(config, dataset)
        refused = {
            "--compile": (config.compile, "this was not tried"),
            "--amp fp16": (config.amp == "fp16", "this was not tried; --amp bf16 works"),
            "--channels-last": (config.channels_last, "FSDP2 shards contiguous weights only"),
        }
        for option, (given, reason) in refused.items():
            if given:
                raise UserError(
                    f"{option} does not go with --parallel fsdp: {reason}; leave it out, or pass --parallel ddp"
                )

    def place(self, model: nn.Module) -> nn.Module:
        dtypes = sorted({parameter.dtype for parameter in model.parameters()}, key=str)
        found = {_gradient_of_ones(self._mesh, dtype) for dtype in dtypes}
        if len(found) > 1:
            raise UserError(f"--parallel fsdp: this PyTorch averages gradients of one of {dtypes} only; use one dtype")
        self._gradient = found.pop()
        whole = copy.deepcopy(model).cpu() if self.first else None
        self.spread(model)
        if whole is not None:
            self._copies[model] = whole
        return model

    def spread(self, model: nn.Module) -> None:
        for block in _blocks(model):
            fully_shard(block, mesh=self._mesh)
        fully_shard(model, mesh=self._mesh)

    def weight(self, count: int) -> float:
        return super().weight(count) / self._gradient

    def whole_model(self, model: nn.Module) -> nn.Module | None:
        reshard(model)
        state = self.whole_state(model.state_dict())
        if not self.first:
            return None
        whole = self._copies[model]
        whole.load_state_dict(state)
        return whole

    def whole_state(self, state: dict[str, Any]) -> dict[str, Any]:
        gathered: dict[str, Any] = self._gathered(state)
        return gathered

    def load(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        reshard(model)
        model.load_state_dict({name: _spread_like(own, state[name]) for name, own in model.state_dict().items()})

    def load_optimizer(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        spread = {
            index: {
                name: _spread_like(parameters[index], value)
                if isinstance(value, Tensor) and value.shape == parameters[index].shape and name not in _VECTORS
                else value
                for name, value in entries.items()
            }
            for index, entries in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": spread})

    def _gathered(self, value: Any) -> Any:
        """The same with whole tensors, on the first rank: each of them is gathered and, elsewhere, let go at once."""
        if isinstance(value, DTensor):
            whole = value.full_tensor()
            return whole.cpu() if self.first else None
        if isinstance(value, dict):
            result = copy.copy(value)  # of a module's state also the versions of its modules
            result.update({key: self._gathered(entry) for key, entry in value.items()})
            return result
        return [self._gathered(entry) for entry in value] if isinstance(value, list) else value


def _gradient_of_ones(mesh: DeviceMesh, dtype: torch.dtype) -> float:
    """What FSDP2 makes of a gradient of 1 on each rank: 1, their mean, but with gloo and an older PyTorch, such as 2.7,
    of float32 and bfloat16 their sum (pytorch/pytorch#162338).
    """
    probe = nn.Linear(1, 1, bias=False, device=mesh.device_type, dtype=dtype)
    fully_shard(probe, mesh=mesh)
    probe(torch.ones(1, 1, device=mesh.device_type, dtype=dtype)).sum().backward()
    gradient = probe.weight.grad
    assert isinstance(gradient, DTensor)
    return gradient.full_tensor().item()


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        if not isinstance(model, (nn.Sequential, nn.ModuleList)):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def _spread_like(own: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, which every rank has, as ``own`` is spread; itself if that is not."""
    if not isinstance(own, DTensor):
        return whole
    return distribute_tensor(whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
