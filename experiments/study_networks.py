"""The networks of the study."""

from __future__ import annotations

from torch import nn

from weight_evolution.training.models.resnet import CifarResNet

CHANNELS = (16, 16, 32, 32, 64, 64)
NETWORKS = ("vgg", "vgg-plain", "resnet20")


def make_network(name: str, channels: int, classes: int, width: float = 1.0) -> nn.Module:
    """``vgg``: six 3x3 convolutions of 224 filters, with BatchNorm, 73 thousand parameters; ``vgg-plain``: without.

    Args:
        name: one of `NETWORKS`.
        channels: of the images.
        classes: how many.
        width: factor of all numbers of filters.
    """
    if name == "resnet20":
        return CifarResNet(20, channels, classes, width=round(16 * width / 2) * 2)
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
