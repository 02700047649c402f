import copy
import io
import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.measures.activity_worker import inputs_of, make_net
from tests.model import unit_networks as networks
from tests.processes import ROOT, run_ranks
from weight_evolution import UnitActivity
from weight_evolution.training.models import make_model

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(size, 3, 8, 8, generator=GENERATOR) for size in (4, 2, 3)]


def measured(model, inputs=BATCHES, **options):
    with UnitActivity(model, **options) as activity:
        for x in inputs:
            model(x)
    return activity.report()


class Wired(nn.Module):
    """Functional nonlinearities; the activations of its two convolutions and its Linear are kept."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second, self.hidden, self.head = nn.Conv2d(6, 4, 3), nn.Linear(16, 5), nn.Linear(5, 2)
        self.kept = {"first": [], "second": [], "hidden": []}

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        self.keep("first", x)
        x = functional.relu(self.second(x))
        self.keep("second", x)
        x = functional.relu(self.hidden(functional.avg_pool2d(x, 2).flatten(1)), inplace=True)
        self.keep("hidden", x)
        return self.head(x)

    def keep(self, name, x):
        if not isinstance(x, torch.fx.Proxy):
            self.kept[name].append(x.detach().clone())


def plain_mean(values):
    """[units] of a list of [B, units, ...], element by element."""
    sums, count = [0.0] * values[0].shape[1], 0
    for batch in values:
        for example in batch.double():
            for unit, positions in enumerate(example):
                for value in positions.flatten().tolist():
                    sums[unit] += abs(value)
        count += batch.shape[0] * batch[0, 0].numel()
    return torch.tensor(sums, dtype=torch.float64) / count


@pytest.mark.parametrize("train", [True, False])
def test_activation_score_and_utility_are_those_of_plain_loops(train):
    torch.manual_seed(0)
    model = Wired().train(train)
    report = measured(model)
    readers = {"first": model.second, "hidden": model.head}
    assert list(report.activation) == list(model.kept)
    assert report.batches == dict.fromkeys(model.kept, 3)
    for name, values in model.kept.items():
        expected = plain_mean(values)
        torch.testing.assert_close(report.activation[name], expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(report.scores[name], expected / expected.mean(), rtol=1e-5, atol=0)
        if name in readers:
            outgoing = torch.stack([w.abs().mean() for w in readers[name].weight.detach().double().unbind(1)])
            torch.testing.assert_close(report.utility[name], expected * outgoing, rtol=1e-5, atol=0)
    columns = model.hidden.weight.detach().double().abs().unflatten(1, (4, 4)).mean((0, 2))  # 2 x 2 positions a channel
    torch.testing.assert_close(report.outgoing["second"], columns)
    torch.testing.assert_close(report.incoming["first"], model.first.weight.detach().double().abs().sum((1, 2, 3)))


def test_only_the_last_batches_count():
    model = networks.vgg("module").eval()
    ring = measured(model, batches=2)
    last = measured(model, BATCHES[1:])
    for name in last.activation:
        torch.testing.assert_close(ring.activation[name], last.activation[name], rtol=1e-12, atol=0)
    assert set(ring.batches.values()) == {2}
    assert set(measured(model, BATCHES[:1], batches=2).batches.values()) == {1}


def test_start_forgets_and_stop_keeps():
    model = networks.mlp().eval()
    x, y = torch.randn(7, 5), torch.randn(2, 5)
    activity = UnitActivity(model).start()
    model(x)
    while_measuring = activity.report()
    activity.stop()
    activity.stop()
    model(y)
    assert torch.equal(activity.report().activation["0"], while_measuring.activation["0"])
    with activity:
        model(y)
    assert torch.equal(activity.report().activation["0"], measured(model, [y]).activation["0"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_activations_are_those_of_the_report():
    torch.manual_seed(0)
    model = networks.Dense().eval()  # units with several nonlinearities among them
    for batches in (None, 2):
        activity = UnitActivity(model, batches=batches, example_inputs=BATCHES[0])
        with activity:
            for x in BATCHES:
                model(x)
        found, report = activity.activations(), activity.report()
        assert activity.layer_sizes == tuple(map(len, report.activation.values()))
        assert list(report.activation) == list(activity.graph.layers)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.cat([*report.activation.values()]).float(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("batches", [None, 2])
def test_clear_forgets_and_goes_on(batches):
    model = networks.mlp().eval()
    x, y = torch.randn(7, 5), torch.randn(2, 5)
    with UnitActivity(model, batches=batches) as activity:
        activity.clear()
        for _ in range(3):
            model(x)
        activity.clear()
        with pytest.raises(RuntimeError, match=r"no forward pass through 0, 3 .*since start\(\) or clear\(\)"):
            activity.activations()
        model(y)
    assert torch.equal(activity.activations(), activations_of(model, [y]))
    assert set(activity.report().batches.values()) == {1}


def test_only_passes_with_gradients():
    model = networks.mlp().eval()
    x, y = torch.randn(7, 5), torch.randn(2, 5)
    with UnitActivity(model, with_gradients=True) as activity:
        with torch.no_grad():
            model(x)
        with pytest.raises(RuntimeError, match=r"or of empty batches or under torch\.no_grad only"):
            activity.activations()
        model(y)
        with torch.inference_mode():
            model(x)
    assert torch.equal(activity.activations(), activations_of(model, [y]))
    with pytest.raises(TypeError, match="with_gradients must be True or False"):
        UnitActivity(model, with_gradients=1)


def activations_of(model, inputs):
    with UnitActivity(model) as activity:
        for x in inputs:
            model(x)
    return activity.activations()


def plant(conv, norm, units):
    with torch.no_grad():
        if norm is not None:
            norm.weight[units], norm.bias[units] = 0, -1
        else:
            conv.weight[units], conv.bias[units] = 0, -1


def test_planted_dead_units_are_reported_and_no_others():
    torch.manual_seed(0)
    model = make_model("vgg16-bn", 3, 10)
    planted = {"features.0": [1, 5, 63], "features.40": list(range(0, 512, 3))}
    plant(model.features[0], model.features[1], planted["features.0"])
    plant(model.features[40], model.features[41], planted["features.40"])
    report = measured(model, [torch.randn(8, 3, 32, 32)])
    assert {name: count for name, count in report.dead.items() if count} == {"features.0": 3, "features.40": 171}
    for name, units in planted.items():
        assert (report.scores[name] == 0).nonzero().flatten().tolist() == units
    assert report.skipped == {"classifier": "it is the network's output"}


def test_a_layer_dead_altogether_and_one_that_is_not_finite():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    plant(model[0], None, [0, 1, 2])
    nn.init.constant_(model[2].bias, torch.nan)
    report = measured(model, [torch.randn(4, 2)])
    assert report.scores["0"].tolist() == [0, 0, 0]
    assert report.dead == {"0": 3, "2": 0}
    assert report.scores["2"].isnan().all()


def test_thresholds():
    model = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0], [0.03], [0.2], [3.77]]))  # mean 1
    report = measured(model, [torch.ones(2, 1)])
    assert [report.dead["0"], *(report.dormant(t)["0"] for t in (0.025, 0.1, 0.3, 4))] == [1, 1, 2, 3, 4]
    assert report.inferior == {"0": 3}  # at most 0.377
    with pytest.raises(ValueError, match="threshold must be a finite number from 0"):
        report.dormant(-1)


def test_text_and_dict():
    report = measured(networks.resnet())
    lines = report.table().splitlines()
    assert lines[0].split("  ")[0] == "layer"
    assert any(line.startswith("all ") for line in lines)
    assert any(line.startswith("skipped layer1.0.conv2: it meets others in the addition") for line in lines)
    plain = json.loads(json.dumps(report.to_dict()))
    layer = plain["layers"]["layer1.0.conv1"]
    assert (layer["units"], layer["batches"], len(layer["scores"])) == (4, 3, 4)
    assert set(layer["dormant"]) == {"0.025", "0.1"}
    assert plain["skipped"] == report.skipped


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dtypes_and_memory_formats(dtype, memory_format):
    torch.manual_seed(0)
    model = Wired().eval().to(dtype).to(memory_format=memory_format)
    report = measured(model, [x.to(dtype).to(memory_format=memory_format) for x in BATCHES])
    for name, values in model.kept.items():
        rtol = (
            2e-3 if name == "second" and dtype != torch.float64 else 1e-5
        )  # measured behind the pooling, which rounds
        torch.testing.assert_close(report.activation[name], plain_mean(values), rtol=rtol, atol=0)
        assert report.activation[name].dtype == torch.float64


class Marked(torch.Tensor):
    """A tensor that is not plain."""


def test_activations_that_the_kernels_do_not_take_are_summed_by_torch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.ReLU(), nn.Linear(4 * 64, 2)).eval()
    expected = measured(model)
    for batches in (None, 3):
        found = measured(model, [x.as_subclass(Marked) for x in BATCHES], batches=batches)
        torch.testing.assert_close(found.activation["0"], expected.activation["0"], rtol=1e-5, atol=0)


def test_positions_of_the_actual_input_count():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Dropout(0.0), nn.Linear(4 * 64, 2))
    report = measured(model)
    values = torch.cat([model[0](x) for x in BATCHES]).detach().double()
    torch.testing.assert_close(report.activation["0"], values.abs().mean((0, 2, 3)), rtol=1e-5, atol=0)


def test_several_nonlinearities_of_one_unit_count_together():
    torch.manual_seed(0)
    model = networks.Dense().eval()
    activity = UnitActivity(model, example_inputs=BATCHES[0])
    with activity:
        model(BATCHES[0])
    assert len(activity.graph.layers["convs.0"].activations) == 3
    x = BATCHES[0]
    y = model.convs[0](functional.relu(model.norms[0](x)))
    z = torch.cat([x, y], 1)
    w = torch.cat([z, model.convs[1](functional.relu(model.norms[1](z)))], 1)
    seen = [functional.relu(model.norms[1](z))[:, 3:], functional.relu(model.norms[2](w))[:, 3:7], y]
    expected = torch.stack([value.abs().mean((0, 2, 3)) for value in seen]).mean(0).detach().double()
    torch.testing.assert_close(activity.report().activation["convs.0"], expected, rtol=1e-5, atol=0)


def test_traced_by_export():
    torch.manual_seed(0)
    model = networks.Branching().eval()
    x = BATCHES[0]
    report = measured(model, [x], example_inputs=x)
    expected = functional.gelu(
        model.second(functional.max_pool2d(functional.relu(model.norm(model.first(x))), 2).flatten(1))
    )
    torch.testing.assert_close(report.activation["second"], expected.detach().double().abs().mean(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("export", [False, True])
def test_a_layer_that_is_called_by_name(export):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            if export and x.shape[0] == 0:
                return x
            return self.down(input=functional.relu(input=self.up(x)))

    model, x = Named(), torch.randn(5, 3)
    report = measured(model, [x], example_inputs=x)
    expected = functional.relu(model.up(x)).detach().double().mean(0)
    torch.testing.assert_close(report.activation["up"], expected, rtol=1e-5, atol=0)


def test_passes_in_inference_mode_and_training_mix():
    model = networks.mlp()
    x = torch.randn(4, 5)
    with UnitActivity(model) as activity:
        with torch.inference_mode():
            model(x)
        model(x).sum().backward()
        with torch.inference_mode():
            model(x)
            inside = activity.activations()
        assert torch.equal(activity.activations(), inside)
    assert activity.report().batches == {"0": 3, "3": 3}
    assert measured(networks.mlp(), [x]).activation["0"].requires_grad is False


def test_measuring_changes_nothing():
    torch.manual_seed(0)
    model = networks.ConvNet()
    twin = copy.deepcopy(model)
    with UnitActivity(model) as activity:
        for x in BATCHES:
            assert torch.equal(model(x), twin(x))
        model(BATCHES[0]).sum().backward()
        twin(BATCHES[0]).sum().backward()
        activity.report()
    for (name, tensor), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


class NoReading(TorchDispatchMode):
    """Values do not go to the host, nor to another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, func
        if func is torch.ops.aten._to_copy.default:  # to another dtype, that is
            assert kwargs.get("device") in (None, args[0].device)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batches", [None, 2])
def test_nothing_is_read_before_the_report(batches):
    model = networks.vgg("module").eval()
    with UnitActivity(model, batches=batches) as activity, NoReading():
        for x in BATCHES:
            model(x)
        activity.activations()
    activity.report()


def test_copies_of_the_model_are_not_measured():
    model = networks.mlp().eval()
    x, y = torch.ones(2, 5), torch.full((2, 5), 100.0)
    expected = measured(model, [x])
    with UnitActivity(model) as activity:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies = [copy.deepcopy(model), torch.load(file, weights_only=False)]
        for copied in copies:
            copied(y)
            copied[0], copied[3] = nn.Linear(5, 7), nn.Linear(7, 4)  # its hooks do not mind
            copied(y)
        model(x)
        report = activity.report()
        shallow = copy.copy(model[1])  # as replicas of DataParallel are made
        shallow(y)
    assert torch.equal(report.activation["0"], expected.activation["0"])
    assert set(report.batches.values()) == {1}
    assert set(activity.report().batches.values()) == {1}


def test_a_copy_of_the_measurement_is_about_the_copied_model():
    model = networks.mlp().eval()
    x = torch.randn(2, 5)
    with UnitActivity(model) as activity:
        model(x)
        copied_model, copied = copy.deepcopy((model, activity))
    with pytest.raises(RuntimeError, match="nothing was measured"):
        copied.report()
    with copied:
        model(x)
        copied_model(x)
    assert copied.report().batches == {"0": 1, "3": 1}
    assert torch.equal(copied.report().activation["0"], activity.report().activation["0"])


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_defaults_of_the_program_do_not_matter(device, dtype):
    model, x = networks.mlp().eval(), torch.randn(2, 5)
    expected = measured(model, [x])
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            report = measured(model, [x])
            assert report.to_dict() == expected.to_dict()
    finally:
        torch.set_default_dtype(torch.float32)


def test_within_function_transforms_it_refuses():
    model = networks.mlp().eval()
    with UnitActivity(model), pytest.raises(RuntimeError, match=r"torch\.func.*stop\(\)"):
        torch.func.vmap(model)(torch.randn(3, 5))


def test_empty_batches_alone_are_no_measurement():
    with pytest.raises(RuntimeError, match="empty batches only"):
        measured(networks.mlp().eval(), [torch.ones(0, 5)])
    model = networks.mlp().eval()
    x = torch.randn(2, 5)
    report = measured(model, [torch.ones(0, 5), x])
    assert torch.equal(report.activation["0"], measured(model, [x]).activation["0"])


@torch.no_grad()
def test_wrapped_models():
    model = networks.mlp().eval()
    x = torch.randn(4, 5)
    expected = measured(model, [x])
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    report = measured(compiled, [x])
    torch.testing.assert_close(report.activation["3"], expected.activation["3"])
    torch._dynamo.reset()  # what was compiled with hooks looks for them
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    compiled(x)
    with UnitActivity(compiled) as activity:
        compiled(x)
    with pytest.raises(RuntimeError, match=r"torch\.compile compiled before"):
        activity.report()
    torch._dynamo.reset()
    with UnitActivity(compiled) as activity, UnitActivity(model) as plain:
        for _ in range(12):  # more passes than torch.compile compiles again
            compiled(x)
            model(x)
    assert activity.report().batches == {"0": 12, "3": 12}
    torch.testing.assert_close(activity.report().activation["0"], plain.report().activation["0"])
    parallel = nn.DataParallel(model)
    assert torch.equal(measured(parallel, [x]).activation["3"], expected.activation["3"])


def test_errors():
    x = torch.randn(2, 5)
    model = networks.mlp()
    activity = UnitActivity(model)
    for read in (activity.report, activity.activations):
        with pytest.raises(RuntimeError, match=r"nothing was measured; call start\(\)"):
            read()
    activity.start()
    for read in (activity.report, activity.activations):
        with pytest.raises(RuntimeError, match=r"no forward pass through 0, 3 was seen.*torch\.compile"):
            read()
    with pytest.raises(RuntimeError, match=r"call stop\(\) first"):
        activity.start()
    model(x)
    with pytest.raises(TypeError, match="all_ranks must be True or False"):
        activity.report(all_ranks=1)
    with pytest.raises(TypeError, match="all_ranks must be True or False"):
        activity.activations(all_ranks=1)
    activity.stop()
    model[3] = nn.Linear(6, 4)
    with pytest.raises(RuntimeError, match="replaced since; make a new UnitActivity"):
        activity.start()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        UnitActivity({})
    with pytest.raises(ValueError, match="batches must be an integer from 1"):
        UnitActivity(model, batches=0)
    with pytest.raises(ValueError, match="include: 'nowhere' matches no module"):
        UnitActivity(model, include=["nowhere"])
    with pytest.raises(TypeError, match="example_inputs must be a tensor"):
        UnitActivity(model, example_inputs=[x])
    with pytest.raises(ValueError, match="no layer whose units can be measured: 0: it is the network's output"):
        UnitActivity(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"torch\.export: not tried without example_inputs"):
        UnitActivity(networks.Branching())
    with pytest.raises(ValueError, match="the model has none"):
        UnitActivity(nn.ReLU())


def test_a_reshaped_layer_is_noticed_in_the_pass():
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with UnitActivity(model):
        model[0].bias = None
        for features in (3, 8):
            model[0].weight = nn.Parameter(torch.randn(features, 2))
            with pytest.raises(RuntimeError, match=f"1 has {features} features where 4 were expected"):
                model(torch.randn(2, 2))


def test_ranks_are_averaged(tmp_path):
    done = run_ranks(2, "tests.measures.activity_worker", tmp_path)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    expected = measured(make_net().eval(), [*inputs_of(0), *inputs_of(1)])
    for rank, found in enumerate(ranks):
        assert found["batches"] == {"0": 3, "3": 3}
        alone = measured(make_net().eval(), inputs_of(rank))
        for name in expected.activation:
            torch.testing.assert_close(found["all"][name], expected.activation[name], rtol=1e-12, atol=0)
            assert torch.equal(found["alone"][name], alone.activation[name])
        for name, wanted in (("activations", expected), ("activations alone", alone)):
            torch.testing.assert_close(found[name], torch.cat([*wanted.activation.values()]).float(), rtol=1e-6, atol=0)
        assert torch.equal(found["of one"], activations_of(make_net().eval(), inputs_of(0)))
        assert "no forward pass through 0, 3" in found["of none"]


def test_the_example_of_the_page(capsys):
    page = (ROOT / "docs" / "activity.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (output,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out == output
