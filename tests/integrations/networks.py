"""A network and data that train in an instant."""

import torch
from torch import nn


def network(seed=0):
    """Two convolutions with BatchNorms, of 3x8x8 images; two classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def batch(size=4):
    """Images and labels, always the same."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 2


def weights(model):
    """Name -> a copy of the tensor."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    """Whether two state dicts are equal, bit for bit."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


OPTIONS = {"conv_rate": 0.5, "local_ratio": 0.9, "norm_shift_rate": 0.3}
"""Of an evolution that replaces something in this network after every epoch."""
