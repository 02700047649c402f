"""Twin networks and optimizers: one as PyTorch makes the step, one with the method."""

import torch
from torch import nn

BATCHES = [(torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(i)), torch.arange(6) % 5) for i in range(4)]


class Net(nn.Module):
    """Convolutions of several kinds, all sizes different, BatchNorm, bias and Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2)
        self.fc = nn.Linear(4 * 36, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.fc(torch.relu(self.up(self.grouped(torch.tanh(self.depthwise(x))))).flatten(1))


CONVS = {"stem.weight": (8, 0), "depthwise.weight": (8, 0), "grouped.weight": (6, 0), "up.weight": (4, 1)}
"""Name -> number of filters and their dimension."""


def make_net(seed=0):
    torch.manual_seed(seed)
    return Net()


def backward(model, batch):
    images, targets = batch
    loss = nn.functional.cross_entropy(model(images), targets)
    loss.backward()
    return loss


def snapshot(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def copy_gradients(source, target):
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        b.grad = None if a.grad is None else a.grad.clone()


def copy_weights(source, target):
    with torch.no_grad():
        for a, b in zip(source.parameters(), target.parameters(), strict=True):
            b.copy_(a)


def assert_masked(before, plain, after, selection, dims):
    """Selected rows are the plain step's, bit for bit; the others are as before; all else is the plain step's."""
    for name, value in after.items():
        if name not in selection:
            assert torch.equal(value, plain[name]), name
            continue
        moves, dim = selection[name], dims[name]
        new, old, full = (x.movedim(dim, 0) for x in (value, before[name], plain[name]))
        assert torch.equal(new[moves], full[moves]), name
        assert torch.equal(new[~moves], old[~moves]), name
        assert not torch.equal(full[~moves], old[~moves]) or not (~moves).any(), name
