"""Modules made from the tensors of a state dict alone, where no code of the network is at hand."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import skip_init

_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def skeleton(state: Mapping[str, Tensor]) -> nn.Module:
    """Convolutions, Linears and BatchNorms with these weights, under their names; it cannot be run.

    A weight of 3, 4 or 5 dimensions is a convolution of one group, one of 2 a Linear, unless its name has "embed" in
    it; one of 1 dimension beside running statistics a BatchNorm. The values are shared with ``state``. Transposed
    convolutions cannot be told from others. Everything else is left out.
    """
    root = nn.Module()
    for name, weight in state.items():
        path, _, attribute = name.rpartition(".")
        if attribute != "weight" or not weight.is_floating_point() or "embed" in path.lower():
            continue
        if (module := _module(path, weight, state)) is None:
            continue
        _put(root, path, module)
    return root.eval()


def _module(path: str, weight: Tensor, state: Mapping[str, Tensor]) -> nn.Module | None:
    bias = state.get(f"{path}.bias")
    module: nn.Module
    if weight.dim() in _CONVS:
        out, into, *kernel = weight.shape
        module = skip_init(_CONVS[weight.dim()], into, out, tuple(kernel), bias=bias is not None, device="meta")
    elif weight.dim() == 2:
        module = skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    elif weight.dim() == 1 and f"{path}.running_var" in state:
        module = nn.BatchNorm2d(len(weight), track_running_stats=False, device="meta")
    else:
        return None
    for attribute, value in {"weight": weight, "bias": bias}.items():
        if value is not None and value.is_floating_point():
            module._parameters[attribute] = nn.Parameter(value.detach())
    return module


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Under its dotted name; modules in between are made."""
    *parents, own = path.split(".") if path else ["model"]
    parent = root
    for name in parents:
        inner = parent._modules.get(name)
        if inner is None:
            inner = nn.Module()
            parent.add_module(name, inner)
        parent = inner
    before = parent._modules.get(own)
    for name, child in before.named_children() if before is not None else ():  # of a layer with layers inside
        module.add_module(name, child)
    parent._modules[own] = module
