"""Every report has a line, plain numbers, a short text and a table."""

import json
import math
import re
from itertools import takewhile

import pytest
import torch
from torch import nn

import weight_evolution
from weight_evolution import (
    AsynchronousUpdate,
    FilterGrafting,
    LowRankProjection,
    UnitActivity,
    UnitReactivation,
    WeightEvolution,
    filter_health,
    measure_overlap,
)
from weight_evolution.reports import Report, Rows, finite, plain


def make_net():
    torch.manual_seed(0)
    layers = []
    for _ in range(8):
        layers += [nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 4))
    with torch.no_grad():
        for layer in net[:18:3]:
            layer.weight[:2] *= 1e-3
            layer.bias[:2] = -10
        for norm in net[1:18:3]:
            norm.bias[:2] = -10
    return net


def evolution():
    return WeightEvolution(make_net(), schedule=lambda rate, epoch: 0.3).step()


def grafting():
    return FilterGrafting([make_net(), make_net()]).step()


def projection():
    return LowRankProjection(make_net(), prune_ratio=0.5).step()


def compact():
    return LowRankProjection(make_net(), prune_ratio=0.5).report((6, 4, 4))


def reactivation():
    net = make_net()
    method = UnitReactivation(net, torch.optim.SGD(net.parameters(), 0.1), every=1)
    net(torch.randn(5, 6, 4, 4))
    return method.step()


def activity():
    net = make_net()
    with UnitActivity(net) as measured:
        net(torch.randn(5, 6, 4, 4))
    return measured.report()


def overlap():
    return measure_overlap(make_net())


def health():
    return filter_health(make_net(), [torch.randn(5, 6, 4, 4)])


MAKE = [evolution, grafting, projection, compact, reactivation, activity, overlap, health]


@pytest.mark.parametrize("make", MAKE)
def test_all_have_the_same(make):
    report = make()
    assert isinstance(report, Report)
    summary, text, long = report.summary(), str(report), report.table()
    assert "\n" not in summary
    assert text.splitlines()[0] == summary
    short = list(takewhile(lambda line: not line.startswith("..."), text.splitlines()[1:]))
    layers = [line for line in short if re.match(r"\d+(\.weight)? ", line)]
    every = [line for line in long.splitlines() if re.match(r"\d+(\.weight)? ", line)]
    assert 1 <= len(layers) <= 5 < len(every)
    assert "more; table() has all" in text
    scalars = report.scalars()
    assert scalars
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in scalars.values())
    json.dumps(report.to_dict(), allow_nan=False)
    assert repr(report).startswith(f"<{type(report).__name__} of ")
    assert len(repr(report)) < 60


def test_no_report_is_forgotten():
    exported = {name for name in weight_evolution.__all__ if name.endswith("Report")}
    assert exported == {type(make()).__name__ for make in MAKE}


def test_what_cannot_be_said_in_json():
    value = {0.1: torch.tensor([1.0, math.nan]), "a": (math.inf, [True, None]), "b": torch.tensor(3)}
    assert plain(value) == {"0.1": [1.0, None], "a": [None, [True, None]], "b": 3}
    assert finite({"a": math.nan, "b": 2.0, "c": -math.inf}) == {"b": 2.0}


def test_the_rows_that_weigh_most_in_their_order():
    cells = [(str(i), "x" * i) for i in range(8)]
    rows = Rows(("n", "x"), cells, [0, 5, 1, 0, 9, 0, 7, 2])
    assert [line.split()[0] for line in rows.short(3)] == ["n", "1", "4", "6", "..."]
    assert rows.short(3)[-1] == "... and 5 more; table() has all"
    assert Rows(("n", "x"), cells, [0] * 8).short() == []
    assert len(rows.lines(("all", ""))) == 10


def test_a_step_that_was_not_done():
    net = make_net()
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = math.nan
    report = WeightEvolution(net, check_finite=False).step()
    assert report.summary() == "weight evolution after epoch 0: not done, a weight is not finite"
    json.dumps(report.to_dict(), allow_nan=False)
    assert "not done" in report.table()
    projected = LowRankProjection(net, check_finite=False).step()
    assert projected.summary() == "low-rank projection, step 0: not done, a weight is not finite"
    json.dumps(projected.to_dict(), allow_nan=False)


def test_methods_say_what_they_are():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    assert repr(WeightEvolution(net)) == "<WeightEvolution of 24 parameters, 0 steps>"
    assert repr(FilterGrafting([net, make_net()])) == "<FilterGrafting of 2 networks here, 0 steps>"
    assert repr(LowRankProjection(net)) == "<LowRankProjection of 8 layers, 0 steps>"
    assert repr(UnitReactivation(net, optimizer)) == "<UnitReactivation of 8 layers, 0 steps>"
    assert repr(AsynchronousUpdate(optimizer, net)) == "<AsynchronousUpdate of SGD, rate 0.5>"
    activity = UnitActivity(net)
    assert repr(activity) == "<UnitActivity of 8 layers>"
    with activity:
        assert repr(activity) == "<UnitActivity of 8 layers, measuring>"
