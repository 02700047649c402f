"""Small networks of every kind in which units can be followed, or cannot."""

import torch
from torch import nn
from torch.nn import functional

from weight_evolution.training.models.mobilenet_v2 import InvertedResidual
from weight_evolution.training.models.resnet import CifarResNet

IMAGES = torch.Size([2, 3, 8, 8])


def mlp():
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))


class ConvNet(nn.Module):
    """BatchNorm, functional nonlinearities in place and not, pooling before and behind, a mean over positions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 8, 3, groups=2)
        self.second_norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.norm = nn.InstanceNorm2d(6)
        self.up_again = nn.ConvTranspose2d(6, 5, 2)
        self.hidden = nn.Linear(5, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.first_norm(self.first(x)), inplace=True), 2)
        x = torch.relu_(functional.pad(self.second_norm(self.second(x)), (1, 1)))
        x = functional.leaky_relu(self.norm(self.up(x)) * 2)
        x = self.up_again(x).clamp(min=0).mean((2, 3))
        return self.head(torch.sigmoid(self.hidden(x)))


def vgg(flatten):
    """Two convolutions, a flattening with 4 positions, two Linears."""

    class Vgg(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
                nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            )  # fmt: skip
            self.pool = nn.AdaptiveAvgPool2d(2)
            self.flatten = nn.Flatten()
            self.classifier = nn.Sequential(nn.Linear(20, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, x):
            x = self.pool(self.features(x))
            return self.classifier(self.flatten(x) if flatten == "module" else flatten(x))

    return Vgg()


def mobile():
    """Depthwise layers; one with two outputs for each input, whose units are two channels of the next layer."""
    return nn.Sequential(
        InvertedResidual(3, 4, 1, 2),
        InvertedResidual(4, 4, 1, 2),  # with a shortcut
        nn.Conv2d(4, 8, 3, groups=4, padding=1),
        nn.ReLU6(),
        nn.ConvTranspose2d(8, 16, 2, groups=8),
        nn.ReLU(),
        nn.Conv2d(16, 6, 1, groups=2),
        nn.ReLU(),
        nn.AvgPool2d(9),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


def signal():
    """One and three spatial dimensions."""
    return nn.Sequential(
        *(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 6, 2), nn.PReLU(6)),
        *(nn.Flatten(), nn.Linear(48, 8), nn.ELU(), nn.Unflatten(1, (8, 1, 1, 1)), nn.Conv3d(8, 2, 1)),
    )


def resnet():
    return CifarResNet(8, width=4)


class Dense(nn.Module):
    """DenseNet: BatchNorm and nonlinearity behind the concatenation of all layers before."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(channels, 4, 3, padding=1) for channels in (3, 7, 11)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for channels in (3, 7, 11)])
        self.fire = nn.Conv2d(15, 4, 1)
        self.left, self.right = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 3, padding=1)
        self.head = nn.Linear(8 * 4 * 4, 2)

    def forward(self, x):
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
        x = functional.relu(self.fire(x))
        x = torch.cat([functional.relu(self.left(x)), functional.relu(self.right(x))], dim=-3)
        return self.head(functional.max_pool2d(x, 2).flatten(1))


class Branching(nn.Module):
    """torch.fx cannot trace it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second = nn.Linear(4 * 9, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        if x.shape[0] == 0:
            return x
        x = functional.max_pool2d(functional.relu(self.norm(self.first(x))), 2)
        return self.head(functional.gelu(self.second(x.reshape(x.shape[0], -1))))


class Tokens(nn.Module):
    """A Linear on every position of a sequence."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.down(functional.gelu(self.up(x))).view(x.size(0), -1))


class Refused(nn.Module):
    """One layer for every reason."""

    def __init__(self):
        super().__init__()
        self.residual = nn.Linear(4, 4)
        self.gate, self.gated = nn.Linear(4, 4), nn.Linear(4, 4)
        self.before_norm, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.before_rnn, self.rnn = nn.Linear(4, 4), nn.GRU(4, 4)
        self.before_attention, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(4, 1)
        self.before_twice, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)
        self.before_tied, self.tied, self.tie = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.tie.weight = self.tied.weight
        self.before_computed = nn.Linear(4, 4)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.before_softmax = nn.Linear(4, 4)
        self.read_by_hand = nn.Linear(4, 4)
        self.embedding = nn.Embedding(4, 4)
        self.never = nn.Linear(4, 4)
        self.unread = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = x + self.residual(x)
        x = torch.sigmoid(self.gate(x)) * self.gated(x)
        x = self.norm(self.before_norm(x))
        x = self.rnn(self.before_rnn(x))[0]
        y = self.before_attention(x)
        x = self.attention(x, y, x)[0]
        x = self.twice(self.twice(self.before_twice(x)))
        x = self.tie(self.tied(self.before_tied(x)))
        x = self.computed(self.before_computed(x))
        x = self.before_softmax(x).softmax(-1)
        x = functional.linear(self.read_by_hand(x), self.read_by_hand.weight)
        self.unread(x)
        return self.head(x)
