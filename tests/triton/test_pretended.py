"""Whole steps on a pretended GPU: what is launched, copied and waited for, and CUDA graphs. See `pretend_gpu`."""

import copy
import os

import pytest
import torch
from torch import nn

import we_kernels as wk
from tests import availability
from tests.pretend_gpu import Graph, on_gpu, pretend_gpu
from weight_evolution import NonFiniteWeightError, UnitActivity, WeightEvolution

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the interpreter is off (test_gpu.py runs on the GPU itself)", allow_module_level=True)
pytest.importorskip("triton")

from we_kernels.activity.triton import launches as activity_launches
from we_kernels.evolution import cuda
from we_kernels.evolution.triton import launches, tables

STEP = ["importance_kernel", "matching_kernel", "match_and_cross_kernel"]


@pytest.fixture
def gpu(monkeypatch):
    with pretend_gpu(monkeypatch) as pretended:
        yield pretended


def network(layers=2, linear=False, seed=0):
    torch.manual_seed(seed)
    blocks = [m for i in range(layers) for m in (nn.Conv2d(3 + i, 4 + i, 3), nn.BatchNorm2d(4 + i))]
    model = nn.Sequential(*blocks, *([nn.Linear(3 + layers, 6)] if linear else []))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0 ** (-3 * torch.rand(len(parameter), *[1] * (parameter.dim() - 1)))).add_(1e-4)
    return model


def values(model):
    with torch._C.DisableTorchFunction():
        return [parameter.detach().clone() for parameter in model.parameters()]


def same(ours, wanted):
    with torch._C.DisableTorchFunction():
        return all(torch.equal(a.nan_to_num(5.0), b.nan_to_num(5.0)) for a, b in zip(ours, wanted, strict=True))


def evolution_of(model, **options):
    defaults = {"conv_rate": 0.6, "norm_scale_rate": 0.5, "norm_shift_rate": 0.4, "local_ratio": 0.5, "include": ["*"]}
    return WeightEvolution(model, **defaults | {"measure_after": False} | options)


def test_what_a_step_asks_of_the_device_does_not_depend_on_the_layers(gpu):
    """Convolutions, scales and shifts in one set of launches; one upload (rates), one download (thresholds)."""
    seen = {}
    for layers in (1, 6):
        evolution = evolution_of(on_gpu(network(layers)), measure_after=True)
        evolution.step()
        gpu.events.clear()
        evolution.step()
        seen[layers] = [event[:2] for event in gpu.events]
        assert gpu.launches() == [*STEP, "importance_kernel"], "the last for the report's importances after the step"
        assert gpu.count("wait") == 0
        assert [event for event in gpu.events if event[0] in ("upload", "download")] == [("upload", 3), ("download", 3)]
    assert seen[1] == seen[6]


def test_rates_are_sent_only_when_they_change(gpu):
    evolution = evolution_of(on_gpu(network(1)), schedule=lambda rate, epoch: rate / (1 + epoch // 2))
    sent = []
    for _ in range(4):
        gpu.events.clear()
        evolution.step()
        sent.append([event[1] for event in gpu.events if event[0] == "upload"].count(3))
    assert sent[1:] == [0, 1, 0]


def test_step_does_not_wait_and_its_report_does_once(gpu):
    evolution = evolution_of(on_gpu(network()))
    evolution.step()
    evolution.preview()
    gpu.idle = False
    gpu.events.clear()
    reports = [evolution.step() for _ in range(3)]
    preview = evolution.preview()
    assert gpu.count("wait") == 0
    for report in (*reports, preview):
        gpu.events.clear()
        assert set(report.thresholds) == {"conv", "norm_scale", "norm_shift"}
        assert {event for event in gpu.events if event[0] == "wait"} == {("wait", "an event")}
        gpu.events.clear()
        assert set(report.thresholds) == {"conv", "norm_scale", "norm_shift"}
        assert gpu.events == []


def test_results_are_those_of_the_cpu(gpu):
    model = network(linear=True)
    other = on_gpu(copy.deepcopy(model))
    with wk.use_backend("triton"):
        ours, wanted = (evolution_of(m, linear_rate=0.5).step() for m in (other, model))
    assert same(values(other), values(model))
    assert ours.thresholds == wanted.thresholds
    assert ours.counters == wanted.counters
    for name, donor in wanted.donors.items():
        assert ours.donors[name].tolist() == donor.tolist()
    assert sum(wanted.inferior.values()) > 5


def broken(seed=0):
    model = on_gpu(network(seed=seed))
    with torch._C.DisableTorchFunction():
        model[2].weight.data[1, 2, 0, 0] = float("nan")
    return model


def test_a_weight_that_is_not_finite_is_reported_when_the_report_is_read(gpu):
    model = broken()
    before, evolution = values(model), evolution_of(model)
    gpu.idle = False
    report = evolution.step()
    assert same(values(model), before)
    with pytest.raises(NonFiniteWeightError, match=r"2\.weight"):
        report.donors  # noqa: B018
    assert all(rows.eq(-1).all() for rows in report.donors.values()), "raises once"
    assert not report.finite
    gpu.idle = True
    evolution.step()


def test_a_weight_that_is_not_finite_is_reported_by_the_next_step_at_the_latest(gpu):
    model = broken()
    before, evolution = values(model), evolution_of(model)
    evolution.step()
    gpu.idle = False
    evolution.step()  # the device is busy: nobody waits to find out
    gpu.idle = True
    gpu.events.clear()
    with pytest.raises(NonFiniteWeightError, match=r"2\.weight"):
        evolution.step()
    assert gpu.launches() == []
    assert same(values(model), before)
    assert evolution.epoch == 2
    with pytest.raises(NonFiniteWeightError):
        evolution.step()  # the second of the two
    model[2].weight.data = torch.zeros(5, 4, 3, 3, device="cuda")
    assert evolution.step().epoch == 2


def test_unchecked_steps_say_nothing(gpu):
    model = broken()
    evolution = evolution_of(model, check_finite=False)
    report = evolution.step()
    evolution.step()
    assert not report.finite
    assert "not done" in report.table()


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adagrad])
def test_resetting_an_optimizer_does_not_wait(gpu, make):
    with torch._C.DisableTorchFunction():
        model = network(1)
        optimizer = make(model.parameters(), lr=0.1)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    on_gpu(model)
    for state in optimizer.state.values():
        for name, value in state.items():
            if name != "step":
                value._pretended = 0
    evolution = evolution_of(model, optimizer=optimizer, optimizer_state="reset")
    evolution.step()
    gpu.events.clear()
    evolution.step()
    assert gpu.count("wait") == 0


def reshuffle(models, seed):
    """The same new weights for every model."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        for model in models:
            for own, new in zip(
                model.parameters(), network(len(model) // 2, linear=True, seed=seed).parameters(), strict=True
            ):
                own.copy_(new)


def test_a_graph_replays_with_changed_weights_and_rates(gpu):
    models = [on_gpu(network(1, linear=True)) for _ in range(2)]
    options = {"schedule": lambda rate, epoch: rate / (1 + epoch % 3), "linear_rate": 0.5, "measure_after": True}
    eager, graphed = evolution_of(models[0], **options), evolution_of(models[1], **options, cuda_graph=True)
    pairs, made = [], Graph.made
    for seed in range(4):
        reshuffle(models, seed)
        version = models[1][0].weight._version
        gpu.events.clear()
        wanted = eager.step()
        gpu.events.clear()
        pairs.append((wanted, graphed.step()))
        assert models[1][0].weight._version > version
        if seed > 1:
            assert gpu.launches() == []
            assert gpu.count("wait") == 0
        assert same(values(models[1]), values(models[0])), seed
    assert Graph.made == made + 1
    for wanted, found in pairs:  # read late: every report has memory of its own
        assert found.thresholds == wanted.thresholds
        assert found.counters == wanted.counters
        assert found.rates == wanted.rates
        for name in wanted.donors:
            assert found.donors[name].tolist() == wanted.donors[name].tolist()
            assert found.importance_after[name].tolist() == wanted.importance_after[name].tolist()
    assert len({str(sorted(found.inferior.items())) for _, found in pairs}) > 2


@pytest.mark.parametrize("which", ["0.weight", "2.bias"])
def test_a_graph_is_recorded_again_when_a_parameter_moved(gpu, which):
    models = [on_gpu(network(1, linear=True)) for _ in range(2)]
    eager, graphed = evolution_of(models[0], linear_rate=0.5), evolution_of(models[1], linear_rate=0.5, cuda_graph=True)
    for seed in range(4):
        reshuffle(models, seed)
        if seed == 2:
            parameter = dict(models[1].named_parameters())[which]
            old = parameter.data
            parameter.data = old.clone()
            kept = values(models[1])[0] if which == "0.weight" else old.tolist()
        eager.step()
        graphed.step()
        assert same(values(models[1]), values(models[0])), seed
    assert old.tolist() == (kept.tolist() if which == "0.weight" else kept), "the old memory is left alone"


def test_a_graph_counts_in_the_counters_that_are_loaded(gpu):
    models = [on_gpu(network(1)) for _ in range(2)]
    starving = {"local_ratio": 0.0, "starvation_divisor": 0.1}
    eager, graphed = evolution_of(models[0], **starving), evolution_of(models[1], **starving, cuda_graph=True)
    for evolution in (eager, graphed):
        for _ in range(3):
            evolution.step()
        saved = evolution.state_dict()
        saved["starvation"] = dict(zip(saved["starvation"], (7, 3, 11), strict=True))
        evolution.load_state_dict(saved)
        evolution.step()
    assert graphed.state_dict() == eager.state_dict()
    assert graphed.state_dict()["starvation"]["conv"] > 7


def test_a_graph_with_poisoned_weights_changes_nothing_and_says_so(gpu):
    model = on_gpu(network(1))
    evolution = evolution_of(model, cuda_graph=True)
    for _ in range(3):
        evolution.step()
    with torch._C.DisableTorchFunction():
        model[0].weight.data[0, 0, 0, 0] = float("inf")
    before = values(model)
    report = evolution.step()
    assert same(values(model), before)
    with pytest.raises(NonFiniteWeightError, match=r"0\.weight"):
        report.table()


def test_what_cannot_be_captured_is_refused(gpu):
    model = on_gpu(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match='cuda_graph=True needs optimizer_state="keep"'):
        WeightEvolution(model, optimizer=optimizer, optimizer_state="reset", cuda_graph=True)
    evolution = evolution_of(model)
    evolution.step()
    before = values(model)
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="cuda_graph=True"):
        evolution.step()
    bank = wk.FilterBank([model[0].weight])
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="before capturing"):
        wk.evolve_(bank, rate=0.123)
    assert same(values(model), before)


def test_a_graph_needs_a_backend_that_does_not_wait(gpu):
    model = on_gpu(network(1))
    before = values(model)
    with wk.use_backend("torch"), pytest.raises(wk.BackendUnavailableError, match="install Triton"):
        evolution_of(model, cuda_graph=True).step()
    assert same(values(model), before)


def test_a_graph_with_the_native_backend_needs_no_triton(gpu, monkeypatch):
    model = on_gpu(network(1))
    availability.pretend(monkeypatch, lambda name, device: "not here" if name == "triton" else None)
    for name in ("evolve_", "filter_importance"):  # in place of the extension's kernels, which want a device
        monkeypatch.setattr(cuda, name, getattr(launches, name))
    evolution = evolution_of(model, cuda_graph=True)
    made = Graph.made
    assert all(evolution.step().finite for _ in range(3))
    assert Graph.made == made + 1


def test_a_second_call_sends_and_makes_nothing_but_its_results(gpu):
    model = on_gpu(network(2))
    bank = wk.FilterBank([p for p in model.parameters() if p.dim() > 1])
    for rate in (0.5, [0.25], torch.tensor([0.75], dtype=torch.float64, device="cuda")):
        wk.evolve_(bank, rate=rate)
        gpu.events.clear()
        wk.evolve_(bank, rate=rate)
        assert gpu.launches() == STEP
        assert [event[1] for event in gpu.events if event[0] == "allocate"] == []
        assert gpu.count("upload") == gpu.count("wait") == 0
    model[0].weight.data = model[0].weight.data.clone()
    gpu.events.clear()
    wk.evolve_(bank, rate=0.5)
    assert [event for event in gpu.events if event[0] in ("upload", "wait")] == [("upload", 2)], "addresses only"


def test_a_graph_sets_no_memory_to_zero(gpu, monkeypatch):
    """The counts of programs that are through are zero before it; where another graph took them, it makes its own."""
    models = [on_gpu(network(2)) for _ in range(2)]
    eager, graphed = (wk.FilterBank([p for p in model.parameters() if p.dim() > 1]) for model in models)
    wk.evolve_(eager, rate=0.5)
    wk.evolve_(graphed, rate=0.5)
    made, new = [], tables._new_progress
    monkeypatch.setattr(tables, "_new_progress", lambda *options: made.append(gpu.graph) or new(*options))
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
    for graph in graphs:
        with torch.cuda.graph(graph):
            wk.evolve_(graphed, rate=0.5)
    assert made == [graphs[1]]
    for graph in graphs * 2:
        graph.replay()
        wk.evolve_(eager, rate=0.5)
    assert made == [graphs[1], None], "for the next graph"
    assert same(values(models[1]), values(models[0]))


def pretended_plan(layers):
    """Small layers behind each other with their second moments, of which units of all but the first are revived."""
    items = []
    for i in range(layers):
        rows = 3 * i + torch.arange(3)
        for values in (("draw", "zero"), ("mean", "mean"), ("given", "keep")):
            tensor = torch.rand(3, 3, 2)
            tensor._pretended = 0
            items.append(wk.UnitTensor(tensor, rows, rows - 3 if i else None, 1, values[0], values[1] if i else "keep"))
    return wk.UnitPlan(items, 3 * layers)


def test_a_reactivation_is_three_launches_and_waits_for_nothing(gpu):
    seen = {}
    for layers in (1, 3):
        plan, given = pretended_plan(layers), torch.ones(layers, device="cuda")
        step = torch.zeros(1, dtype=torch.int64, device="cuda")
        activity = torch.arange(3 * layers, device="cuda").remainder(3).float()
        for _ in range(2):
            gpu.events.clear()
            dormant = wk.dormant_units(activity, [3] * layers, 0.1)
            wk.reactivate_(plan, dormant, seed=1, step=step, given=given)
        seen[layers] = [event for event in gpu.events if event[0] != "operator"]
        assert gpu.launches() == ["dormant_kernel", "unit_sums_kernel", "write_units_kernel"]
        assert gpu.count("wait") == gpu.count("upload") == gpu.count("download") == 0
    assert seen[1] == seen[3]


def test_a_reactivation_in_a_graph_revives_who_is_dormant_at_the_replay(gpu):
    plan = pretended_plan(2)
    given, step = torch.ones(2, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    activity = torch.ones(6, device="cuda")

    def revive():
        wk.reactivate_(plan, wk.dormant_units(activity, [3, 3], 0.1), seed=1, step=step, given=given)

    revive()
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        revive()
    with torch._C.DisableTorchFunction():
        before = [item.tensor.clone() for item in plan.items]
        graph.replay()
        assert all(torch.equal(item.tensor, was) for item, was in zip(plan.items, before, strict=True))
        activity[4] = 0.0
        graph.replay()
        drawn, moments, steps = (item.tensor for item in plan.items[3:])
        assert [i for i in range(3) if not torch.equal(drawn[i], before[3][i])] == [1]
        assert steps[1].eq(1).all()
        assert torch.equal(moments[1].unique(), moments[1, 0, :1])


def test_a_reactivation_in_a_graph_before_the_first_call_is_refused(gpu):
    weight = torch.ones(3, 17)
    weight._pretended = 0
    plan = wk.UnitPlan([wk.UnitTensor(weight, torch.arange(3), row_value="zero")], 3)
    plan.view()
    revived, step = torch.ones(3, dtype=torch.bool, device="cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="before capturing"):
        wk.reactivate_(plan, revived, seed=0, step=step)
    assert weight.eq(1).all()


def test_a_model_on_several_gpus_is_refused(gpu):
    model = network(3)
    on_gpu(model[:2], 0)
    on_gpu(model[2:], 1)
    before = values(model)
    with pytest.raises(ValueError, match=r"0\.weight is on cuda:0, 2\.weight on cuda:1; a threshold cannot span"):
        evolution_of(model).step()
    assert same(values(model), before)
    assert gpu.launches() == []


def test_everything_runs_on_the_weights_device(gpu):
    evolution = evolution_of(on_gpu(network(1), 1))
    evolution.step()
    report = evolution.step()
    assert {event[2] for event in gpu.events if event[0] == "launch"} == {1}
    assert report.finite


PARTS_AND_SUMS = ["activity_parts_kernel", "activity_sums_kernel"]


@pytest.fixture
def activity_gpu(gpu, monkeypatch):
    monkeypatch.setattr(activity_launches, "launch", gpu.launch)
    return gpu


def test_activity_takes_two_launches_and_no_table(activity_gpu):
    activation, sums = torch.randn(3, 5, 4, 6, device="cuda"), torch.zeros(5, dtype=torch.float64, device="cuda")
    for values in (activation, activation.to(memory_format=torch.channels_last), activation.half()):
        activity_gpu.events.clear()
        wk.add_channel_activity_(sums, values)
        assert activity_gpu.launches() == PARTS_AND_SUMS
        assert activity_gpu.count("wait") == activity_gpu.count("upload") == 0


def test_a_graph_adds_the_activity_of_new_activations(activity_gpu):
    activation, sums = torch.ones(3, 5, 4, device="cuda"), torch.zeros(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        wk.add_channel_activity_(sums, activation, offset=1, block=2)
    assert sums.tolist() == [0, 0]
    graph.replay()
    activation.mul_(-2)
    graph.replay()
    assert sums.tolist() == [24 + 48] * 2


def test_measuring_units_waits_for_nothing_before_the_report(activity_gpu):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(7, 3)
    with UnitActivity(model) as expected:
        model(x)
    on_gpu(model)
    x = x.to("cuda")
    with UnitActivity(model) as activity:
        for _ in range(2):
            activity_gpu.events.clear()
            model(x)
            activity.activations()
            assert activity_gpu.launches() == PARTS_AND_SUMS * 2
            assert activity_gpu.count("wait") == 0
    torch.testing.assert_close(activity.activations().tolist(), expected.activations().tolist())
