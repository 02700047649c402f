"""Deep copies of models: with their values, or without."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from ..sharding.failures import communication
from ..sharding.local_part import fully_sharded, is_distributed, plain_class, reshard, whole
from .wrappers import inside, joined, named_modules, unwrap

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

KEPT_ELEMENTS = 4096
"""Buffers and other tensors of at most so many elements keep their values in a copy without: forward may branch on a
flag or a counter, and compute with small constants."""
_COMPOSABLE = "__composable_api_state_key"
"""What torch.distributed keeps in a module starts so."""


class CannotCopyError(TypeError):
    """The model has something that cannot be copied, or that a copy would share."""


def copy_model(model: nn.Module, replacements: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A deep copy of a model without its wrappers, those of submodules included.

    Every reference to a module in ``replacements`` is one to its replacement in the copy. A tensor that was computed
    (a kept activation, the weight of a pruned layer) is copied without its history.

    Raises:
        CannotCopyError: names the attribute that cannot be copied.
    """
    memo: dict[int, Any] = {id(old): new for old, new in (replacements or {}).items()}
    with _Copying(_without_history):
        return _deepcopy(model, memo)


def copy_whole(model: nn.Module) -> nn.Module:
    """A deep copy on the CPU of a model whose parameters may be DTensors, without its wrappers and hooks.

    They are gathered one after the other, so it is collective for all ranks of their meshes. Buffers are this rank's
    own.

    Raises:
        CannotCopyError: names the attribute that cannot be copied.
        ExchangeError: another rank did not answer in time.
    """
    reshard(model)
    memo: dict[int, Any] = {}
    for _, module in named_modules(model):
        _leave_behind(module, memo)
        for parameter in module._parameters.values():
            if parameter is not None and is_distributed(parameter) and id(parameter) not in memo:
                with communication():
                    memo[id(parameter)] = nn.Parameter(_on_cpu(whole(parameter)), parameter.requires_grad)
    with _Copying(_on_cpu):
        _copy_fully_sharded(model, memo)
        return _deepcopy(model, memo)


def copy_without_values(model: nn.Module, convert: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A deep copy of a model without its wrappers and hooks, in which parameters and large tensors have no values.

    Args:
        convert: of a parameter or large tensor the one that stands for it; on the meta device when left out.

    Raises:
        CannotCopyError: says what stands in the way. Anything else that is raised comes from the model's own code.
    """
    convert = on_meta if convert is None else convert
    memo: dict[int, Any] = {}
    for name, module in named_modules(model):
        if isinstance(module, torch.jit.ScriptModule):  # would be copied with its values; it is called, never entered
            memo[id(module)] = module
            continue
        _refuse_closures(name, module)
        for parameter in module._parameters.values():
            if parameter is not None and not is_lazy(parameter):
                memo[id(parameter)] = nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
        _leave_behind(module, memo)
    with _Copying(partial(_small_or, convert)):
        _copy_fully_sharded(model, memo)
        copied = _deepcopy(model, memo)
    _refuse_shared(model, copied)
    return copied


def on_meta(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and dtype that has no memory."""
    if tensor.layout != torch.strided:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def as_fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A fake tensor of that mode in place of a tensor; of a DTensor a whole one."""
    if not is_distributed(tensor):
        return mode.from_tensor(tensor)
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _leave_behind(module: nn.Module, memo: dict[int, Any]) -> None:
    """No hooks in the copy, and no copies of process groups."""
    for attribute, value in vars(module).items():
        if "_hooks" in attribute and isinstance(value, dict):
            memo[id(value)] = OrderedDict()
        elif dist.is_available() and isinstance(value, dist.ProcessGroup):
            memo[id(value)] = value


def _copy_fully_sharded(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copies of FSDP2's modules, which cannot be copied, as what they were before."""
    modules = fully_sharded(model)
    for module in modules:
        plain = plain_class(module)
        memo[id(module)] = plain.__new__(plain)
    for module in modules:
        state = {name: value for name, value in vars(module).items() if not name.startswith(_COMPOSABLE)}
        vars(memo[id(module)]).update(copy.deepcopy(state, memo))


class _Copying(TorchFunctionMode):
    """Deep copies of tensors are made by ``convert``, where that gives one."""

    def __init__(self, convert: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self._convert = convert

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo and (converted := self._convert(tensor)) is not None:
                memo[id(tensor)] = converted
            if id(tensor) in memo:
                return memo[id(tensor)]
        # How parameters copy themselves, here those that are not the model's own: a teacher's in a list.
        elif func is Tensor.clone and (converted := self._convert(args[0])) is not None:
            return converted
        return func(*args, **(kwargs or {}))


def _without_history(tensor: Tensor) -> Tensor | None:
    return None if tensor.is_leaf else tensor.detach().clone()


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _small_or(convert: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    return tensor.detach().clone() if tensor.numel() <= KEPT_ELEMENTS else convert(tensor.detach())


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        # From the innermost on, so that what is around a wrapper finds the copy of what is inside it.
        for module in reversed(list(model.modules())):
            if inside(module) is not None and id(module) not in memo:
                memo[id(module)] = copy.deepcopy(unwrap(module), memo)
        result: nn.Module = copy.deepcopy(unwrap(model), memo)
    except (TypeError, NotImplementedError) as error:
        raise CannotCopyError(f"the model cannot be copied{_culprit(model, memo)} ({error})") from error
    return result


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """In words, the first attribute that cannot be copied; what could be is in the memo."""
    for name, module in named_modules(model):
        for attribute, value in vars(module).items():
            if attribute == "_modules":
                continue
            try:
                copy.deepcopy(value, memo)
            except (TypeError, NotImplementedError):
                return f": {joined(name, attribute)} cannot"
    return ""


def _refuse_closures(name: str, module: nn.Module) -> None:
    for attribute, value in vars(module).items():
        cells = value.__closure__ or () if isinstance(value, FunctionType) else ()
        for cell in cells:
            try:
                held = getattr(cell.cell_contents, "__self__", cell.cell_contents)
            except ValueError:  # the cell is empty
                continue
            if isinstance(held, (nn.Module, Tensor)):
                raise CannotCopyError(
                    f"{joined(name, attribute)} is a function that holds a {type(held).__name__} of its own, which a "
                    "copy of the model would share"
                )


def _refuse_shared(model: nn.Module, copied: nn.Module) -> None:
    own = {id(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)}
    for name, module in copied.named_modules():
        if id(module) in own:
            raise CannotCopyError(f"{name or 'the model'} copies itself ({type(module).__name__}) to what it was")
