import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from tests.model import unit_networks as networks
from weight_evolution.model.unit_graph import find_units

X = torch.randn(networks.IMAGES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NETWORKS = {
    "mlp": (networks.mlp, X[0, 0, :2, :5]),
    "conv": (networks.ConvNet, X),
    "vgg module": (lambda: networks.vgg("module"), X),
    "vgg function": (lambda: networks.vgg(lambda x: torch.flatten(x, 1)), X),
    "vgg view": (lambda: networks.vgg(lambda x: x.view(x.size(0), -1)), X),
    "vgg reshape": (lambda: networks.vgg(lambda x: x.reshape(x.shape[0], -1)), X),
    "mobile": (networks.mobile, X),
    "resnet": (networks.resnet, X),
    "dense": (networks.Dense, X),
    "branching": (networks.Branching, X),
    "signal": (networks.signal, X.flatten(2)[:, :, :20]),
    "tokens": (networks.Tokens, X[:, 0, :3, :4]),
}
LAYERS = {
    "mlp": ["0", "3"],
    "conv": ["first", "second", "up", "up_again", "hidden"],
    "mobile": ["0.layers.0", "0.layers.3", "1.layers.0", "1.layers.3", "2", "4", "6"],
    "resnet": ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"],
    "dense": ["convs.0", "convs.1", "convs.2", "fire", "left", "right"],
    "branching": ["first", "second"],
    "signal": ["0", "4", "7"],
    "tokens": ["up"],
}
VGG_LAYERS = ["features.0", "features.3", "classifier.0"]


def make(name):
    make_net, x = NETWORKS[name]
    torch.manual_seed(0)
    model = make_net().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # as after training
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model, x


def units_of(name, model, x):
    return find_units(model, example_inputs=None if name in ("mlp", "conv", "resnet") or "vgg" in name else (x,))


@torch.no_grad()
def seen(model, x, graph):
    """The output, and what is at every place of activation, as if read by a hook."""
    values = {}
    handles = []
    for layer in graph.layers.values():
        for place in layer.activations:
            key = place.name, place.is_output
            if place.is_output:
                hook = place.module.register_forward_hook(lambda m, i, o, key=key: values.update({key: o.clone()}))
            else:
                hook = place.module.register_forward_pre_hook(lambda m, i, key=key: values.update({key: i[0].clone()}))
            handles.append(hook)
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, values


def weights_into(layer, unit):
    """A view of a unit's weights: a row, of a transposed convolution a column of its group."""
    if not getattr(layer, "transposed", False):
        return layer.weight[unit]
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    group = unit // outputs
    return layer.weight[group * inputs : (group + 1) * inputs, unit % outputs]


def weights_out_of(reader, unit):
    """Views of the reader's weight that together are all that reads this unit there."""
    layer, first = reader.module, reader.offset + unit * reader.block
    if not isinstance(layer, _ConvNd):
        return [layer.weight[:, first : first + reader.block]]
    if layer.transposed:
        return [layer.weight[first : first + reader.block]]
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    channels = [divmod(channel, inputs) for channel in range(first, first + reader.block)]
    return [layer.weight[group * outputs : (group + 1) * outputs, channel] for group, channel in channels]


@torch.no_grad()
def perturb(layer, unit):
    weights_into(layer.module, unit).add_(torch.randn(weights_into(layer.module, unit).shape))
    if layer.bias is not None:
        layer.bias[unit] += 3
    if layer.norm is not None:
        layer.norm.weight[unit] *= 5
        layer.norm.running_mean[unit] -= 2


@pytest.mark.parametrize("name", NETWORKS)
def test_without_its_outgoing_weights_nothing_depends_on_a_unit(name):
    model, x = make(name)
    graph = units_of(name, model, x)
    assert list(graph.layers) == LAYERS.get(name, VGG_LAYERS)
    before = copy.deepcopy(model.state_dict())
    original, places_before = seen(model, x, graph)
    for layer in graph.layers.values():
        changed_output, changed_places = 0, 0
        for unit in range(layer.units):
            perturb(layer, unit)
            output, places = seen(model, x, graph)
            changed_output += not torch.equal(output, original)
            for place in layer.activations:
                key, span = (place.name, place.is_output), place.span
                factor = places[key].shape[span.axis] // span.size
                own = slice(span.offset * factor, (span.offset + layer.units * span.block) * factor)
                different = (places[key] != places_before[key]).movedim(span.axis, 0)[own]
                different = different.unflatten(0, (layer.units, span.block * factor)).flatten(1).any(1)
                assert different.nonzero().flatten().tolist() in ([], [unit]), (layer.name, place.name)
                changed_places += bool(different.any())
            model.load_state_dict(before)
            with torch.no_grad():
                for part in (part for reader in layer.outgoing for part in weights_out_of(reader, unit)):
                    part.zero_()
            without, _ = seen(model, x, graph)
            perturb(layer, unit)
            again, _ = seen(model, x, graph)
            torch.testing.assert_close(again, without, rtol=0, atol=1e-13)
            model.load_state_dict(before)
        assert changed_output >= layer.units * 0.5, layer.name
        assert changed_places >= layer.units * 0.5, layer.name


@pytest.mark.parametrize("name", NETWORKS)
def test_outgoing_weights_are_of_one_unit_and_of_nothing_else(name):
    model, x = make(name)
    graph = units_of(name, model, x)
    for layer in graph.layers.values():
        for reader in layer.outgoing:
            count = torch.zeros_like(reader.module.weight)
            for unit in range(layer.units):
                parts = weights_out_of(reader, unit)
                assert sum(part.numel() for part in parts) == reader.elements
                saved = reader.module.weight.detach().clone()
                with torch.no_grad():
                    for part in parts:
                        part.fill_(torch.inf)
                    count += reader.module.weight.isinf()
                    reader.module.weight.copy_(saved)
            assert int(count.sum()) == layer.units * reader.elements
            assert count.max() == 1
            alone = reader.module.weight.shape[1] * getattr(reader.module, "groups", 1) == layer.units
            assert count.min() == (1 if alone or name != "dense" else 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_norms_are_sums_over_the_parts(name):
    model, x = make(name)
    for layer in units_of(name, model, x).layers.values():
        incoming = [weights_into(layer.module, unit).abs().sum().item() for unit in range(layer.units)]
        assert layer.incoming_norms().tolist() == pytest.approx(incoming)
        outgoing = [
            torch.cat([part.abs().flatten() for reader in layer.outgoing for part in weights_out_of(reader, unit)])
            .mean()
            .item()
            for unit in range(layer.units)
        ]
        assert (layer.outgoing_norms() / layer.outgoing_elements).tolist() == pytest.approx(outgoing)


def test_where_the_places_are():
    model, _ = make("conv")
    layers = find_units(model).layers
    # Behind functional nonlinearities the next module is given the activation.
    found = {name: [(place.name, place.is_output) for place in layer.activations] for name, layer in layers.items()}
    assert found == {
        "first": [("second", False)],
        "second": [("up", False)],
        "up": [("up_again", False)],
        "up_again": [("hidden", False)],
        "hidden": [("head", False)],
    }
    assert [layer.norm_name for layer in layers.values()] == ["first_norm", "second_norm", None, None, None]
    assert layers["first"].norm is model.first_norm
    layers = find_units(networks.vgg("module")).layers
    found = {name: [(place.name, place.is_output) for place in layer.activations] for name, layer in layers.items()}
    assert found["features.0"] == [("features.1", True)]
    assert found["features.3"] == [("features.5", True)]
    assert found["classifier.0"] == [("classifier.2", True)]
    assert layers["features.3"].outgoing[0].block == 4
    # A module that is called twice is no place for a hook.
    shared = nn.ReLU()
    layers = find_units(nn.Sequential(nn.Linear(2, 3), shared, nn.Linear(3, 3), shared, nn.Linear(3, 1))).layers
    assert [layer.activations[0].name for layer in layers.values()] == ["2", "4"]
    # Without a nonlinearity the next layer reads the activation.
    layers = find_units(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))).layers
    assert [(place.name, place.is_output) for place in layers["0"].activations] == [("1", False)]


def test_concatenations_and_multipliers_have_offsets_and_blocks():
    model, x = make("dense")
    layers = find_units(model, example_inputs=(x,)).layers
    assert [(reader.offset, reader.block) for reader in layers["right"].outgoing] == [(3 * 16, 16)]
    assert {reader.name: reader.offset for reader in layers["convs.1"].outgoing} == {"convs.2": 7, "fire": 7}
    assert (
        len(layers["convs.0"].activations) == 3
    )  # behind the nonlinearity of each convolution, and as "fire" reads it
    layers = find_units(networks.mobile()).layers
    assert [(reader.name, reader.offset, reader.block) for reader in layers["2"].outgoing] == [("6", 0, 2)]


def test_reasons():
    model = networks.Refused()
    graph = find_units(model)
    assert graph.layers == {}
    computed = "the weight of computed is computed (parametrized, weight_norm, pruned)"
    expected = {
        "residual": "it meets others in the addition add",
        "gate": "it meets others in the product or difference mul",
        "gated": "it meets others in the product or difference mul",
        "before_norm": "it goes to norm (LayerNorm), which is not understood",
        "before_rnn": "it goes to rnn (GRU), which is not understood",
        "rnn": "GRU is neither a convolution nor a Linear",
        "before_attention": "it goes to attention (MultiheadAttention) as another argument than the first",
        "attention": "MultiheadAttention is neither a convolution nor a Linear",
        "attention.out_proj": "not called in the traced graph",
        "before_twice": "it goes to twice, which is called 2 times",
        "twice": "called 2 times",
        "before_tied": "it goes to tied, whose weight is shared with that of tie",
        "tied": "its weight is shared with that of tie",
        "tie": "its weight is shared with that of tied",
        "before_computed": f"it goes to computed: {computed}",
        "computed": computed,
        "before_softmax": "it goes to softmax, which is not understood",
        "read_by_hand": "its weight is read by linear, too",
        "embedding": "Embedding is neither a convolution nor a Linear",
        "never": "not called in the traced graph",
        "unread": "nothing reads its output",
        "head": "it is the network's output",
    }
    assert graph.skipped == expected
    assert "skipped residual: it meets others in the addition" in str(graph)


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1)], r"1 \(GroupNorm\)"),
        ([nn.Conv2d(3, 4, 1), nn.PixelShuffle(2), nn.Conv2d(1, 2, 1)], r"1 \(PixelShuffle\)"),
        ([nn.Conv2d(3, 4, 1), nn.Linear(8, 2)], "reads dimension -1 of its input, the units are in -3"),
        ([nn.Conv2d(3, 4, 1), nn.Flatten(0), nn.Linear(8, 2)], "flattens it with the dimensions before the units"),
        ([nn.Linear(8, 4), nn.Conv2d(3, 2, 1)], "reads dimension -3"),
        ([nn.Linear(8, 3), nn.Flatten(), nn.Linear(3 * 24, 2)], "72 features, which are not 3"),
        ([nn.Linear(8, 3), nn.Conv2d(3, 3, 1, groups=3)], "reads dimension -3"),
    ],
)
def test_what_is_not_understood(layers, reason):
    with_head = nn.Sequential(*layers, nn.ReLU())
    graph = find_units(with_head)
    assert graph.layers == {}
    assert re.search(reason, graph.skipped["0"]), graph.skipped


def test_positions_before_features_are_no_block():
    model, x = make("tokens")
    reasons = find_units(model, example_inputs=(x,)).skipped
    assert "where a unit is in no block" in reasons["down"]
    assert "12 features, which are not 4" in find_units(model).skipped["down"]


def test_shapes_are_asked_for_where_they_decide():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4 * 64, 2)

        def forward(self, x):
            return self.head(self.conv(x).view(-1, 256))

    assert "pass example_inputs" in find_units(Viewed()).skipped["conv"]
    graph = find_units(Viewed(), example_inputs=(X.float(),))
    assert [(reader.name, reader.block) for reader in graph.layers["conv"].outgoing] == [("head", 64)]
    graph = find_units(networks.mlp(), example_inputs=(X.float(),))  # 8 features instead of 5
    assert "no shapes from example_inputs" in graph.errors[0]
    assert list(graph.layers) == ["0", "3"]


def test_a_model_that_cannot_be_traced_says_why():
    graph = find_units(networks.Branching())
    assert (graph.layers, graph.source) == ({}, "not traced")
    assert set(graph.skipped.values()) == {"the model could not be traced"}
    assert "example_inputs" in str(graph)


def test_looking_leaves_the_model_alone():
    model = networks.ConvNet().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.register_forward_hook(lambda *_: pytest.fail("a hook was called"))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    find_units(model, example_inputs=(X.float(),))
    assert torch.equal(torch.rand(1), expected)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_looking_draws_no_random_numbers():
    class Drawing(nn.Sequential):
        def __getstate__(self):  # called by each copy
            torch.rand(1)
            return dict(self.__dict__)

    model = Drawing(nn.Linear(3, 4), nn.Linear(4, 2))
    state = torch.get_rng_state()
    assert list(find_units(model, example_inputs=(torch.zeros(2, 3),)).layers) == ["0"]
    assert torch.equal(torch.get_rng_state(), state)


def test_chosen_layers():
    assert list(find_units(networks.mlp(), include=["3"]).layers) == ["3"]
    graph = find_units(networks.ConvNet(), exclude=[nn.Conv2d])
    assert list(graph.layers) == ["up", "up_again", "hidden"]
    assert graph.skipped["first"] == "excluded"


class Twice(nn.Module):
    """Reads the output of its first layer in two ways at once."""

    def __init__(self, join, layer):
        super().__init__()
        self.first, self.second, self.join = nn.Linear(3, 4), layer, join

    def forward(self, x):
        y = self.first(x)
        return self.second(self.join(y))


@pytest.mark.parametrize(
    ("join", "inputs", "reason"),
    [
        (lambda y: torch.cat([y, torch.relu(y)], -1), 8, "meets itself in cat"),
        (lambda y: torch.cat([y, y], -1), 8, "it goes to cat twice"),
        (lambda y: torch.cat([y, torch.ones(2, 4)], 0), 4, "it goes to cat, which needs shapes"),
        (lambda y: torch.cat([y, y.new_ones(2, 4)], -1), 8, "goes to new_ones"),
        (lambda y: y + 0.5 * y, 4, "meets itself in add"),
        (lambda y: torch.max(y, dim=0)[0], 4, "goes to max_1, which is not understood"),
        (lambda y: y.sum(-1, keepdim=True).expand(-1, 4), 4, "meets others in sum_1, which reduces over the units"),
        (lambda y: y.mean(), 4, "meets others in mean, which reduces over the units"),
        (lambda y: nn.functional.pad(y, (1, 0)), 5, "goes to pad, which pads the units"),
        (lambda y: y[:, :2], 2, "goes to getitem, which is not understood"),
        (lambda y: nn.functional.linear(torch.ones(4, 4), y), 4, "meets others in linear"),
        (lambda y: torch.where(y > 0, y, 0.0), 4, "goes to gt"),
    ],
)
def test_ways_that_are_refused(join, inputs, reason):
    graph = find_units(Twice(join, nn.Linear(inputs, 2)))
    assert re.search(reason, graph.skipped["first"]), graph.skipped


def test_ways_that_are_understood():
    for join in (
        lambda y: torch.relu(y).detach(),
        lambda y: nn.functional.dropout(3 * y - 1),
        lambda y: nn.functional.relu(input=y),
        lambda y: y.mean(-2),
        lambda y: y.to(torch.float32).clamp_min(0) / 2,
    ):
        graph = find_units(Twice(join, nn.Linear(4, 2)))
        assert list(graph.layers) == ["first"], graph.skipped


def test_own_forward_and_lazy_layers():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    graph = find_units(nn.Sequential(nn.Conv2d(3, 4, 1), Standardized(4, 4, 1), nn.Conv2d(4, 1, 1)))
    assert "computes something of its own" in graph.skipped["0"]
    assert "computes something of its own" in graph.skipped["1"]
    patched = networks.mlp()
    patched[0].forward = patched[0].forward
    assert "set on the module" in find_units(patched).skipped["0"]
    graph = find_units(nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(2), nn.Linear(2, 1)))
    assert "not initialized" in graph.skipped["1"]
