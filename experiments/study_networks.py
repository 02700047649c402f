"""The networks of the study."""

from __future__ import annotations

from torch import nn

from weight_evolution.training.models.mobilenet_v2 import CifarMobileNetV2
from weight_evolution.training.models.resnet import CifarResNet

CHANNELS = (16, 16, 32, 32, 64, 64)
PLAIN = ("vgg", "vgg-plain")
"""Networks that are one layer after the other: in these a filter of zeros is dead."""
NETWORKS = (*PLAIN, "resnet20", "mobilenetv2")


def make_network(name: str, channels: int, classes: int, width: float = 1.0) -> nn.Module:
    """A network for small images, with fresh weights.

    ``vgg``: six 3x3 convolutions of 224 filters, with BatchNorm, 73 thousand parameters; ``vgg-plain``: without;
    ``resnet20`` and ``mobilenetv2``: those of the command train.

    Args:
        name: one of `NETWORKS`.
        channels: of the images.
        classes: how many.
        width: factor of all numbers of filters.
    """
    if name == "resnet20":
        return CifarResNet(20, channels, classes, width=round(16 * width / 2) * 2)
    if name == "mobilenetv2":
        return CifarMobileNetV2(channels, classes, width=width)
    normed = name == "vgg"
    layers: list[nn.Module] = []
    for number, size in enumerate(CHANNELS):
        filters = round(width * size)
        conv = nn.Conv2d(channels, filters, 3, padding=1, bias=not normed)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, *([nn.BatchNorm2d(filters)] if normed else []), nn.ReLU()]
        if number in (1, 3):
            layers.append(nn.MaxPool2d(2))
        channels = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
