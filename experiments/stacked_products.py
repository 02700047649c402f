"""Plain convolutional networks, many at once, as batched matrix products.

Activations of R networks are [R, C, N, H, W]. A convolution is the product of weights [R, O, C k k] and the shifted
images [R, C k k, N H W]; what follows (BatchNorm, ReLU, pooling) sees R C channels. Grouped convolutions, which is what
vmap makes of many networks, are no fast path of any library when a group has 16 channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Calls = dict[str, tuple[Tensor, Tensor]]
"""Module name -> its input and output, [R, N, ...]."""

_LAYERS = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)


class Products:
    """The pass of networks that are nn.Sequential, nested or not, of the layers that it knows.

    Raises:
        ValueError: a layer, or an option of one, is not supported; names it.
    """

    def __init__(self, network: nn.Module) -> None:
        self._layers = list(_flat(network, ""))
        for name, layer in self._layers:
            if reason := _reason_against(layer):
                raise ValueError(f'form "products" cannot run {name or "the network"}: {reason}')

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        images: Tensor,
        *,
        training: bool,
        watched: Collection[str],
    ) -> tuple[Tensor, Calls]:
        """Outputs [R, N, ...] of images [R, N, C, H, W], and the calls of layers that are watched."""
        calls: Calls = {}
        x = images.transpose(1, 2).contiguous()
        for name, layer in self._layers:
            own = {key.removeprefix(f"{name}."): p for key, p in parameters.items() if key.startswith(f"{name}.")}
            own |= {key.removeprefix(f"{name}."): b for key, b in buffers.items() if key.startswith(f"{name}.")}
            y = _run(layer, own, x, training)
            if name in watched:
                calls[name] = _as_usual(x), _as_usual(y)
            x = y
        return _as_usual(x), calls


def _flat(module: nn.Module, prefix: str) -> Any:
    if isinstance(module, nn.Sequential):
        for name, child in module.named_children():
            yield from _flat(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def _reason_against(layer: nn.Module) -> str | None:
    if not isinstance(layer, _LAYERS):
        return f"{type(layer).__name__} is not among {', '.join(kind.__name__ for kind in _LAYERS)}"
    if isinstance(layer, nn.Conv2d):
        plain = layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1
        k, p = layer.kernel_size, layer.padding
        same = isinstance(p, tuple) and all(2 * pad == size - 1 for size, pad in zip(k, p, strict=True))
        if not (plain and same and layer.padding_mode == "zeros"):
            return "only convolutions that keep the size, with zeros around, stride and groups 1"
    if isinstance(layer, nn.BatchNorm2d) and (layer.momentum is None or not layer.track_running_stats):
        return "only BatchNorms with running statistics and a momentum"
    if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size not in (1, (1, 1)):
        return "only averages of the whole image"
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
        return "only of all but the batch"
    return None


def _run(layer: nn.Module, own: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
    """``x``: [R, C, N, H, W], or [R, N, features] behind the flattening."""
    if isinstance(layer, nn.Conv2d):
        y: Tensor = _Convolution.apply(x, own["weight"])  # type: ignore[no-untyped-call]
        return y + own["bias"][:, :, None, None, None] if "bias" in own else y
    if isinstance(layer, nn.BatchNorm2d):
        return _batch_norm(layer, own, x, training)
    if isinstance(layer, nn.ReLU):
        return functional.relu(x)
    if isinstance(layer, nn.MaxPool2d):
        pooled: Tensor = layer(x.flatten(0, 1))
        return pooled.view(*x.shape[:2], *pooled.shape[1:])
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return x.mean((3, 4), keepdim=True)
    if isinstance(layer, nn.Flatten):
        return x.transpose(1, 2).flatten(2)
    product = x @ own["weight"].mT
    return product + own["bias"][:, None] if "bias" in own else product


def _batch_norm(layer: nn.BatchNorm2d, own: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
    assert layer.momentum is not None
    if training:
        own["num_batches_tracked"].add_(1)
    channels = x.reshape(1, x.shape[0] * x.shape[1], *x.shape[2:])
    # Of cuDNN's, none is made for one image of thousands of channels.
    with torch.backends.cudnn.flags(enabled=False):
        y = functional.batch_norm(
            channels,
            own["running_mean"].view(-1),
            own["running_var"].view(-1),
            own["weight"].reshape(-1) if "weight" in own else None,
            own["bias"].reshape(-1) if "bias" in own else None,
            training,
            layer.momentum,
            layer.eps,
        )
    return y.view(x.shape)


class _Convolution(torch.autograd.Function):
    """[R, C, N, H, W] and weights [R, O, C, k, l] -> [R, O, N, H, W]; sizes are odd, zeros lie around."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        shifted = _shifted(x, *weight.shape[3:])
        ctx.save_for_backward(shifted, weight)
        ctx.shape = x.shape
        return (weight.flatten(2) @ shifted).view(len(x), weight.shape[1], *x.shape[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        shifted, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        for_weight = (gradient.flatten(2) @ shifted.mT).view(weight.shape)
        if not ctx.needs_input_grad[0]:
            return None, for_weight
        turned = weight.transpose(1, 2).flip(3, 4).flatten(2)
        for_x = turned @ _shifted(gradient, *weight.shape[3:])
        return for_x.view(ctx.shape), for_weight


def _shifted(x: Tensor, height: int, width: int) -> Tensor:
    """[R, C, N, H, W] -> [R, C height width, N H W]: what each element of a kernel is multiplied with."""
    if height == width == 1:
        return x.flatten(2)
    padded = functional.pad(x, [width // 2] * 2 + [height // 2] * 2)
    windows = padded.unfold(3, height, 1).unfold(4, width, 1)  # [R, C, N, H, W, height, width], not in memory
    return windows.permute(0, 1, 5, 6, 2, 3, 4).flatten(1, 3).flatten(2)


def _as_usual(x: Tensor) -> Tensor:
    """[R, C, N, H, W] -> [R, N, C, H, W]; [R, N, features] as it is."""
    return x.transpose(1, 2) if x.dim() == 5 else x
