"""Random small networks, and what people wrap them in."""

from __future__ import annotations

import copy
import functools
import random
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


class Residual(nn.Module):
    """A block whose branch meets its input in an addition."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.conv2(torch.relu(self.norm1(self.conv1(x))))


class Keeps(nn.Module):
    """Keeps its last activation, as models with auxiliary losses do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels + 1, 1)
        self.register_buffer("scale", torch.ones(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.scale.mul_(0.5).add_(0.5)
        self.last = self.conv(x) * self.scale
        return self.last


class Branches(nn.Module):
    """Its way depends on the values, so torch.fx cannot trace it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if float(x.detach().sum()) > 0 else x


class Delegates(nn.Module):
    """A wrapper of somebody's own: it answers for everything that its inner network has, and has a layer itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.head = nn.Conv2d(3, 3, 1)

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.head(x))


def network(rng: random.Random) -> nn.Module:
    """Layers of random kinds and sizes behind one another; takes [N, 3, 9, 9]."""
    width = 3
    layers: list[nn.Module] = []
    for _ in range(rng.randint(1, 5)):
        layer, width = rng.choice(LAYERS)(rng, width)
        layers.append(layer)
    if rng.random() < 0.5:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, rng.randint(1, 7))]
    if rng.random() < 0.1 and len(layers) > 1:
        layers.append(layers[0] if width == 3 else nn.Identity())
    return nn.Sequential(*layers)


def _conv(rng: random.Random, width: int) -> tuple[nn.Module, int]:
    out = rng.randint(1, 12)
    kernel = rng.choice([1, 3, (1, 3), (3, 1), 5])
    return nn.Conv2d(width, out, kernel, padding="same", bias=rng.random() < 0.5), out


def _grouped(rng: random.Random, width: int) -> tuple[nn.Module, int]:
    out = width * rng.randint(1, 3)
    return nn.Conv2d(width, out, 3, padding=1, groups=width), out


def _transposed(rng: random.Random, width: int) -> tuple[nn.Module, int]:
    out = rng.randint(1, 6)
    return nn.ConvTranspose2d(width, out, 3, padding=1), out


def _norm(rng: random.Random, width: int) -> tuple[nn.Module, int]:
    kinds: list[Callable[[], nn.Module]] = [
        lambda: nn.BatchNorm2d(width),
        lambda: nn.BatchNorm2d(width, affine=False),
        lambda: nn.BatchNorm2d(width, track_running_stats=False),
        lambda: nn.GroupNorm(1, width),
        lambda: nn.InstanceNorm2d(width, affine=True),
    ]
    return rng.choice(kinds)(), width


def _same(make: Callable[[int], nn.Module]) -> Callable[[random.Random, int], tuple[nn.Module, int]]:
    return lambda rng, width: (make(width), width)


LAYERS: list[Callable[[random.Random, int], tuple[nn.Module, int]]] = [
    _conv,
    _conv,
    _conv,
    _grouped,
    _transposed,
    _norm,
    _norm,
    _same(lambda width: nn.ReLU()),
    _same(Residual),
    _same(Branches),
    lambda rng, width: (Keeps(width), width + 1),
]


def wrapped(rng: random.Random, model: nn.Module) -> nn.Module:
    """The network, mostly as it is."""
    way = rng.random()
    if way < 0.7:
        return model
    if way < 0.8:
        return nn.DataParallel(model)
    if way < 0.85:
        return checkpoint_wrapper(model)
    if way < 0.9:
        return torch.compile(model, backend="eager")
    if way < 0.95:
        return torch.optim.swa_utils.AveragedModel(model)
    return Delegates(model)


# What is done to a model between calls. Each takes a random generator and the model and may replace parts of it.


def _convs(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]


def _some_conv(rng: random.Random, model: nn.Module) -> nn.Module | None:
    convs = _convs(model)
    return rng.choice(convs) if convs else None


def _prune(rng: random.Random, model: nn.Module) -> None:
    if (conv := _some_conv(rng, model)) is not None and "weight" in conv._parameters:
        nn.utils.prune.l1_unstructured(conv, "weight", 0.5)


def _parametrize(rng: random.Random, model: nn.Module) -> None:
    if (conv := _some_conv(rng, model)) is not None and "weight" in conv._parameters:
        rng.choice([nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])(conv)


def _zero_filters(rng: random.Random, model: nn.Module) -> None:
    if (weight := _weight(rng, model)) is not None:
        weight[: rng.randint(1, len(weight))] = 0


def _poison(rng: random.Random, model: nn.Module) -> None:
    if (weight := _weight(rng, model)) is not None:
        weight.view(-1)[rng.randrange(weight.numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])


def _heal(rng: random.Random, model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.nan_to_num_(0.1, 0.1, 0.1)


def _huge(rng: random.Random, model: nn.Module) -> None:
    if (weight := _weight(rng, model)) is not None:
        weight.clamp_(-1, 1).mul_(torch.finfo(weight.dtype).max * rng.choice([0.3, 0.9, 1.0]))


def _tiny(rng: random.Random, model: nn.Module) -> None:
    if (weight := _weight(rng, model)) is not None:
        weight.mul_(torch.finfo(weight.dtype).smallest_normal)


def _weight(rng: random.Random, model: nn.Module) -> Tensor | None:
    conv = _some_conv(rng, model)
    parameter = conv._parameters.get("weight") if conv is not None else None
    return parameter.detach() if parameter is not None and parameter.is_contiguous() and parameter.numel() else None


def _replace_data(rng: random.Random, model: nn.Module) -> None:
    if (conv := _some_conv(rng, model)) is not None and (weight := conv._parameters.get("weight")) is not None:
        ways: list[Callable[[Tensor], Tensor]] = [
            lambda w: w.clone(),
            lambda w: w.contiguous(memory_format=torch.channels_last),
            lambda w: w.transpose(0, 1).contiguous().transpose(0, 1),
            lambda w: torch.stack([w, w], -1)[..., 0],
            lambda w: torch.cat([w.flatten(), w.new_zeros(1)])[1:].view(w.shape),
            lambda w: w.new_empty(0),
            lambda w: w.flatten(),
            lambda w: w[:1],
            lambda w: w[:1].expand(w.shape),
            lambda w: w.double(),
        ]
        weight.data = rng.choice(ways)(weight.data)


def _replace_parameter(rng: random.Random, model: nn.Module) -> None:
    if (conv := _some_conv(rng, model)) is not None and (weight := conv._parameters.get("weight")) is not None:
        conv.weight = nn.Parameter(weight.detach().clone(), requires_grad=rng.random() < 0.7)


def _remove_parameter(rng: random.Random, model: nn.Module) -> None:
    if (conv := _some_conv(rng, model)) is not None and conv._parameters.get("bias") is not None:
        conv.bias = None


def _freeze(rng: random.Random, model: nn.Module) -> None:
    for parameter in model.parameters():
        if rng.random() < 0.4 and parameter.is_leaf and parameter.is_floating_point():
            parameter.requires_grad_(rng.random() < 0.5)


def _replace_layer(rng: random.Random, model: nn.Module) -> None:
    places = [(parent, name) for parent in model.modules() for name, m in parent.named_children() if m in _convs(model)]
    if places:
        parent, name = rng.choice(places)
        old = getattr(parent, name)
        new = copy.deepcopy(old) if rng.random() < 0.6 else nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1)
        parent._modules[name] = new


def _share(rng: random.Random, model: nn.Module) -> None:
    convs = [conv for conv in _convs(model) if "weight" in conv._parameters]
    if len(convs) > 1:
        convs[1]._parameters["weight"] = convs[0]._parameters["weight"]


def _cast(rng: random.Random, model: nn.Module) -> None:
    model.to(rng.choice([torch.float16, torch.bfloat16, torch.float32, torch.float64]))


def _odd_dtype(rng: random.Random, model: nn.Module) -> None:
    if (conv := _some_conv(rng, model)) is not None and (weight := conv._parameters.get("weight")) is not None:
        dtype = rng.choice([torch.complex64, torch.int32, torch.float8_e4m3fn])
        conv._parameters["weight"] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)


def _without_values(rng: random.Random, model: nn.Module) -> None:
    rng.choice([model, *_convs(model)]).to("meta")


def _inference(rng: random.Random, model: nn.Module) -> None:
    if (conv := _some_conv(rng, model)) is not None and (weight := conv._parameters.get("weight")) is not None:
        with torch.inference_mode():
            conv._parameters["weight"] = nn.Parameter(weight.detach().clone(), requires_grad=False)


def _buffer(rng: random.Random, model: nn.Module) -> None:
    made = rng.choice([torch.tensor([0.0, -torch.inf]), torch.eye(3).to_sparse(), torch.arange(3), torch.ones(0)])
    rng.choice(list(model.modules())).register_buffer(f"extra{rng.randrange(3)}", made)


def _uncopied(rng: random.Random, model: nn.Module) -> None:
    """An attribute that copy and pickle refuse, or a hook, a computed tensor, a function on the instance."""
    module = rng.choice(list(model.modules()))
    kind = rng.randrange(4)
    if kind == 0:
        module.guard = threading.Lock()
    elif kind == 1:
        module.register_forward_hook(lambda module, inputs, output: None)
    elif kind == 2:
        with torch.enable_grad():
            module.kept = torch.ones(2, requires_grad=True) * 2
    else:
        module.forward = functools.partial(type(module).forward, module)


def _lazy(rng: random.Random, model: nn.Module) -> None:
    rng.choice(list(model.modules())).add_module("lazy", rng.choice([nn.LazyConv2d, nn.LazyLinear])(3))


def _norm_values(rng: random.Random, model: nn.Module) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        tensors = [t for t in (*rng.choice(norms).parameters(), *rng.choice(norms).buffers()) if t.is_floating_point()]
        if tensors:
            rng.choice(tensors).fill_(rng.choice([0.0, -1.0, 1e-30, 1e4, float("nan")]))


def _memory_format(rng: random.Random, model: nn.Module) -> None:
    model.to(memory_format=rng.choice([torch.channels_last, torch.contiguous_format]))


def _train_or_eval(rng: random.Random, model: nn.Module) -> None:
    model.train(rng.random() < 0.5)


SURGERY = (
    _prune,
    _parametrize,
    _zero_filters,
    _poison,
    _heal,
    _heal,
    _huge,
    _tiny,
    _replace_data,
    _replace_parameter,
    _remove_parameter,
    _freeze,
    _replace_layer,
    _share,
    _cast,
    _odd_dtype,
    _without_values,
    _inference,
    _buffer,
    _uncopied,
    _lazy,
    _norm_values,
    _norm_values,
    _memory_format,
    _train_or_eval,
)


@torch.no_grad()
def operate(rng: random.Random, model: nn.Module) -> str:
    """One random operation on the model; its name. What torch itself refuses is left undone."""
    operation = rng.choice(SURGERY)
    try:
        operation(rng, model)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        return f"{operation.__name__} (refused by torch: {type(error).__name__})"
    return operation.__name__
