"""What this rank holds of a model whose parameters are DTensors."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

GATHER = (
    "gather the model (get_model_state_dict of torch.distributed.checkpoint.state_dict with "
    "StateDictOptions(full_state_dict=True)), work on that and load it back"
)

_USUAL = Tensor, nn.Parameter
"""Told first: optimizers ask this of every tensor in every step."""


def is_distributed(tensor: Tensor | None) -> bool:
    """Whether it is a DTensor, told without importing what defines it, which takes seconds."""
    kind = type(tensor)
    return kind not in _USUAL and kind.__module__.startswith("torch.distributed")


def local_part(tensor: Tensor) -> Tensor:
    """The memory of a DTensor on this rank (under `torch.no_grad`); any other tensor itself."""
    if not is_distributed(tensor):
        return tensor
    distributed: Any = tensor
    local: Tensor = distributed.to_local()
    return local


def whole(tensor: Tensor) -> Tensor:
    """All of a DTensor, gathered from its ranks: collective."""
    distributed: Any = tensor
    gathered: Tensor = distributed.detach().full_tensor()
    return gathered


def spread_alike(tensor: Tensor, other: Tensor) -> bool:
    """Whether both are DTensors of which each rank holds the same part."""
    if not is_distributed(tensor) or not is_distributed(other):
        return False
    one: Any = tensor
    same: Any = other
    return bool(one.device_mesh == same.device_mesh and one.placements == same.placements)


def reshard(model: nn.Module) -> None:
    """Put FSDP2's shards in place of gathered copies, which a forward pass without backward leaves in the root module.

    What is written to such a copy is lost, and the next forward pass would take the copy for what the shards are.
    """
    for module in fully_sharded(model):
        module.reshard()


def fully_sharded(model: nn.Module) -> list[Any]:
    """The modules that were given to FSDP2's fully_shard."""
    kind = _fsdp_class()
    return [] if kind is None else [module for module in model.modules() if isinstance(module, kind)]


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module had before fully_shard gave it one that is derived from FSDP2's and this."""
    kind = _fsdp_class()
    return type(module).__mro__[2] if kind is not None and isinstance(module, kind) else type(module)


def _fsdp_class() -> Any:
    """None where nobody imported it, so that no module is of it."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)


def refuse_distributed(model: nn.Module, method: str) -> None:
    """For a method that needs whole weights.

    Raises:
        TypeError: a parameter of the model is a DTensor; names it, and says how to go on.
    """
    reshard(model)
    for name, parameter in model.named_parameters():
        if is_distributed(parameter):
            raise TypeError(
                f"{name} is a DTensor (FSDP2 or tensor parallelism), of which each rank holds a part, and {method} "
                f"needs whole weights; {GATHER}"
            )
