import json
import math
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from tests.processes import ROOT
from weight_evolution import WeightEvolution, filter_health
from weight_evolution.training.models import make_model

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(size, 3, 10, 10, generator=GENERATOR) for size in (6, 4)]


def make_net():
    """Two convolutions and two Linears with planted faults."""
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    )
    with torch.no_grad():
        net[0].weight[:2] = 0
        net[0].bias[:2] = 0
        net[0].weight[2] *= 0.01  # inferior, not zero
        net[0].weight[4] = -2 * net[0].weight[3]  # alike
        net[0].bias[5] = -100  # never fires
        net[2].weight.copy_((torch.rand(1, 12, 3, 3) - 0.5) * torch.arange(1, 9).view(8, 1, 1, 1) / 8)
        net[5].bias[:4] = -1000
    return net


def test_planted_faults_are_found():
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = filter_health(net, BATCHES)
    first, second, third, head = (report.layers[name] for name in ("0", "2", "5", "7"))
    assert (first.filters, first.zero, first.inferior, first.overlapping) == (12, 2, 3, 2)
    assert first.invalid == {0.1: 2 + int(first.norms[2] < 0.1), 0.01: 2 + int(first.norms[2] < 0.01)}
    assert first.activity.dead == 3
    assert second.overlapping == 8
    assert second.spectrum.ranks == {0.9: 1, 0.99: 1}
    assert second.spectrum.effective_rank == pytest.approx(1, abs=0.05)
    assert third.activity.scores[:4].tolist() == [0] * 4
    assert third.activity.dead == int((third.activity.scores == 0).sum())
    assert head.activity is None
    assert report.without_activity == {"7": "it is the network's output"}
    assert (head.full_rank, third.full_rank) == (5, 20)
    assert report.parameters == sum(p.numel() for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training


def test_totals_text_and_json():
    report = filter_health(make_net(), BATCHES)
    totals = report.scalars()
    assert totals["filters"] == 12 + 8 + 20 + 5
    assert totals["zero"] == sum(layer.zero for layer in report.layers.values()) == 2
    assert totals["dead"] == sum(layer.activity.dead for layer in report.layers.values() if layer.activity)
    assert all(isinstance(value, int | float) for value in totals.values())
    assert "\n" not in report.summary()
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["totals"] == totals
    short, long = str(report), report.table()
    assert len(short.splitlines()) < 20
    assert all(line.split()[0] in ("layer", "all", "activity", *report.layers) for line in long.splitlines())
    assert "never fire" in short
    assert short.splitlines()[3].startswith("2 ")
    assert short.splitlines()[5] == "... and 1 more; table() has all"


def test_without_batches_says_so():
    report = filter_health(make_net())
    assert all(layer.activity is None for layer in report.layers.values())
    assert "dead" not in report.scalars()
    assert "no batches were given" in report.previews["UnitReactivation"].sentence
    assert "no batches were given" in report.advice[-1]


def test_one_reason_for_all_layers_is_said_once():
    net = make_net().to(torch.float8_e4m3fn)
    message = "no layer to measure: 0, 2, 5 and 1 more: must be float32, .* got torch.float8_e4m3fn$"
    with pytest.raises(ValueError, match=message):
        filter_health(net)


def test_previews_are_what_the_methods_do():
    from weight_evolution import LowRankProjection, UnitReactivation

    net = make_net()
    report = filter_health(net, BATCHES, input_size=(3, 10, 10))
    evolved = WeightEvolution(net, schedule=lambda rate, epoch: rate, starvation_divisor=None).preview()
    assert report.previews["WeightEvolution"].numbers["filters_replaced"] == sum(evolved.inferior.values()) > 0
    ranks = {name: layer.spectrum.ranks[0.9] for name, layer in report.layers.items()}
    low_rank = LowRankProjection(net, ranks=ranks, linear=True).report((3, 10, 10))
    numbers = report.previews["LowRankProjection"].numbers
    assert numbers["macs_share"] == low_rank.macs_share < 1
    assert numbers["parameters_share"] == low_rank.parameters_share
    shares = filter_health(net).previews["LowRankProjection"].numbers
    assert shares["parameters_share"] == pytest.approx(low_rank.parameters_share)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    reactivation = UnitReactivation(net, optimizer, every=1)
    for batch in BATCHES:
        net(batch)
    assert report.previews["UnitReactivation"].numbers["units_revived"] == reactivation.step().total


def test_a_healthy_network_gets_no_treatment():
    torch.manual_seed(0)
    report = filter_health(make_model("resnet8", 3, 10))
    assert report.advice[0].startswith("Nothing here needs a treatment")
    assert "more; table()" not in str(report)


def test_the_preview_of_an_evolution_is_without_starvation():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 8, 3), *(nn.Conv2d(8, 8, 3) for _ in range(5)))
    starving = WeightEvolution(net, schedule=lambda rate, epoch: rate, include=["*"]).preview()
    assert sum(starving.starved.values()) > 0
    assert filter_health(net, include=["*"]).previews["WeightEvolution"].numbers["filters_replaced"] == 0


def test_weights_that_are_not_finite():
    net = make_net()
    with torch.no_grad():
        net[2].weight[1, 2, 0, 0] = math.nan
    report = filter_health(net)
    assert report.advice == ["2: a weight is NaN or infinite. Restore an earlier checkpoint; nothing else helps."]
    assert "NaN" in report.table()
    json.dumps(report.to_dict(), allow_nan=False)
    assert not report.layers["2"].finite
    assert report.layers["0"].finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    wide = filter_health(make_net().double()).layers
    narrow = filter_health(make_net().to(dtype)).layers
    for name, layer in wide.items():
        assert narrow[name].zero == layer.zero
        assert narrow[name].overlapping == layer.overlapping
        assert narrow[name].spectrum.effective_rank == pytest.approx(layer.spectrum.effective_rank, rel=0.02)


def test_shared_computed_and_other_weights():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
            self.head.weight = self.embed.weight
            self.again, self.normed = nn.Linear(6, 10, bias=False), spectral_norm(nn.Linear(6, 6))
            self.again.weight = self.head.weight
            self.lazy, self.up = nn.LazyLinear(3), nn.ConvTranspose2d(4, 6, 3, groups=2)

    odd = Odd()
    state = {name: value.clone() for name, value in odd.normed.state_dict().items()}
    report = filter_health(odd)
    assert set(report.layers) == {"head", "normed", "up"}
    assert report.layers["up"].filters == 6
    assert "Embedding" in report.skipped["embed.weight"]
    assert report.skipped["again"] == "shares its weight with head"
    assert "not initialized" in report.skipped["lazy"]
    assert all(torch.equal(value, state[name]) for name, value in odd.normed.state_dict().items())


def test_large_layers_only_when_asked():
    net = nn.Linear(2100, 2060, bias=False)
    report = filter_health(net)
    layer = report.layers[""]
    assert layer.spectrum is layer.overlapping is layer.mean_overlap is None
    json.dumps(report.to_dict(), allow_nan=False)
    assert "(model)" in report.table()


def test_include_exclude_and_wrappers():
    expected = filter_health(make_net(), BATCHES).layers["5"].activity.dead
    net = nn.DataParallel(make_net())
    assert set(filter_health(net).layers) == {"0", "2", "5", "7"}
    report = filter_health(net, BATCHES, include=[nn.Linear], exclude=["7"])
    assert set(report.layers) == {"5"}
    assert set(report.skipped) == {"0", "2", "7"}
    assert report.layers["5"].activity.dead == expected


def test_batches_of_every_form():
    net = make_net().train()
    net[2].eval()
    expected = filter_health(net, BATCHES).scalars()
    labelled = [(batch, torch.zeros(len(batch))) for batch in BATCHES]
    assert filter_health(net, labelled).scalars() == expected
    assert filter_health(net, ({"input": batch} for batch in BATCHES)).scalars() == expected
    assert [module.training for module in (net, net[0], net[2])] == [True, True, False]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batches": torch.zeros(2, 3, 10, 10)}, TypeError, r"give \[batch\]"),
        ({"batches": 3}, TypeError, "batches must be"),
        ({"batches": []}, ValueError, "batches must hold at least one"),
        ({"batches": [7]}, TypeError, "batches must hold tensors"),
        ({"full": 1}, TypeError, "full must be"),
        ({"include": ["nothing"]}, ValueError, "nothing"),
        ({"input_size": [0]}, None, ""),
    ],
)
def test_bad_arguments(arguments, error, message):
    if error is None:
        assert "input_size" in filter_health(make_net(), **arguments).previews["LowRankProjection"].sentence
        return
    with pytest.raises(error, match=message):
        filter_health(make_net(), **arguments)


def test_no_layer_and_no_model():
    with pytest.raises(ValueError, match="no layer to measure: the model has none"):
        filter_health(nn.ReLU())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        filter_health({"weight": torch.zeros(3)})


def test_the_example_of_the_page(capsys):
    page = (ROOT / "docs" / "filter-health.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (output,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out == output
