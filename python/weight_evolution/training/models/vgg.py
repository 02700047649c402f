"""VGG-16 with BatchNorm for small images."""

from __future__ import annotations

from torch import Tensor, nn

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions; each stage ends in a pooling."""


class CifarVGG16(nn.Module):
    """Thirteen convolutions with BatchNorm, five poolings, one Linear.

    Source: Simonyan and Zisserman (arXiv 1409.1556), without the two hidden Linears of the ImageNet network, as usual
    for CIFAR. Poolings round up, so that images under 32 x 32 pass too.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, convs in _STAGES:
            for _ in range(convs):
                conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits
