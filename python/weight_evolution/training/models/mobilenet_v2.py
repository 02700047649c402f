"""MobileNetV2 for small images."""

from __future__ import annotations

from torch import Tensor, nn

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of the first block."""


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, 1x1 projection; a shortcut where the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers = _conv(in_channels, hidden, 1) if expansion > 1 else []
        layers += _conv(hidden, hidden, 3, stride, groups=hidden)
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H', W']."""
        y: Tensor = self.layers(x)
        return x + y if self.shortcut else y


class CifarMobileNetV2(nn.Module):
    """MobileNetV2 with stride 1 in the stem and the second stage. Source: Sandler et al. (arXiv 1801.04381).

    Args:
        in_channels: of the images.
        num_classes: how many.
        width: multiplier of all numbers of channels, which are then rounded to multiples of 8, by at most a tenth
            downwards; the last layer keeps its 1280 with a width below 1. As published.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            rounded = 8 * max(1, int(width * channels + 4) // 8)
            return rounded if rounded >= 0.9 * width * channels else rounded + 8

        before, last = scaled(32), scaled(1280) if width > 1 else 1280
        layers = _conv(in_channels, before, 3)
        for expansion, channels, blocks, stride in _STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(before, scaled(channels), stride if block == 0 else 1, expansion))
                before = scaled(channels)
        layers += _conv(before, last, 1)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def _conv(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU6()]
