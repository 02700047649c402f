"""What WeightEvolution leaves out though it could take it, and why."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DataParallel

from weight_evolution import WeightEvolution

compiled = partial(torch.compile, backend="eager")
OUTPUT = "its layer's output is the network's; include= brings it back"


class Detector(nn.Module):
    """A trunk and two heads of convolutions."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.box = nn.Conv2d(8, 4, 1)
        self.score = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.trunk(x)
        scores = functional.adaptive_avg_pool2d(functional.relu(self.score(x)), 1).flatten(1).softmax(1)
        return {"boxes": self.box(x).permute(0, 2, 3, 1), "scores": scores}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        return x + self.last(functional.relu(self.first(x)))


class Branching(Residual):
    """Cannot be traced: what forward does depends on values."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.keys, self.values = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.keys(x).flatten(2) @ self.values(x).flatten(2).transpose(1, 2)


def names(model, **options):
    return list(WeightEvolution(model, **options).state_dict()["filters"])


@pytest.mark.parametrize(
    ("model", "taken", "outputs"),
    [
        (Detector(), ["trunk.0.weight", "trunk.1.weight", "trunk.1.bias"], ["box.weight", "score.weight"]),
        (Residual(), ["first.weight"], ["last.weight"]),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.ConvTranspose2d(8, 3, 3)), ["0.weight"], ["2.weight"]),
        (Branching(), ["first.weight", "last.weight"], []),
        (Attention(), ["keys.weight", "values.weight"], []),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), ["0.weight", "1.weight", "1.bias"], []),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), ["0.weight"], []),  # a network of output layers only
    ],
    ids=["detector", "residual", "decoder", "not traced", "attention", "norm", "only outputs"],
)
def test_output_layers(model, taken, outputs):
    evolution = WeightEvolution(model)
    assert list(evolution.state_dict()["filters"]) == taken
    assert evolution.skipped == dict.fromkeys(outputs, OUTPUT)
    assert sorted(names(model, include=["*"])) == sorted(taken + outputs)


def test_the_output_stays_what_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1))
    with torch.no_grad():
        model[3].weight[:4] *= 1e-3
    before = model[3].weight.clone()
    WeightEvolution(model, conv_rate=0.9, schedule=lambda rate, epoch: rate, local_ratio=1.0).step()
    assert torch.equal(model[3].weight, before)


def test_a_linear_head_is_an_output_layer_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    assert names(model, linear_rate=0.2) == ["0.weight", "2.weight"]
    assert names(model, linear_rate=0.2, include=["*"])[-1] == "4.weight"


def test_tracing_leaves_the_model_as_it_was():
    model = Detector()
    called = []
    model.register_forward_hook(lambda *a: called.append(1))
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    WeightEvolution(model)
    assert not called
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_adapters():
    model = nn.ModuleDict(
        {"base": nn.Conv2d(3, 8, 3), "lora_A": nn.Conv2d(3, 2, 3), "lora_B": nn.ModuleDict({"a": nn.Conv2d(2, 8, 1)})}
    )
    evolution = WeightEvolution(model)
    assert list(evolution.state_dict()["filters"]) == ["base.weight"]
    assert set(evolution.skipped) == {"lora_A.weight", "lora_B.a.weight"}
    assert "adapter (LoRA)" in evolution.skipped["lora_A.weight"]
    assert names(model, include=["lora_A"]) == ["lora_A.weight"]


class Standardized(nn.Conv2d):
    def forward(self, x):
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(x, (self.weight - mean) / deviation, self.bias, self.stride, self.padding)


class Binary(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight.sign(), bias)


class Same(nn.Conv2d):
    """As in timm: pads, and then convolves as ever."""

    def forward(self, x):
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1)), self.weight, self.bias, groups=self.groups)


class Conditional(nn.Conv2d):
    def forward(self, x, condition):
        return super().forward(x) * condition


@pytest.mark.parametrize("cls", [Standardized, Binary, Conditional])
def test_subclasses_that_compute_something_else(cls):
    model = nn.ModuleList([nn.Conv2d(3, 8, 3), cls(8, 8, 3, bias=False), cls(8, 4, 3, groups=2, dilation=2)])
    random, weight = torch.get_rng_state(), model[1].weight.clone()
    evolution = WeightEvolution(model)
    assert list(evolution.state_dict()["filters"]) == ["0.weight"]
    reason = f"{cls.__name__} computes something else than Conv2d"
    assert [why.split(":")[0] for why in evolution.skipped.values()] == [reason] * 2
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model[1].weight, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_subclasses_that_only_pad_take_part(dtype):
    model = nn.ModuleList([Same(3, 8, 3), Same(8, 4, (3, 5), groups=2, bias=False)]).to(dtype)
    assert names(model) == ["0.weight", "1.weight"]


def test_parameters_of_another_optimizer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    optimizer = torch.optim.SGD(model[2:].parameters(), lr=0.1)
    evolution = WeightEvolution(model, optimizer=optimizer)
    assert list(evolution.state_dict()["filters"]) == ["2.weight", "3.weight", "3.bias"]
    assert set(evolution.skipped.values()) == {"not among the optimizer's parameters"}
    optimizer.add_param_group({"params": model[0].parameters()})
    assert list(evolution.step().filters) == ["0.weight", "2.weight", "3.weight", "3.bias"]
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="has none of the model's weights"):
        WeightEvolution(model, optimizer=other, optimizer_state="reset")


def test_an_optimizer_is_not_blamed_where_nothing_could_take_part():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"no trainable convolution or BatchNorm.*linear_rate > 0"):
        WeightEvolution(model, optimizer=optimizer)


@pytest.mark.parametrize("wrap", [DataParallel, compiled, lambda m: DataParallel(compiled(m))])
def test_names_are_without_wrappers(wrap):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    plain = WeightEvolution(model)
    wrapped = WeightEvolution(wrap(model))
    wrapped.load_state_dict(plain.state_dict())
    assert wrapped.state_dict() == plain.state_dict()
    assert WeightEvolution(wrap(model), exclude=["0"]).skipped == {"0.weight": "excluded"}


def test_a_model_of_which_little_takes_part_says_so():
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.Linear(64, 640), nn.Linear(640, 64))
    with pytest.warns(UserWarning, match=r"only 1 parameters with 0.46% of the model's trainable elements"):
        evolution = WeightEvolution(model)
    evolution.step()
    WeightEvolution(model, include=["0"])
    WeightEvolution(model, linear_rate=0.1)


def test_models_without_layers_say_why():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    exported = torch.export.export(model, (torch.zeros(1, 3, 8, 8),)).module()
    with pytest.raises(ValueError, match=r"it is exported \(torch.export\)"):
        WeightEvolution(exported)


@pytest.mark.filterwarnings("ignore")  # torch.jit and torch.ao are deprecated
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (torch.jit.script, r"it is scripted or traced \(torch.jit\)"),
        (lambda model: nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 8, 3)), r"its layers are quantized"),
    ],
    ids=["scripted", "quantized"],
)
def test_models_that_hide_their_layers_say_why(make, reason):
    with pytest.raises(ValueError, match=reason):
        WeightEvolution(make(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))))


@pytest.mark.parametrize("shape", [(0,), (24,), (8, 3, 1), (4, 3, 3, 3)])
def test_a_part_of_a_weight_is_refused_at_once_and_later(shape):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    evolution = WeightEvolution(model)
    shift = model[1].bias.clone()
    model[0].weight.data = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"0.weight has shape .*FSDP, ZeRO-3"):
        evolution.step()
    assert torch.equal(model[1].bias, shift)
    with pytest.raises(ValueError, match=r"0.weight has shape .*FSDP, ZeRO-3"):
        WeightEvolution(model)
