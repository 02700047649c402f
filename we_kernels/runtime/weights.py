"""Which tensors the kernels can work on: dense ones with memory of their own; others are refused as what they are."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mod

import torch
from torch import Tensor

from .layout import DTYPES, MAX_DIMS
from .memory import strides_are_disjoint

_NESTED = "is a nested tensor; pass its parts (unbind()) as tensors of their own"


def check_weight(weight: Tensor, name: str) -> None:
    """Refuses what the kernels cannot read and write by its address.

    Raises:
        TypeError: it is no tensor, or not of a supported dtype, layout or device, or a tensor of another kind.
        ValueError: its shape, strides or address cannot be taken.
    """
    check_readable(weight, name, MAX_DIMS)
    if not strides_are_disjoint(weight.shape, weight.stride()):
        raise ValueError(f"{name} overlaps itself (an expanded view?); pass its contiguous() copy")


def check_readable(tensor: Tensor, name: str, most_dims: int | None = None) -> None:
    """Refuses what the kernels cannot read by its address; elements may share one.

    Raises:
        TypeError: it is no tensor, or not of a supported dtype, layout or device, or a tensor of another kind.
        ValueError: its shape or address cannot be taken.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if not torch.compiler.is_compiling() and (kind := _kind(tensor)):
        raise TypeError(f"{name} {kind}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    if tensor.dim() < 1 or (most_dims and tensor.dim() > most_dims):
        wanted = f"1 to {most_dims} dimensions" if most_dims else "at least one dimension"
        raise ValueError(f"{name} must have {wanted}, got {tensor.dim()}")
    if not torch.compiler.is_compiling():
        check_address(tensor, name)


def _kind(weight: Tensor) -> str | None:
    """What a tensor is whose values are not in memory of its own, and what to do; None for all others."""
    kind = type(weight)
    if kind not in (Tensor, torch.nn.Parameter) and (reason := _kind_of_class(kind)):
        return reason
    if weight.is_quantized:
        return f"is quantized ({weight.dtype}); work on the float model, before it is quantized"
    if weight.is_nested:
        return _NESTED
    if weight.layout != torch.strided:
        return f"must be a dense tensor, got layout {weight.layout}; pass its to_dense() copy"
    if weight.is_meta:
        return "is a meta tensor, without values; materialize the module first (to_empty, load)"
    if torch._C._functorch.is_functorch_wrapped_tensor(weight):
        return "is being transformed by torch.func (vmap, grad, jvp); call this outside of it"
    if weight.is_neg():
        return "is a negated view; pass its resolve_neg() copy"
    return None


def _kind_of_class(kind: type[Tensor]) -> str | None:
    if issubclass(kind, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer)):
        return "is not initialized yet; run one forward pass through the lazy module first"
    if _is_called(kind, "DTensor"):
        return (
            "is a DTensor, of which this rank holds a part; filters must be whole: gather the model (full_tensor(), or "
            "get_model_state_dict of torch.distributed.checkpoint), work on that and load it back"
        )
    if _is_called(kind, "FakeTensor"):
        return "is a FakeTensor, without values; work on the real model, not on the one being traced or exported"
    if _is_called(kind, "NestedTensor"):
        return _NESTED
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"is a {kind.__name__}, which keeps its values in a form of its own; pass the plain tensor"
    return None


def _is_called(kind: type, name: str) -> bool:
    return any(base.__name__ == name and base.__module__.startswith("torch.") for base in kind.__mro__)


def check_addresses(tensors: Sequence[Tensor], name: str) -> None:
    """`check_address` of all of them: in one pass in C where they are in order, since it is asked at every call.

    Raises:
        ValueError: names the tensor, ``name[i]``.
    """
    addresses = list(map(Tensor.data_ptr, tensors))
    held = all(addresses) or all(a or not x.numel() for a, x in zip(addresses, tensors, strict=True))
    if not held or any(map(mod, addresses, map(Tensor.element_size, tensors))):
        for i, tensor in enumerate(tensors):
            check_address(tensor, f"{name}[{i}]")


def check_address(tensor: Tensor, name: str) -> None:
    """Refuses memory that was freed, or that elements cannot be read from.

    Raises:
        ValueError: says which of the two, and what to do.
    """
    address, size = tensor.data_ptr(), tensor.element_size()
    if address == 0 and tensor.numel():
        raise ValueError(f"the storage of {name} was freed (a sharded model between its passes?); restore it first")
    if address % size:
        raise ValueError(
            f"{name} is misaligned: it starts at an address that is no multiple of the {size} bytes of an element "
            "(a view of a file or buffer of bytes?); pass its clone()"
        )
