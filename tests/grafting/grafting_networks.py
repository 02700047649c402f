"""A small network with every kind of part, and the method in plain loops."""

import math

import torch
from torch import nn
from torch.nn import functional


class Small(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.input_norm = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.bare = nn.Conv2d(width, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8)
        self.norm2 = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 5, 2)
        self.norm3 = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 4)
        self.register_buffer("saved", torch.tensor([2.0, 3.0]))
        self.register_buffer("table", torch.tensor([5.0]), persistent=False)

    def forward(self, x):
        x = functional.relu(self.norm1(self.conv1(self.input_norm(x) * self.scale)))
        x = functional.relu(self.norm2(self.depthwise(functional.relu(self.bare(x)))))
        return self.fc(functional.relu(self.norm3(self.up(x))).mean((2, 3)))


SECTIONS = {
    "conv1": ["scale", "saved", "input_norm", "conv1", "norm1"],
    "bare": ["bare"],
    "depthwise": ["depthwise", "norm2"],
    "up": ["up", "norm3", "fc"],
}
PAIRED = {"conv1": "norm1", "depthwise": "norm2", "up": "norm3"}


def small(seed, **options):
    """Random everywhere, statistics too; the seeds' weights spread over differently many bins."""
    torch.manual_seed(seed)
    model = Small(**options)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape) ** (1 + 2 * (seed % 2)) * 0.3)
            else:
                tensor.fill_(seed + 7)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.1)
    return model


def clone(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def entropy(weight, bins=10):
    """By counting, in float32 as the kernels do."""
    values = weight.flatten()
    low, high = values.min(), values.max()
    width = (high - low) / bins
    total = 0.0
    for k in range(bins):
        count = int(((values >= low + k * width) & (values < low + (k + 1) * width)).sum())
        if count:
            p = count / len(values)
            total -= p * math.log(p)
    return total


def section_of(name):
    return next(conv for conv, owners in SECTIONS.items() if name.split(".")[0] in owners)


def grafted(states, information=entropy, a=0.4, c=500.0):
    """The level "layer", of state dicts; the float64 formula."""
    result = []
    for i, state in enumerate(states):
        neighbour = states[i - 1]
        new = {}
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                new[name] = tensor
                continue
            conv = f"{section_of(name)}.weight"
            w = a / math.pi * math.atan(c * (information(state[conv]) - information(neighbour[conv]))) + 0.5
            new[name] = (w * tensor.double() + (1 - w) * neighbour[name].double()).to(tensor.dtype)
        result.append(new)
    return result


def grafted_by_filter(states):
    """The level "filter": as `grafted`, and then the pairs."""
    result = grafted(states)
    for i, state in enumerate(states):
        neighbour = states[i - 1]
        for conv, norm in PAIRED.items():
            own, other = state[f"{norm}.weight"].double().abs(), neighbour[f"{norm}.weight"].double().abs()
            w = own / (own + other)
            for name, tensor in state.items():
                if name.split(".")[0] not in (conv, norm) or not tensor.is_floating_point():
                    continue
                shape = [1] * tensor.dim()
                shape[1 if name == "up.weight" else 0] = -1
                share = w.view(shape)
                result[i][name] = (share * tensor.double() + (1 - share) * neighbour[name].double()).to(tensor.dtype)
    return result


def assert_close(model, expected):
    for name, tensor in model.state_dict().items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(
            tensor, expected[name], rtol=0, atol=1e-6 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_equal(model, state):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
