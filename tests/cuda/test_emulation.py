"""The CUDA kernels and their bindings, emulated on the CPU, on the cases of the other GPU backend and against the
reference."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import we_kernels as wk
from tests import matrix
from tests.banks import GUARD
from tests.cuda import cuda_cases
from we_kernels.evolution import cuda
from we_kernels.evolution.rule import MatchingRule
from we_kernels.runtime import transfer
from we_kernels.runtime.layout import segments_of
from we_kernels.runtime.transfer import Place
from we_kernels.runtime.view import BankView

pytestmark = pytest.mark.xdist_group("cuda-emulation")  # one process compiles
mixes = pytest.mark.parametrize("mix", matrix.MIXES, ids=matrix.mix_id)
rules = pytest.mark.parametrize("rule", ["paper", "released"])
orders = pytest.mark.parametrize("order", ["backward", "shuffled"])


@mixes
def test_importance(emulated, mix):
    matrix.check_importance("cpu", *mix, backend="native")


@pytest.mark.parametrize("flavour", ["zeros", "tiny"])
def test_importance_of_zeros_and_subnormals(emulated, flavour):
    matrix.check_importance("cpu", matrix.DTYPES, "contiguous", flavour, backend="native")


def test_importance_of_short_and_long_filters(emulated):
    weights, dims = cuda_cases.weights()
    cuda_cases.check(wk.filter_importance(wk.FilterBank(weights, dims)), weights, dims)


def test_importance_of_values_that_are_not_finite(emulated):
    weights = [torch.ones(5, 67), torch.ones(3, 20000, dtype=torch.bfloat16), torch.ones(2, 9, dtype=torch.float16)]
    weights[0][3, 66] = torch.nan
    weights[1][1, 19999] = -torch.inf
    weights[2][0] = 60000.0
    result = wk.filter_importance(wk.FilterBank(weights))
    assert result[[3]].isnan()
    assert result[[6]].isinf()
    assert result[[0, 1, 2, 4, 5, 7, 9]].tolist() == [1.0] * 7
    assert result[8] == 60000.0, "the sum is beyond float16's range"


@pytest.mark.parametrize("case", matrix.MATCHINGS, ids=matrix.matching_id)
def test_matching(emulated, case):
    matrix.check_matching("cpu", *case, backend="native")


def test_matching_with_a_large_layer_and_empty_groups(emulated):
    options = ([0.4, 0.3, 0.2], [0.2, 0.1, None], [0, 2, 0], None, None, (1100, 5, 40))
    matrix.check_matching("cpu", "normal", *options, backend="native")
    matrix.check_matching("cpu", "ties", *options, backend="native")


@pytest.mark.parametrize("flavour", ["normal", "equal", "zeros"])
def test_thresholds_of_a_group_larger_than_a_block_reads_at_once(emulated, flavour):
    sizes = [50] * 180 + [7]
    matrix.check_matching("cpu", flavour, [0.37], [0.1], [0] * 181, None, None, sizes, backend="native")


@pytest.mark.parametrize("start", [-3, 0, 1, 6, 2**31 - 5])
def test_counters_of_any_value(emulated, start):
    groups = [0] * len(matrix.SIZES)
    matrix.check_matching("cpu", "normal", [0.5], [1e-9], groups, 4.0, [start], backend="native")


@pytest.mark.parametrize("limit", [2.5, 70.0])
def test_starvation_over_many_layers(emulated, limit):
    """More layers than one pass takes; some reset the counter, most of them starve."""
    sizes = [3 + i % 3 for i in range(600)]
    groups = [int(i % 5 == 0) for i in range(600)]
    ratios, counters = [1e-3, 1e-9], [1, 0]
    options = ([0.4, 0.7], ratios, groups, limit, counters, sizes)
    found = matrix.check_matching("cpu", "normal", *options, backend="native")
    assert int((found.inferior > 0).sum()) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, -1e-45])
@pytest.mark.parametrize("where", [0, 150, -1])
def test_bad_importance_stops_the_step(emulated, value, where):
    values = matrix.importances(matrix.SIZES, "normal")
    values[where] = value
    bank = wk.FilterBank([torch.zeros(n) for n in matrix.SIZES], groups=[i % 2 for i in range(20)])
    counter = torch.tensor([2, 3], dtype=torch.int32)
    options = {"rate": 0.9, "local_ratio": [0.5, None], "starvation": counter, "starvation_limit": 1.0}
    found = wk.match_filters(bank, values, **options)
    assert found.donor.eq(-1).all()
    assert found.threshold.isnan().all()
    assert found.inferior.eq(0).all()
    assert counter.tolist() == [2, 3]


def test_rates_out_of_range_are_clamped(emulated):
    """The values of a tensor on a GPU are not checked."""
    values = matrix.importances((5, 12), "normal")
    nan, inf = float("nan"), float("inf")
    for rates, wanted in (((nan, -2.0), (0, 0)), ((7.0, inf), (4, 11)), ((-inf, 0.99), (0, 11))):
        segments = segments_of((5, 12), (0, 1))
        given = torch.tensor(rates, dtype=torch.float64)
        rule = MatchingRule(given, [0.1, 0.1], None, inf, [False, False])
        _, threshold, _ = cuda.match_filters(values, segments, rule)
        parts = values.split([5, 12])
        assert threshold.tolist() == [part.sort().values[k].item() for part, k in zip(parts, wanted, strict=True)]


@rules
@mixes
def test_crossover(emulated, mix, rule):
    matrix.check_crossover("cpu", *mix, rule, backend="native")


@rules
@pytest.mark.parametrize("flavour", ["ties", "zeros", "tiny"])
def test_crossover_of_awkward_values(emulated, flavour, rule):
    matrix.check_crossover("cpu", matrix.DTYPES, "contiguous", rule, flavour, backend="native")


@rules
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_crossover_of_values_that_are_not_finite(emulated, dtype, rule):
    """NaN and inf among the weights, sums that cancel, and sizes that overflow the dtype: as in the reference."""
    large = float(torch.finfo(dtype).max)
    row = [float("nan"), float("inf"), -large, large, 0.0, -0.0, 1.0, -1.0, large / 2]
    weight = torch.tensor([[[v, w, 1.0], [w, v, 1.0]] for v in row for w in row]).to(dtype).view(9, 9, 2, 3)
    weights = [weight.clone(), weight.flip(3).clone(), weight.flatten(1)[:, :, None, None].clone()]
    donor = torch.tensor([8, 7, 6, 5, -1, -1, -1, -1, -1] * 3, dtype=torch.int32)
    expected = copy.deepcopy(weights)
    with wk.use_backend("torch"):
        wk.crossover_(wk.FilterBank(expected), donor, rule)
    wk.crossover_(wk.FilterBank(weights), donor, rule)
    for ours, wanted in zip(weights[:2], expected[:2], strict=True):
        assert torch.equal(matrix.as_bits(ours), matrix.as_bits(wanted))
    torch.testing.assert_close(weights[2], expected[2], equal_nan=True)


@pytest.mark.parametrize("length", [1, 7, 64, 1031, 2500])
@pytest.mark.parametrize("shifts", [(0, 0), (1, 1), (0, 1), (3, 2)], ids=str)
def test_blend_of_rows_on_any_boundary(emulated, length, shifts):
    """The filter and its donor start on a 16-byte boundary, off it alike, or off it differently."""
    buffer = torch.full((2 * length + 64,), GUARD)
    start = -(buffer.data_ptr() // 4) % 4 + 4
    stride = (length + 3) // 4 * 4 + 4 + (shifts[1] - shifts[0]) % 4
    weight = buffer.as_strided((2, length), (stride, 1), start + shifts[0])
    weight.copy_(torch.randn(2, length))
    expected, outside = weight.clone(), buffer.clone()
    donor = torch.tensor([1, -1], dtype=torch.int32)
    with wk.use_backend("torch"):
        wk.crossover_(wk.FilterBank([expected]), donor)
    wk.crossover_(wk.FilterBank([weight]), donor)
    torch.testing.assert_close(weight, expected)
    weight.fill_(0)
    outside.as_strided(weight.shape, weight.stride(), weight.storage_offset()).fill_(0)
    assert torch.equal(buffer, outside), "wrote outside of the weight"


def test_crossover_ignores_donors_outside_of_the_layer(emulated):
    weights = [torch.randn(4, 3, 3, 3), torch.randn(6, 2, 3, 3)]
    before = copy.deepcopy(weights)
    donor = torch.tensor([4, -1, -7, 2**31 - 1, 6, -(2**31), 9, -1, -1, -1], dtype=torch.int32)
    wk.crossover_(wk.FilterBank(weights), donor, validate=False)
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


@rules
@pytest.mark.parametrize("memory_format", matrix.FORMATS)
def test_evolution(emulated, memory_format, rule):
    matrix.check_evolution("cpu", matrix.DTYPES, memory_format, rule, backend="native")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", [0, 5, 9])
def test_one_bad_weight_stops_the_step(emulated, value, layer):
    matrix.check_poison("cpu", value, layer, backend="native")


def evolve(weights, **options):
    groups = [i % 2 for i in range(len(weights))]
    counter = torch.zeros(2, dtype=torch.int32)
    options = {"rate": 0.5, "local_ratio": 0.5, "starvation": counter, "starvation_limit": 2.0} | options
    return [*wk.evolve_(wk.FilterBank(weights, groups=groups), **options), counter]


@orders
@rules
def test_the_order_of_threads_does_not_matter(emulated, order, rule):
    """Blocks, warps and threads that run in another order give the same bits: nothing races, no barrier is missing."""
    results = []
    for run in ("forward", *[order] * (3 if order == "shuffled" else 1)):
        emulated.set_order(run, len(results))
        cases = [
            *matrix.make_cases(matrix.DTYPES, "contiguous", 29),
            *matrix.make_cases(matrix.DTYPES, "sliced", 31, "ties"),
            matrix.place(matrix.random_values((2, 16390), torch.float32, 37), "shifted"),
        ]
        bank = matrix.bank_of(cases, 2)
        counter = torch.zeros(2, dtype=torch.int32)
        options = {"rate": 0.6, "local_ratio": 0.8, "starvation": counter, "starvation_limit": 2.0}
        found = [*wk.evolve_(bank, rule=rule, **options), counter]
        found += wk.match_filters(bank, found[1], **options)
        results.append([matrix.as_bits(tensor) for tensor in (*found, *[case.buffer for case in cases])])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("layers", [2, 3, 40])
def test_five_launches_whatever_the_number_of_layers(emulated, layers):
    """And whatever their dtypes."""
    evolve([torch.randn(3 + i % 4, 2, 3, 3).to(matrix.DTYPES[i % 4]) for i in range(layers)])
    assert len(emulated.take_launches()) == 5


class Dispatched(TorchDispatchMode):
    """Names of the operators that PyTorch runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **kwargs or {})


def test_the_host_does_the_same_for_any_number_of_layers(emulated):
    """Operators of PyTorch in the second step: the outputs are allocated, and nothing is read, copied or waited for."""
    seen = []
    for layers in (2, 3, 40):
        weights = [torch.randn(3 + i % 4, 2, 3, 3) for i in range(layers)]
        rule = MatchingRule(torch.tensor([0.5], dtype=torch.float64), [0.5], None, float("inf"), [False])
        cuda.evolve_(BankView(weights, [0] * layers, ()), "paper", rule)
        with Dispatched() as dispatched:
            cuda.evolve_(BankView(weights, [0] * layers, ()), "paper", rule)
        seen.append([name for name in dispatched.names if "fill_" not in name])  # the fixture's poison
    assert seen == [["aten.empty.memory_format"] * 4] * 3


def test_kernels_go_to_the_given_device_and_stream(emulated, monkeypatch):
    monkeypatch.setattr(cuda, "_where", lambda place: (1, 48))
    emulated.set_driver(0, 2, 1, False)
    weights = [torch.randn(6, 2, 3, 3), torch.randn(9, 4, 1, 1)]
    evolve(weights)
    bank = wk.FilterBank(weights)
    wk.crossover_(bank, wk.match_filters(bank, wk.filter_importance(bank), rate=0.5).donor)
    launches = emulated.take_launches()
    assert len(launches) == 5 + 1 + 4 + 1
    assert {launch[2:] for launch in launches} == {(1, 48)}
    assert emulated.guarded == [weights[0].device] * 4
    monkeypatch.setattr(cuda, "_where", lambda place: (0, 0))
    emulated.set_driver(0, 2, 0, False)
    wk.filter_importance(bank)
    assert emulated.take_launches()[0][2:] == (0, 0)


def test_memory_of_another_device_is_refused(emulated):
    weights = [torch.randn(6, 2, 3, 3), torch.randn(5)]
    before = weights[0].clone()
    for memory_type, device, message in ((2, 1, "is on device 1, not 0"), (0, 0, "not in the memory of a CUDA device")):
        emulated.set_driver(0, memory_type, device, False)
        with pytest.raises(ValueError, match=message):
            evolve(weights)
        emulated.set_driver(0, memory_type, device, True)  # the driver is not asked under capture
        evolve([torch.randn(6, 2, 3, 3), torch.randn(5)])
    assert torch.equal(weights[0], before)


def test_an_error_of_the_driver_is_reported(emulated):
    emulated.set_driver(209, 2, 0, False)
    with pytest.raises(RuntimeError, match="built for emulated, set CUDAARCHS"):
        evolve([torch.randn(6, 2, 3, 3), torch.randn(5)])
    emulated.set_driver(35, 2, 0, False)
    assert "supports CUDA 12.4; the extension was built with CUDA 13.0" in emulated.cuda_status()


def test_tables_and_scratch_are_made_once(emulated, monkeypatch):
    weights = [torch.randn(6, 2, 3, 3), torch.randn(9, 4, 1, 1)]
    evolve(weights)
    monkeypatch.setattr(cuda, "_make_plan", None)
    monkeypatch.setattr(transfer, "refuse_capture", None)
    evolve(weights)
    weights[0] = weights[0].clone()  # a moved parameter needs new addresses only
    evolve(weights)
    assert len(emulated.take_launches()) == 15


def test_moved_weights_are_found_again(emulated):
    module = torch.nn.Conv2d(3, 8, 3)
    bank = wk.FilterBank([module.weight])
    first = wk.filter_importance(bank)
    module.weight.data = module.weight.data * 2
    torch.testing.assert_close(wk.filter_importance(bank), 2 * first)


def test_old_addresses_are_forgotten(emulated):
    for _ in range(transfer.MAX_UPLOADS + 3):
        wk.filter_importance(wk.FilterBank([torch.randn(3, 2)]))
    assert len(transfer._uploads) <= transfer.MAX_UPLOADS


def test_capture_before_the_first_call_is_refused(emulated, monkeypatch):
    weights = [torch.randn(7, 2, 3, 3), torch.randn(5, 4, 1, 1)]
    eager_place = Place.current
    monkeypatch.setattr(Place, "current", lambda device: Place(device, 64, True))
    before = copy.deepcopy(weights)
    with pytest.raises(RuntimeError, match="before capturing"):
        evolve(weights)
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    assert emulated.take_launches() == []
    with monkeypatch.context() as eager:
        eager.setattr(Place, "current", eager_place)
        evolve(weights)
    monkeypatch.setattr(transfer, "_captured", set())  # another test's graph may have kept the same layout
    evolve(weights)
    # addresses, layout, segments, ratios, rates: for as long as the graph may be replayed
    assert len(transfer._captured) == 5


def test_offsets_beyond_2_31_elements(emulated):
    """Memory that is not touched is not there."""
    base = torch.empty(2**31 + 4096, dtype=torch.float16)
    weight = base.as_strided((3, 5, 3, 3), (2**30 + 64, 9, 3, 1), 0)
    weight.copy_(torch.arange(1, 4).view(3, 1, 1, 1) * torch.rand(3, 5, 3, 3))
    blended = base.as_strided((3, 5), (2**30 + 64, 1), 1024)
    blended.copy_(torch.arange(1, 4).view(3, 1) * torch.rand(3, 5))
    weights = [weight, blended]
    expected = copy.deepcopy([weight.contiguous(), blended.contiguous()])
    with wk.use_backend("torch"):
        wanted = wk.evolve_(wk.FilterBank(expected), rate=0.4, local_ratio=None)
    assert wk.evolve_(wk.FilterBank(weights), rate=0.4, local_ratio=None).donor.tolist() == wanted.donor.tolist()
    assert torch.equal(weight, expected[0])
    torch.testing.assert_close(blended, expected[1])


def test_empty_layers_and_groups(emulated):
    weights = [torch.ones(0, 4), torch.full((3, 5), 2.0), torch.ones(0, 2), torch.ones(2, 7), torch.ones(0, 1)]
    rule = MatchingRule(torch.full((3,), 0.5, dtype=torch.float64), [-1.0] * 3, None, 1.0, [False] * 3)
    bank = BankView(weights, [0] * 5, [0, 0, 2, 2, 0])
    donor, importance, threshold, inferior = cuda.evolve_(bank, "paper", rule)
    assert importance.tolist() == [2.0] * 3 + [1.0] * 2
    assert threshold.tolist() == [2.0, 0.0, 1.0]
    assert inferior.tolist() == [0, 3, 0, 2, 0]
    assert donor.tolist() == [-1] * 5
