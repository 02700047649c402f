"""Weights to measure on: the convolution and BatchNorm shapes of real networks, made from their architecture rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Conv(NamedTuple):
    """One convolution without bias; in all these networks a BatchNorm over its filters follows it."""

    filters: int
    channels: int
    """Input channels per group: the weight is [filters, channels, kernel, kernel]."""
    kernel: int
    groups: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the weight."""
        return self.filters, self.channels, self.kernel, self.kernel


def resnet_cifar(depth: int, option: str = "A") -> list[Conv]:
    """ResNet of 6n + 2 layers. Source: He et al. (arXiv 1512.03385), section 4.2.

    Args:
        depth: 20, 32, 44, 56, 110, ...
        option: of the shortcuts that change shape: "A" has no parameters, "B" is a 1x1 convolution.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6n + 2, got {depth}")
    if option not in ("A", "B"):
        raise ValueError(f'option must be "A" or "B", got {option!r}')
    convs, width = [Conv(16, 3, 3)], 16
    for channels in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            convs += [Conv(channels, width, 3), Conv(channels, channels, 3)]
            if option == "B" and channels != width:
                convs.append(Conv(channels, width, 1))
            width = channels
    return convs


def resnet18() -> list[Conv]:
    """ResNet-18 for ImageNet. Source: He et al. (arXiv 1512.03385), table 1."""
    convs, width = [Conv(64, 3, 7)], 64
    for channels in (64, 128, 256, 512):
        for _ in range(2):
            convs += [Conv(channels, width, 3), Conv(channels, channels, 3)]
            if channels != width:
                convs.append(Conv(channels, width, 1))
            width = channels
    return convs


def resnet50() -> list[Conv]:
    """ResNet-50 for ImageNet. Source: He et al. (arXiv 1512.03385), table 1."""
    convs, width = [Conv(64, 3, 7)], 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convs += [Conv(channels, width, 1), Conv(channels, channels, 3), Conv(4 * channels, channels, 1)]
            if block == 0:
                convs.append(Conv(4 * channels, width, 1))
            width = 4 * channels
    return convs


def mobilenet_v2() -> list[Conv]:
    """MobileNetV2 of width 1; its CIFAR variant differs in strides only. Sandler et al. (arXiv 1801.04381), table 2."""
    convs, width = [Conv(32, 3, 3)], 32
    for expansion, channels, blocks in (
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ):
        for _ in range(blocks):
            hidden = expansion * width
            if expansion > 1:
                convs.append(Conv(hidden, width, 1))
            convs += [Conv(hidden, 1, 3, groups=hidden), Conv(channels, hidden, 1)]
            width = channels
    return convs + [Conv(1280, width, 1)]


def convnext_l() -> list[Conv]:
    """Weights of ConvNeXt-L's sizes, its Linears as 1x1 convolutions. Source: Liu et al. (arXiv 2201.03545), table 9.

    Stands for large networks; a real ConvNeXt normalizes by LayerNorm.
    """
    convs, width = [], 3
    for channels, blocks, step in ((192, 3, 4), (384, 3, 2), (768, 27, 2), (1536, 3, 2)):
        convs.append(Conv(channels, width, step))
        for _ in range(blocks):
            convs += [
                Conv(channels, 1, 7, groups=channels),
                Conv(4 * channels, channels, 1),
                Conv(channels, 4 * channels, 1),
            ]
        width = channels
    return convs


def stack_1b() -> list[Conv]:
    """A billion weights in 3x3 convolutions of 1,024 channels: near what memory and time allow."""
    return [Conv(1024, 3, 3)] + [Conv(1024, 1024, 3)] * 106


MODELS: dict[str, Callable[[], list[Conv]]] = {
    "resnet20": lambda: resnet_cifar(20),
    "resnet56": lambda: resnet_cifar(56),
    "resnet110": lambda: resnet_cifar(110),
    "mobilenetv2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "convnext_l": convnext_l,
    "stack_1b": stack_1b,
}

WEAK_SHARE = 0.25
"""Share of the filters that are scaled down."""
WEAK_DECADES = 3.0
"""They are scaled by 10**-u, u uniform in [0, 3]: two thirds of them to below a tenth of their layer's largest."""


class Weights(NamedTuple):
    """Parameters of one network, in module order: convolution, then its BatchNorm's scale and shift."""

    convs: list[Tensor]
    scales: list[Tensor]
    shifts: list[Tensor]


def make_weights(
    convs: list[Conv], seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Weights:
    """He-normal convolutions, scales around 1 and shifts around 0, a quarter of all filters scaled down to 1e-3.

    He et al. (arXiv 1502.01852) for the initialization; the spread stands for what training does: without it no
    filter is below a tenth of its layer's largest, and nothing is crossed over. The values depend on the seed and the
    kind of device, which makes them: a billion of them are too slow on a CPU.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def spread(values: Tensor) -> Tensor:
        weak = torch.rand(len(values), generator=generator, device=device) < WEAK_SHARE
        decades = WEAK_DECADES * torch.rand(len(values), generator=generator, device=device)
        scale = torch.where(weak, 10.0**-decades, 1.0)
        return (values * scale.view(-1, *[1] * (values.dim() - 1))).to(dtype)

    weights = Weights([], [], [])
    for conv in convs:
        fan_in = conv.channels * conv.kernel**2
        weights.convs.append(spread(randn(*conv.shape) * (2 / fan_in) ** 0.5))
        weights.scales.append(spread(1 + 0.2 * randn(conv.filters)))
        weights.shifts.append(spread(0.2 * randn(conv.filters)))
    return weights
