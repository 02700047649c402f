"""Small networks with all that can be sharded, and the ways to shard them."""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard


class Residual(nn.Module):
    """As in ResNet-20: two convolutions and a shortcut."""

    def __init__(self, channels, outputs):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.second, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(channels, outputs, 1)

    def forward(self, x):
        y = self.norm1(self.first(x)).relu()
        return (self.norm2(self.second(y)) + self.shortcut(x)).relu()


class InvertedResidual(nn.Module):
    """As in MobileNetV2: pointwise, depthwise, pointwise."""

    def __init__(self, channels, wide):
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.norm2 = nn.BatchNorm2d(wide)
        self.project, self.norm3 = nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = self.norm2(self.depthwise(self.norm1(self.expand(x)).relu())).relu()
        return x + self.norm3(self.project(y))


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then two Linears over the channels."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.narrow(self.widen(y).relu()).permute(0, 3, 1, 2)


class Standardised(nn.Conv2d):
    """Its output does not grow with its weight, so it takes no part."""

    def forward(self, x):
        deviation = self.weight.std((1, 2, 3), keepdim=True) + 1e-3
        return self._conv_forward(x, (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / deviation, self.bias)


class Padded(nn.Conv2d):
    """Its output grows with its weight, so it takes part."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def resnet():
    return nn.Sequential(
        Padded(3, 7, 3), nn.BatchNorm2d(7), Residual(7, 7), Standardised(7, 7, 1), Residual(7, 10), *head(10)
    )


def mobilenet():
    """With one filter in a layer, fewer than there are ranks."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), InvertedResidual(6, 13), nn.Conv2d(6, 1, 3), nn.BatchNorm2d(1), *head(1)
    )


def convnext():
    """With a kernel of 1 x 3, whose filters are blended, and of 5 x 5."""
    return nn.Sequential(
        nn.Conv2d(3, 9, (1, 3), padding=(0, 1)), ConvNeXtBlock(9), ConvNeXtBlock(9), nn.Conv2d(9, 5, 5), *head(5)
    )


def head(channels):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)


NETWORKS = {"resnet": resnet, "mobilenet": mobilenet, "convnext": convnext}


def make(name, dtype=torch.float32, seed=0):
    """A network whose filters differ in size by orders of magnitude, some of them zero and some equal."""
    torch.manual_seed(seed)
    return scaled(NETWORKS[name]().to(dtype), rounded=seed % 2)


def scaled(model, rounded=False):
    """The model with such filters; rounded ones are small multiples of 1/8."""
    with torch.no_grad():
        for parameter in model.parameters():
            rows = len(parameter)
            scale = torch.logspace(-2, 1, rows)[torch.randperm(rows)]
            if rows > 6:
                scale[torch.randint(rows, (1,))] = 0
            values = torch.randn(parameter.shape) * scale.view(-1, *[1] * (parameter.dim() - 1))
            parameter.copy_(values.mul(8).round().div(8) if rounded else values)
    return model


def shard(model, mesh, layers=(nn.Conv2d, nn.Linear, nn.BatchNorm2d), **options):
    """Each layer a group of its own, as FSDP2 is used; what is left goes with the model."""
    for module in model.modules():
        if isinstance(module, layers):
            fully_shard(module, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)
