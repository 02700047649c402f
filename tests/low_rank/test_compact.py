"""`LowRankProjection.compact`: the same function, fewer multiply-accumulates."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode

import we_kernels as wk
from tests.low_rank import networks
from weight_evolution import LowRankProjection, compact_like
from weight_evolution.low_rank import count_macs, measure_latency
from weight_evolution.low_rank.costs import make_inputs

X = torch.randn(3, 3, 13, 11, generator=torch.Generator().manual_seed(7))


def expect_same(model, compact, inputs, tolerance=1e-5):
    with torch.no_grad():
        expected, actual = model.eval()(inputs), compact.eval()(inputs)
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_compact_computes_the_same_as_the_projected_model():
    model = networks.branches()
    projection = LowRankProjection(model, prune_ratio=0.7, linear=True)
    projection.step()
    before = copy.deepcopy(model.state_dict())
    compact = projection.compact()
    expect_same(model, compact, X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in compact.parameters()}
    assert not shared


def test_compact_truncates_weights_that_were_trained_on():
    model = networks.branches()
    compact = LowRankProjection(model, ranks={"bare": 4}).compact()
    first, second = compact.bare
    product = second.weight.flatten(1) @ first.weight.flatten(1)
    u, s, vt = torch.linalg.svd(model.bare.weight.detach().flatten(1), full_matrices=False)
    torch.testing.assert_close(product.detach(), (u[:, :4] * s[:4]) @ vt[:4], rtol=0, atol=1e-5)


def test_factors_share_the_singular_values():
    model = networks.branches()
    projection = LowRankProjection(model, ranks={"bare": 4})
    projection.step()
    s = torch.linalg.svdvals(model.bare.weight.detach().flatten(1))[:4]
    first, second = projection.compact().bare
    assert first.bias is None
    assert torch.equal(second.bias, model.bare.bias)
    assert first.weight.shape == (4, 16, 3, 3)
    assert second.weight.shape == (16, 4, 1, 1)
    rows, columns = first.weight.detach().flatten(1), second.weight.detach().flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.diag(s), rtol=0, atol=1e-5)
    torch.testing.assert_close(columns.T @ columns, torch.diag(s), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(20, 48), (48, 20)])
@pytest.mark.parametrize("spectrum", ["flat", "steep", "of smaller rank"])
def test_factors_of_every_spectrum(spectrum, shape, dtype):
    i = torch.arange(20, dtype=torch.float64)
    s = {"flat": torch.ones(20), "steep": 0.3**i, "of smaller rank": torch.where(i < 4, 1.0, 0.0)}[spectrum].double()
    generator = torch.Generator().manual_seed(9)
    u, v = (torch.linalg.qr(torch.randn(side, 20, generator=generator, dtype=torch.float64))[0] for side in shape)
    layer = nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)
    layer.weight.data.copy_((u * s) @ v.mT)
    weight = layer.weight.detach().double()
    first, second = LowRankProjection(layer, ranks={"": 8}, linear=True).compact()
    left, right = second.weight.detach().double(), first.weight.detach().double()
    best = torch.linalg.svdvals(weight)[8:].norm()
    rounding = (16 if dtype == torch.float64 else 2) * torch.finfo(dtype).eps
    assert (left @ right - weight).norm() <= best * (1 + 1e-6) + rounding * weight.norm()
    assert (left.square().sum(0) - right.square().sum(1)).abs().max() <= 2 * rounding


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": (1, 3), "padding": (2, 0)},
        {"dilation": 2, "padding": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "circular", "stride": 2},
        {"padding": 1, "padding_mode": "replicate", "bias": False},
    ],
)
def test_geometry_of_the_conv(options):
    model = nn.Sequential(nn.Conv2d(3, 14, 3, **options), nn.ReLU())
    projection = LowRankProjection(model, ranks={"0": 4})
    projection.step()
    compact = projection.compact()
    assert isinstance(compact[0], nn.Sequential)
    expect_same(model, compact, X)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv1d(6, 16, 5, stride=2, padding=2)), (2, 6, 19)),
        (nn.Sequential(nn.Conv3d(4, 12, (3, 1, 2), dilation=(1, 1, 2))), (2, 4, 6, 5, 7)),
        (nn.Sequential(nn.Linear(24, 18)), (2, 5, 24)),
        (nn.Sequential(nn.Linear(18, 24, bias=False)), (2, 18)),
        (nn.Conv2d(8, 14, 3), (2, 8, 5, 6)),  # the model itself
    ],
)
def test_other_layers(model, shape):
    projection = LowRankProjection(model, prune_ratio=0.7, linear=True)
    projection.step()
    compact = projection.compact()
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())
    expect_same(model, compact, torch.randn(shape))


def test_dtype_memory_format_and_mode_are_kept():
    model = networks.branches().to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    model.bare.eval()
    projection = LowRankProjection(model)
    projection.step()
    compact = projection.compact()
    assert {p.dtype for p in compact.parameters()} == {torch.bfloat16}
    assert compact.bare[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not compact.bare.training
    assert not compact.bare[0].training
    assert compact.left.training
    expect_same(model, compact, X.bfloat16(), 0.05)


def test_compact_trains_and_leaves_the_random_numbers_alone():
    model = networks.branches()
    projection = LowRankProjection(model)
    projection.step()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    compact = projection.compact()
    assert torch.equal(torch.get_rng_state(), state)
    compact(X).sum().backward()
    assert all(parameter.grad is not None for parameter in compact.parameters())


def test_module_used_twice_is_replaced_once():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    model.holders = [conv]  # a plain list: not a registered module
    projection = LowRankProjection(model, ranks={"0": 2})
    projection.step()
    compact = projection.compact()
    assert isinstance(compact[0], nn.Sequential)
    assert compact[0] is compact[2] is compact.holders[0]
    expect_same(model, compact, torch.randn(2, 8, 6, 6))


class Delegating(nn.Module):
    """What it does not have itself, the compiled model inside answers for it."""

    def __init__(self, model):
        super().__init__()
        self.head = nn.Conv2d(14, 14, 1)
        self.body = torch.compile(model, backend="eager")

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("body"), name)

    def forward(self, x):
        return self.head(self.body(x))


def test_a_wrapper_that_delegates_keeps_its_own_layers():
    model = Delegating(nn.Conv2d(3, 14, 3))
    projection = LowRankProjection(model, prune_ratio=0.8)
    assert projection.layers == ["head", "body"]
    projection.step()
    compact = projection.compact()
    assert set(projection.compact_ranks) == {"head", "body"}
    expect_same(model, compact, X)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "wrap", [checkpoint_wrapper, nn.DataParallel, lambda module: torch.compile(module, backend="eager")]
)
def test_wrapped_submodules_are_compacted_as_if_they_were_not(wrap):
    plain, model = networks.branches(), networks.branches()
    model.bare, model.last = wrap(model.bare), wrap(model.last)
    ours, theirs = LowRankProjection(plain), LowRankProjection(model)
    assert theirs.layers == ours.layers
    assert theirs.batch_norm_pairs.names == networks.PAIRS
    theirs.load_state_dict(ours.state_dict())
    for projection in (ours, theirs):
        projection.step()
    compact, other = ours.compact(), theirs.compact()
    assert list(other.state_dict()) == list(compact.state_dict())
    assert torch.equal(other.eval()(X), compact.eval()(X))
    assert theirs.compact_ranks == ours.compact_ranks
    assert list(compact_like(model, theirs.compact_ranks).state_dict()) == list(compact.state_dict())
    assert theirs.report((3, 13, 11)).macs_after == ours.report((3, 13, 11)).macs_after


@pytest.mark.parametrize(
    "prepare",
    [
        lambda conv: prune.random_unstructured(conv, "weight", 0.5),
        lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
        nn.utils.spectral_norm,
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
    ],
)
def test_beside_a_computed_weight(prepare):
    model = networks.branches()
    prepare(model.depthwise)
    prepare(model.bare)
    model(X).sum().backward()
    projection = LowRankProjection(model)
    projection.step()
    before = copy.deepcopy(model.state_dict())
    compact = projection.compact()
    report = projection.report((3, 13, 11))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {cost.name for cost in report.layers if cost.rank} == set(projection.compact_ranks) != set()
    expect_same(model, compact, X)
    # Gradients go to what the weight is computed from.
    compact.train()(X).sum().backward()
    name, parameter = next((n, p) for n, p in compact.bare.named_parameters() if n != "bias")
    assert parameter.grad.abs().sum() > 0, name


def test_a_model_that_keeps_an_activation():
    class Keeping(networks.Branches):
        def forward(self, x):
            self.kept = [super().forward(x)]
            return self.kept[0]

    torch.manual_seed(0)
    model = Keeping()
    model(X)
    assert not model.kept[0].is_leaf
    kept = model.kept[0]
    projection = LowRankProjection(model)
    projection.step()
    compact = projection.compact()
    assert torch.equal(compact.kept[0], kept)
    assert projection.report((3, 13, 11)).macs_after > 0
    assert model.kept[0] is kept
    assert len(compact_like(model, {}).kept) == 1


def test_report_and_budget_leave_the_model_alone():
    class Counting(networks.Branches):
        def forward(self, x):
            self.seen.append(torch.rand(1))
            self.total += 1
            return super().forward(x)

    torch.manual_seed(0)
    model = Counting()
    model.seen = []
    model.register_buffer("total", torch.zeros(()))
    state, calls = torch.get_rng_state(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    projection = LowRankProjection(model, budget=0.5, input_size=(3, 13, 11))
    projection.report((3, 13, 11), latency=True, min_run_time=0.01)
    assert model.seen == []
    assert model.total == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [(nn.Conv2d(8, 14, 3, padding=1), torch.randn(2, 8, 5, 5)), (nn.Linear(24, 18, bias=False), torch.randn(2, 24))],
)
def test_what_a_model_reads_of_a_layer_is_still_there(layer, inputs):
    class Reading(nn.Module):
        """As CLIP does, for the dtype; and as functional calls do."""

        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            out = self.layer(x.to(self.layer.weight.dtype))
            shape = self.layer.out_channels if isinstance(layer, nn.Conv2d) else self.layer.out_features
            assert out.shape[1] == shape
            return out

    model = Reading()
    projection = LowRankProjection(model, prune_ratio=0.7, linear=True)
    projection.step()
    compact = projection.compact()
    expect_same(model, compact, inputs)
    pair = compact.layer
    torch.testing.assert_close(pair.weight, layer.weight, rtol=0, atol=1e-6)
    assert pair.weight.device == layer.weight.device
    assert (pair.bias is None) == (layer.bias is None)
    for name in layer.__constants__:
        assert getattr(pair, name) == getattr(layer, name), name
    assert all(name.startswith(("layer.0.", "layer.1.")) for name in compact.state_dict())


def test_costlier_and_vanishing_layers_stay_as_they_were():
    model = networks.branches()
    model.last_norm.weight.data.zero_()
    # 12 inputs, 16 outputs: 12 * 16 = 192 <= 7 * (12 + 16)
    projection = LowRankProjection(model, ranks={"right": 7, "left": 3, "last": 2})
    projection.step()
    compact = projection.compact()
    assert projection.compact_ranks == {"left": 3}
    assert torch.equal(compact.right.weight, model.right.weight)
    assert isinstance(compact.last, nn.Conv2d)
    expect_same(model, compact, X)
    costs = {cost.name: cost for cost in projection.report((3, 13, 11)).layers}
    assert "would not cost less" in costs["right"].reason
    assert "under 1e-4" in costs["last"].reason
    assert costs["bare"].reason == "no rank was given"
    assert costs["depthwise"].reason == "20 groups"
    assert (costs["left"].rank, costs["left"].reason) == (3, "")


def test_the_break_even_rank():
    model = nn.Sequential(nn.Conv2d(12, 12, 1))  # rank 6 costs 6 * 24 = 144, as much as the original
    assert LowRankProjection(model, ranks={"0": 6}).compact_ranks == {}
    assert LowRankProjection(model, ranks={"0": 5}).compact_ranks == {"0": 5}


def test_state_dict_loads_into_the_same_structure():
    model = networks.branches()
    projection = LowRankProjection(model, linear=True)
    projection.step()
    compact = projection.compact()
    other = networks.branches(seed=4)
    other.bare.eval()
    fresh = compact_like(other, projection.compact_ranks)
    assert not fresh.bare[0].training
    assert fresh.left[0].training
    assert list(fresh.state_dict()) == list(compact.state_dict())
    assert all(parameter.isfinite().all() for parameter in fresh.parameters())
    fresh.load_state_dict(compact.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(X), compact.eval()(X))


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"nowhere": 2}, "'nowhere' is not a layer that can be replaced"),
        ({"depthwise": 2}, "'depthwise' is not a layer that can be replaced: 20 groups"),
        ({"stem": 0}, r"ranks\['stem'\] must be an integer in \[1, 12\]"),
        ({"stem": 13}, r"ranks\['stem'\] must be an integer in \[1, 12\]"),
    ],
)
def test_structure_of_bad_ranks(ranks, message):
    with pytest.raises(ValueError, match=message):
        compact_like(networks.branches(), ranks)


def test_structure_without_ranks_is_a_copy():
    model = networks.branches()
    copied = compact_like(model, {})
    assert copied is not model
    assert list(copied.state_dict()) == list(model.state_dict())


def test_non_finite_weight_cannot_be_made_compact():
    model = networks.branches()
    projection = LowRankProjection(model)
    model.bare.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(wk.NonFiniteWeightError, match=r"bare\.weight"):
        projection.compact()
    model = networks.branches()
    projection = LowRankProjection(model)
    model.last_norm.running_var[0] = float("nan")
    with pytest.raises(wk.NonFiniteWeightError, match="BatchNorm behind last"):
        projection.compact()


def test_torch_export():
    model = networks.branches()
    projection = LowRankProjection(model)
    projection.step()
    compact = projection.compact().eval()
    exported = torch.export.export(compact, (X,)).module()
    torch.testing.assert_close(exported(X), compact(X))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, in its exporter
def test_onnx_export(tmp_path):
    pytest.importorskip("onnxscript", reason="torch's ONNX exporter needs onnxscript")
    from onnx.reference import ReferenceEvaluator

    projection = LowRankProjection(networks.branches())
    projection.step()
    compact = projection.compact().eval()
    torch.onnx.export(compact, (X,), tmp_path / "compact.onnx", dynamo=True, verbose=False)
    evaluator = ReferenceEvaluator(str(tmp_path / "compact.onnx"))
    (output,) = evaluator.run(None, {evaluator.input_names[0]: X.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), compact(X))


def flops(model, inputs):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(inputs)
    return counter.get_total_flops()


def test_report_counts_what_the_counter_counts():
    model = networks.branches()
    model.bare.eval()
    modes = [module.training for module in model.modules()]
    statistics = model.stem_norm.running_mean.clone()
    projection = LowRankProjection(model, prune_ratio=0.7, linear=True)
    projection.step()
    report = projection.report((3, 13, 11))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.stem_norm.running_mean, statistics)
    compact = projection.compact()
    assert report.input_size == (1, 3, 13, 11)
    assert report.macs_before == flops(model, X[:1]) // 2
    assert report.macs_after == flops(compact, X[:1]) // 2
    assert report.parameters_before == sum(p.numel() for p in model.parameters())
    assert report.parameters_after == sum(p.numel() for p in compact.parameters())
    assert report.macs_share == report.macs_after / report.macs_before < 0.6
    assert report.parameters_share == report.parameters_after / report.parameters_before < 0.7
    # All multiply-accumulates of this network are in convs and Linears.
    assert sum(cost.macs_before for cost in report.layers) == report.macs_before
    assert sum(cost.macs_after for cost in report.layers) == report.macs_after
    costs = {cost.name: cost for cost in report.layers}
    assert costs["stem"].macs_before == 12 * 27 * 13 * 11
    assert costs["stem"].macs_after == 3 * (27 + 12) * 13 * 11
    text = report.table()
    for part in ("1x3x13x11", f"{report.macs_before:,}", f"{report.macs_share:.1%}", "20 groups"):
        assert part in text
    assert projection.report((2, 3, 13, 11)).macs_before == 2 * report.macs_before
    assert report.latency_before is None
    assert "latency" not in text


def test_input_size_of_a_model_of_transposed_convolutions():
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12))
    projection = LowRankProjection(model, linear=True)
    assert projection.report((3, 5, 5)).input_size == (1, 3, 5, 5)


def test_latency():
    model = networks.branches()
    projection = LowRankProjection(model)
    report = projection.report((3, 13, 11), latency=True, min_run_time=0.01)
    assert 0 < report.latency_after < 10
    assert 0 < report.latency_before < 10
    assert "latency" in report.table()
    assert model.training
    assert 0 < measure_latency(model, (X,), min_run_time=0.01) < 10


def test_macs_of_a_module_that_runs_twice():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    total, (of_conv,) = count_macs(nn.Sequential(conv, conv), (torch.zeros(1, 4, 5, 6),), [conv])
    assert total == of_conv == 2 * 4 * 36 * 30
    assert not conv._forward_hooks
    assert not conv._forward_pre_hooks


def test_example_inputs_may_be_on_another_device():
    """As before a Trainer moves the model; the meta device stands for a GPU."""
    (inputs,) = make_inputs(nn.Conv2d(3, 4, 3).to("meta"), None, (torch.zeros(1, 3, 8, 8),))
    assert inputs.device.type == "meta"
