"""Small networks in which the order of appearance would pair convs and BatchNorms wrongly."""

import torch
from torch import nn
from torch.nn import functional


class Branches(nn.Module):
    """Two convs into one add behind which is the BatchNorm; a conv without BatchNorm between two that have one; a
    depthwise conv; a Linear head.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(12)
        self.left = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.right = nn.Conv2d(12, 16, 1, stride=2)
        self.sum_norm = nn.BatchNorm2d(16)
        self.bare = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.twice_used = nn.Conv2d(16, 14, (3, 1), padding=(1, 0))
        self.other_norm = nn.BatchNorm2d(14)
        self.last = nn.Conv2d(14, 20, 3, padding="same", padding_mode="circular")
        self.pass_through = nn.Identity()
        self.last_norm = nn.BatchNorm2d(20)
        self.depthwise = nn.Conv2d(20, 20, 3, padding=1, groups=20, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(20)
        self.head = nn.Linear(20, 10)

    def forward(self, x, scale=None, features=False):
        x = functional.relu(self.stem_norm(self.stem(x)))
        x = functional.relu(self.sum_norm(self.left(x) + self.right(x)))
        x = functional.relu(self.bare(x))
        y = self.twice_used(x)
        x = self.other_norm(y) + y
        x = functional.relu(self.last_norm(self.pass_through(self.last(x))))
        x = self.depthwise_norm(self.depthwise(x))
        if scale is not None:
            x = x * scale
        x = x.mean((2, 3))
        if features:
            return x
        return self.head(x)


PAIRS = {"stem": "stem_norm", "left": None, "right": None, "bare": None, "twice_used": None, "last": "last_norm"}


class Untraceable(nn.Module):
    """torch.fx cannot trace the branch on the input's shape, torch.export can."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=False)
        self.second = nn.Conv2d(8, 16, 3, bias=False)
        self.first_norm = nn.BatchNorm2d(8)
        self.second_norm = nn.BatchNorm2d(16)

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("three channels")
        return self.second_norm(self.second(functional.relu(self.first_norm(self.first(x)))))


class UntraceableByAll(Untraceable):
    """The branch depends on the values."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


def randomize_norms(model, seed=0):
    """Scales of both signs, shifts and statistics as after some training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * 1.5 + 0.25)
            if module.weight is not None:
                module.weight.data[::3] *= -1
    return model


def branches(seed=0):
    torch.manual_seed(seed)
    return randomize_norms(Branches(), seed)
