"""The cases of `matrix` with the compiled kernels on a GPU, CUDA graphs, streams and large offsets."""

import os

import pytest
import torch
from torch import nn

import we_kernels as wk
from tests import matrix, units
from tests.waiting import no_waiting
from weight_evolution import WeightEvolution

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter is on", allow_module_level=True)

DEVICE = torch.device("cuda", torch.cuda.current_device())
rules = pytest.mark.parametrize("rule", ["paper", "released"])


@pytest.mark.parametrize("mix", matrix.MIXES, ids=matrix.mix_id)
def test_importance(mix):
    matrix.check_importance(DEVICE, *mix)


@pytest.mark.parametrize("flavour", ["zeros", "tiny"])
def test_importance_of_zeros_and_subnormals(flavour):
    matrix.check_importance(DEVICE, matrix.DTYPES, "contiguous", flavour)


@pytest.mark.parametrize("case", matrix.MATCHINGS, ids=matrix.matching_id)
def test_matching(case):
    matrix.check_matching(DEVICE, *case)


@pytest.mark.parametrize("start", [-3, 0, 1, 6, 2**31 - 5])
def test_counters_of_any_value(start):
    matrix.check_matching(DEVICE, "normal", [0.5], [1e-9], [0] * len(matrix.SIZES), 4.0, [start])


@pytest.mark.parametrize("filters", [1000, 8000, 30000, 70000])
def test_thresholds_of_large_groups(filters):
    """Each of the tile sizes, and groups that are read again for every bit; more layers than a starvation tile."""
    sizes = [filters // 400] * 400 + [filters % 400 + 1]
    groups = [int(i % 400 == 7) for i in range(401)]
    matrix.check_matching(DEVICE, "normal", [0.4, 0.2], [0.01, None], groups, 3.0, [0, 0], sizes)


@rules
@pytest.mark.parametrize("mix", matrix.MIXES, ids=matrix.mix_id)
def test_crossover(mix, rule):
    matrix.check_crossover(DEVICE, *mix, rule)


@rules
@pytest.mark.parametrize("flavour", ["ties", "zeros", "tiny"])
def test_crossover_of_awkward_values(flavour, rule):
    matrix.check_crossover(DEVICE, matrix.DTYPES, "contiguous", rule, flavour)


@rules
@pytest.mark.parametrize("mix", matrix.MIXES, ids=matrix.mix_id)
def test_evolution(mix, rule):
    matrix.check_evolution(DEVICE, *mix, rule)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", [0, 5, 9])
def test_one_bad_weight_stops_the_step(value, layer):
    matrix.check_poison(DEVICE, value, layer)


def on_gpu(seed=23):
    return matrix.on(matrix.make_cases(matrix.DTYPES, "contiguous", seed), DEVICE)


def test_nothing_waits_for_the_device():
    cases, counter = on_gpu(), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    bank = matrix.bank_of(cases, 2)
    rates = torch.tensor([0.5, 0.3], dtype=torch.float64, device=DEVICE)
    options = {"rate": rates, "local_ratio": [0.5, None], "starvation": counter, "starvation_limit": 2.0}
    wk.evolve_(bank, **options)
    wk.filter_importance(bank)  # its tables know no groups
    with no_waiting():
        wk.evolve_(bank, **options)
        donor = wk.match_filters(bank, wk.filter_importance(bank), **options).donor
        wk.crossover_(bank, donor, validate=False)
        cases[0].weight.data = cases[0].weight.clone()  # a moved parameter: the pointer table is sent again
        wk.filter_importance(bank)


def test_only_outputs_are_allocated():
    bank = matrix.bank_of(on_gpu(), 2)
    rates = torch.tensor([0.5, 0.3], dtype=torch.float64, device=DEVICE)
    keep = wk.evolve_(bank, rate=rates, local_ratio=[0.5, None])
    before = torch.cuda.memory_stats(DEVICE)["allocation.all.allocated"]
    again = wk.evolve_(bank, rate=rates, local_ratio=[0.5, None])
    assert torch.cuda.memory_stats(DEVICE)["allocation.all.allocated"] - before == len(keep) == len(again)


@rules
def test_graph_replays_with_changed_weights_and_rate(rule):
    captured, eager = on_gpu(), on_gpu()
    rates = torch.tensor([0.5, 0.3], dtype=torch.float64, device=DEVICE)
    counters = [torch.zeros(2, dtype=torch.int32, device=DEVICE) for _ in range(2)]
    options = {"local_ratio": [0.5, None], "starvation_limit": 2.0, "rule": rule}
    bank, other = matrix.bank_of(captured, 2), matrix.bank_of(eager, 2)

    wk.evolve_(bank, rate=rates, starvation=counters[0], **options)  # tables and kernels, before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = wk.evolve_(bank, rate=rates, starvation=counters[0], **options)
    for seed, rate in ((31, (0.5, 0.3)), (37, (0.2, 0.9)), (41, (0.9, 0.0))):
        rates.copy_(torch.tensor(rate))
        counters[1].copy_(counters[0])
        for fresh, one, two in zip(on_gpu(seed), captured, eager, strict=True):
            one.weight.copy_(fresh.weight)
            two.weight.copy_(fresh.weight)
        graph.replay()
        expected = wk.evolve_(other, rate=rates, starvation=counters[1], **options)
        assert [part.tolist() for part in found] == [part.tolist() for part in expected]
        assert counters[0].tolist() == counters[1].tolist()
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(captured, eager, strict=True))
        assert int((found.donor >= 0).sum()) > 5


def units_on_gpu():
    return units.plan_of([case.weight for case in matrix.on(units.make_cases(torch.float32), DEVICE)])


def test_reactivation_in_a_graph_is_that_without():
    captured, eager = units_on_gpu(), units_on_gpu()
    activity = torch.zeros(units.UNITS, device=DEVICE)
    step, given = torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.tensor(units.GIVEN, device=DEVICE)

    def revive(plan):
        wk.reactivate_(
            plan, wk.dormant_units(activity, [units.UNITS], 0.1), seed=2**50 + 1, step=step, scale="layer", given=given
        )

    for plan in (captured, eager):
        revive(plan)
    with no_waiting():
        revive(captured)
    revive(eager)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        revive(captured)
    for number in range(1, 4):
        step.fill_(2**40 + number)
        activity.copy_(torch.arange(units.UNITS) % (number + 1))
        before = captured.items[0].tensor.clone()
        graph.replay()
        revive(eager)
        assert not torch.equal(captured.items[0].tensor, before)
        for ours, wanted in zip(captured.items, eager.items, strict=True):
            assert torch.equal(ours.tensor, wanted.tensor), (number, ours.name)


def test_reactivation_in_a_graph_before_the_first_call_is_refused():
    weight = torch.ones(3, 41, device=DEVICE)
    plan = wk.UnitPlan([wk.UnitTensor(weight, torch.arange(3), row_value="one")], 3)
    plan.view()  # sends its table
    revived, step = torch.ones(3, dtype=torch.bool, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def capture():
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            revived.logical_and_(revived)  # an empty graph would warn
            wk.reactivate_(plan, revived, seed=0, step=step)

    with pytest.raises(RuntimeError, match="before capturing"):
        capture()
    wk.reactivate_(plan, revived, seed=0, step=step)
    assert weight.eq(1).all()


def test_capture_before_the_first_call_is_refused():
    weight = torch.randn(6, 3, 3, 3, device=DEVICE)
    bank = wk.FilterBank([weight, torch.randn(5, 2, 3, 3, device=DEVICE)])
    rates = torch.tensor([0.5], dtype=torch.float64, device=DEVICE)

    def capture():
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            rates.add_(0)  # an empty graph would warn
            wk.evolve_(bank, rate=rates)

    with pytest.raises(RuntimeError, match="before capturing"):
        capture()
    wk.evolve_(bank, rate=rates)


def test_streams_do_not_share_scratch():
    """The same layout on two streams at once."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    rates = torch.tensor([0.5, 0.3], dtype=torch.float64, device=DEVICE)
    given = [on_gpu(seed) for seed in (43, 47)]
    expected = [on_gpu(seed) for seed in (43, 47)]
    for cases in expected:
        for _ in range(5):
            wk.evolve_(matrix.bank_of(cases, 2), rate=rates, local_ratio=[0.5, None])
    torch.cuda.synchronize()
    banks = [matrix.bank_of(cases, 2) for cases in given]
    for _ in range(5):
        for bank, stream in zip(banks, streams, strict=True):
            with torch.cuda.stream(stream):
                wk.evolve_(bank, rate=rates, local_ratio=[0.5, None])
    torch.cuda.synchronize()
    for ours, wanted in zip(given, expected, strict=True):
        assert all(torch.equal(a.buffer, b.buffer) for a, b in zip(ours, wanted, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_launches_on_the_weights_device():
    other = torch.device("cuda", 1 - DEVICE.index)
    matrix.check_importance(other, matrix.DTYPES, "contiguous")
    matrix.check_evolution(other, matrix.DTYPES, "contiguous", "paper")


def test_offsets_beyond_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    base = torch.zeros(2**31 + 4096, dtype=torch.float16, device=DEVICE)
    weight = base.as_strided((3, 5, 3, 3), (2**30 + 64, 9, 3, 1), 0)
    weight.copy_(torch.arange(1, 4).view(3, 1, 1, 1) * torch.rand(3, 5, 3, 3))
    expected = weight.cpu().clone()
    with wk.use_backend("torch"):
        wk.evolve_(wk.FilterBank([expected]), rate=0.4, local_ratio=None)
    wk.evolve_(wk.FilterBank([weight]), rate=0.4, local_ratio=None)
    assert torch.equal(weight.cpu(), expected)
    assert int(base.count_nonzero()) == 3 * 45


def test_nothing_compiles_anew_for_other_sizes():
    """No argument value is compiled in."""
    from we_kernels.evolution.triton import matching

    compiled = []
    for sizes in ((1, 16), (5, 7, 3), (64,)):
        bank = wk.FilterBank([torch.rand(n, device=DEVICE) for n in sizes])
        wk.match_filters(bank, torch.rand(sum(sizes), device=DEVICE), rate=0.5)
        compiled.append(len(matching.matching_kernel.device_caches[DEVICE.index][0]))
    assert compiled == [compiled[0]] * 3


def network(linear=True, seed=0, device=DEVICE):
    torch.manual_seed(seed)
    blocks = [m for i in range(3) for m in (nn.Conv2d(3 + i, 4 + i, 3), nn.BatchNorm2d(4 + i))]
    model = nn.Sequential(*blocks, *([nn.Linear(6, 5)] if linear else []))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0 ** (-3 * torch.rand(len(parameter), *[1] * (parameter.dim() - 1)))).add_(1e-4)
    return model.to(device)


def evolution_of(model, **options):
    rates = {"conv_rate": 0.6, "norm_scale_rate": 0.5, "norm_shift_rate": 0.4, "linear_rate": 0.5}
    return WeightEvolution(model, **rates, local_ratio=0.5, include=["*"], **options)


def assert_same_models(ours, wanted):
    for a, b in zip(ours.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-6, atol=1e-7)


def test_whole_step_is_that_of_the_cpu():
    ours, wanted = network(), network(device="cpu")
    found, expected = evolution_of(ours).step(), evolution_of(wanted).step()
    assert_same_models(ours, wanted)
    assert found.counters == expected.counters
    assert {name: rows.tolist() for name, rows in found.donors.items()} == {
        name: rows.tolist() for name, rows in expected.donors.items()
    }
    assert sum(found.inferior.values()) > 5


def fill_memory_pools():
    """With free blocks for what steps send, read back and return: the driver may wait when it allocates."""
    pinned = [torch.empty(1 << bits, dtype=torch.uint8, pin_memory=True) for bits in range(4, 17) for _ in range(8)]
    results = torch.empty(2**19, dtype=torch.uint8, device=DEVICE)
    del pinned, results


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_whole_step_waits_for_nothing(cuda_graph):
    evolution = evolution_of(network(), cuda_graph=cuda_graph)
    for _ in range(3):
        evolution.step()
    fill_memory_pools()
    torch.cuda.synchronize()
    with no_waiting():
        torch.cuda._sleep(10**9)  # half a second at 2 GHz: the steps need milliseconds
        reports = [evolution.step(epoch=100 + i) for i in range(3)]
        assert not torch.cuda.current_stream().query(), "the step waited"
    assert all(report.finite for report in reports)


def test_whole_step_in_a_graph_is_that_without():
    models = [network() for _ in range(2)]
    eager, graphed = (
        evolution_of(model, cuda_graph=graph, schedule=lambda rate, epoch: rate / (1 + epoch % 3))
        for model, graph in zip(models, (False, True), strict=True)
    )
    reports = []
    for seed in range(6):
        fresh = network(seed=seed)
        with torch.no_grad():
            for model in models:
                for own, new in zip(model.parameters(), fresh.parameters(), strict=True):
                    own.copy_(new)
        if seed == 4:
            models[1][0].weight.data = models[1][0].weight.data.clone()
        reports.append((eager.step(), graphed.step()))
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(a, b)
    for wanted, found in reports:
        assert found.thresholds == wanted.thresholds
        assert found.counters == wanted.counters
        assert all(torch.equal(found.donors[name], wanted.donors[name]) for name in wanted.donors)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_weight_that_is_not_finite_is_reported_later(cuda_graph):
    model = network()
    evolution = evolution_of(model, cuda_graph=cuda_graph)
    for _ in range(3):
        evolution.step()
    with torch.no_grad():
        model[2].weight[1, 2, 0, 0] = float("nan")
    before = [parameter.clone() for parameter in model.parameters()]
    report = evolution.step()
    for a, b in zip(model.parameters(), before, strict=True):
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    torch.cuda.synchronize()
    with pytest.raises(wk.NonFiniteWeightError, match=r"2\.weight"):
        evolution.step()
    assert not report.finite


@pytest.mark.filterwarnings("ignore")  # Inductor's own
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode):
    weights = nn.ParameterList(
        [nn.Parameter(torch.randn(6, 3, 3, 3, device=DEVICE)), nn.Parameter(torch.randn(9, 4, device=DEVICE))]
    )
    rates = torch.tensor([0.5], dtype=torch.float64, device=DEVICE)

    def evolve(rates):
        with torch.no_grad():
            return wk.evolve_(wk.FilterBank(list(weights)), rate=rates, local_ratio=None).donor

    compiled = torch.compile(evolve, mode=mode, fullgraph=True)
    for seed, rate in enumerate((0.5, 0.5, 0.2, 0.8)):
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in weights:
                weight.normal_()
        rates.fill_(rate)
        expected = [weight.detach().clone() for weight in weights]
        donor = wk.evolve_(wk.FilterBank(expected), rate=rates, local_ratio=None).donor
        assert compiled(rates).tolist() == donor.tolist()
        assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_two_gpus_is_refused():
    model = network()
    model[2].to(torch.device("cuda", 1 - DEVICE.index))
    with pytest.raises(ValueError, match="a threshold cannot span devices"):
        evolution_of(model).step()


def check_against_the_reference(weights, rate=0.3):
    """On the GPU itself: nothing so large goes through the CPU."""
    before = [weight.clone() for weight in weights]
    found = wk.evolve_(wk.FilterBank(weights), rate=rate, local_ratio=None)
    with wk.use_backend("torch"):
        importance = wk.filter_importance(wk.FilterBank(before))
        donor = wk.match_filters(wk.FilterBank(before), found.importance, rate=rate, local_ratio=None).donor
        wk.crossover_(wk.FilterBank(before), donor, validate=False)
    torch.testing.assert_close(found.importance, importance, rtol=1e-4, atol=0.0)
    assert torch.equal(found.donor, donor)
    assert int((donor >= 0).sum()) > 0
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_more_than_65535_programs():
    """Every kernel's grid: tiles of importances and ranks, and matches."""
    check_against_the_reference([torch.randn(1024, 2, 2, 1, device=DEVICE) for _ in range(1200)])
    # Filters with gaps take a program each.
    check_against_the_reference([torch.randn(70_000, 2, 4, 2, device=DEVICE)[:, :, ::2]])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((32_000, 3_473, 3, 3), torch.float16), ((16_500, 14_600, 3, 3), torch.bfloat16)],
    ids=["1e9", "past_2_31"],
)
def test_one_huge_tensor(shape, dtype):
    elements = torch.Size(shape).numel()
    if torch.cuda.mem_get_info()[0] < 4 * elements * dtype.itemsize:
        pytest.skip(f"needs {4 * elements * dtype.itemsize >> 30} GiB of free GPU memory")
    weight = torch.empty(shape, dtype=dtype, device=DEVICE).normal_()
    weight *= torch.logspace(-2, 0, shape[0], device=DEVICE, dtype=torch.float32).to(dtype).view(-1, 1, 1, 1)
    before = weight[:: shape[0] // 50].clone()
    found = wk.evolve_(wk.FilterBank([weight]), rate=0.001, local_ratio=None)
    importance = before.float().abs().sum((1, 2, 3)) / shape[1]
    torch.testing.assert_close(found.importance[:: shape[0] // 50], importance, rtol=1e-4, atol=0.0)
    low, high = int((found.donor >= 0).nonzero()[0]), int(found.donor.max())
    assert low < shape[0] // 5
    assert high > shape[0] * 4 // 5, "reads the far end of the tensor"
    unmatched = found.donor[:: shape[0] // 50] < 0
    assert torch.equal(weight[:: shape[0] // 50][unmatched], before[unmatched])
