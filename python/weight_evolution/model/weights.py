"""Whether a module's weight is what its layer says, and why a model shows no layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


def check_weight(name: str, module: nn.Module, weight: Tensor) -> None:
    """Refuse a weight that is not the whole weight of its module.

    FSDP and ZeRO-3 leave a flat part of it, or an empty tensor, where the weight was; its rows are no filters. Checked
    are the number of dimensions and the channels of convolutions, features of BatchNorms (their biases, too) and
    Linears; sizes of kernels are not. Other modules pass.

    Args:
        name: of the weight, for the message.
        module: whose weight it is.
        weight: as the module has it now.

    Raises:
        ValueError: it does not fit the module; says how to go on.
    """
    wanted = _shape(module)
    if wanted is None:
        return
    if weight.dim() == len(wanted) and all(b is None or a == b for a, b in zip(weight.shape, wanted, strict=True)):
        return
    expected = ", ".join("*" if size is None else str(size) for size in wanted)
    raise ValueError(
        f"{name} has shape {tuple(weight.shape)}, but its {module._get_name()} says [{expected}]: a part of a weight "
        "that is sharded (FSDP, ZeRO-3) has no whole filters, so gather it or exclude it; after a change of the layer "
        "by hand set the module's sizes, too"
    )


def _shape(module: nn.Module) -> tuple[int | None, ...] | None:
    """Of the weight; None for sizes that do not matter, or for a module of another kind."""
    if isinstance(module, _ConvNd):
        kernel = [None] * len(module.kernel_size)
        if module.transposed:
            return module.in_channels, module.out_channels // module.groups, *kernel
        return module.out_channels, module.in_channels // module.groups, *kernel
    if isinstance(module, _BatchNorm):
        return (module.num_features,)
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return None


HAS_NONE = "the model has none"


def reason_without_layers(model: nn.Module) -> str:
    """Why a model in which no layer was found shows none; for error messages."""
    for module in model.modules():
        origins = {base.__module__ for base in type(module).__mro__}
        if any(origin.startswith("torch.jit") for origin in origins):
            return "it is scripted or traced (torch.jit), which hides its layers; give the model that was scripted"
        if any(origin.startswith("torch.export") for origin in origins):
            return "it is exported (torch.export), which leaves no layers; give the model that was exported"
        if any(origin.startswith("torch.ao.nn.") and "quantized" in origin for origin in origins):
            return f"its layers are quantized ({module._get_name()}); give the model before quantization"
    return HAS_NONE
