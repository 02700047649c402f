"""The CUDA part of the extension: what it refuses, and, on a GPU, the cases of `matrix` with the native backend."""

import pytest
import torch

import we_kernels as wk
from tests import availability, matrix
from tests.cuda import cuda_cases
from tests.waiting import no_waiting
from we_kernels.runtime import backends
from we_kernels.runtime.view import BankView

native = pytest.importorskip("we_kernels._native", reason="the extension is not built")
if not hasattr(native, "cuda_status"):
    pytest.skip("the extension is built without CUDA", allow_module_level=True)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
rules = pytest.mark.parametrize("rule", ["paper", "released"])
mixes = pytest.mark.parametrize("mix", matrix.MIXES, ids=matrix.mix_id)


def test_architectures():
    assert native.cuda_architectures()


def test_status_says_why_there_is_no_device():
    if torch.cuda.is_available():
        assert native.cuda_status() is None
    else:
        assert "driver" in native.cuda_status() or "device" in native.cuda_status()


def test_availability_is_that_of_the_device():
    reason = backends.unavailable("native", "cuda")
    assert (reason is None) == (native.cuda_status() is None)
    assert reason is None or native.cuda_status() in reason


def test_running_without_a_device_says_why():
    if native.cuda_status() is None:
        pytest.skip("there is a device")
    weight, layout = torch.randn(3, 2), BankView([torch.randn(3, 2)], [0], ()).layout
    with pytest.raises(RuntimeError, match=r"driver|device"):
        native.cuda_importance([weight.data_ptr()], layout.table.data_ptr(), 1, (8, 8), (8, 112), (8, 12), 0, 0)


@needs_gpu
@mixes
def test_importance(mix):
    matrix.check_importance("cuda", *mix, backend="native")


@needs_gpu
def test_importance_of_short_and_long_filters():
    weights, dims = cuda_cases.weights("cuda")
    with wk.use_backend("native"):
        result = wk.filter_importance(wk.FilterBank(weights, dims))
        again = wk.filter_importance(wk.FilterBank(weights, dims))
    cuda_cases.check(result, weights, dims)
    assert torch.equal(result, again), "differs from run to run"


@needs_gpu
@pytest.mark.parametrize("case", matrix.MATCHINGS, ids=matrix.matching_id)
def test_matching(case):
    matrix.check_matching("cuda", *case, backend="native")


@needs_gpu
@pytest.mark.parametrize("filters", [1000, 8000, 30000, 70000])
def test_thresholds_of_large_groups(filters):
    sizes = [filters // 400] * 400 + [filters % 400 + 1]
    groups = [int(i % 400 == 7) for i in range(401)]
    options = ([0.4, 0.2], [0.01, None], groups, 3.0, [0, 0], sizes)
    matrix.check_matching("cuda", "normal", *options, backend="native")


@needs_gpu
@rules
@mixes
def test_crossover(mix, rule):
    matrix.check_crossover("cuda", *mix, rule, backend="native")


@needs_gpu
@rules
@pytest.mark.parametrize("flavour", ["ties", "zeros", "tiny"])
def test_crossover_of_awkward_values(flavour, rule):
    matrix.check_crossover("cuda", matrix.DTYPES, "contiguous", rule, flavour, backend="native")


@needs_gpu
@rules
@mixes
def test_evolution(mix, rule):
    matrix.check_evolution("cuda", *mix, rule, backend="native")


@needs_gpu
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", [0, 5, 9])
def test_one_bad_weight_stops_the_step(value, layer):
    matrix.check_poison("cuda", value, layer, backend="native")


def on_gpu(seed=23):
    return matrix.on(matrix.make_cases(matrix.DTYPES, "contiguous", seed), torch.device("cuda", 0))


def gpu_rates(*rates):
    return torch.tensor(rates, dtype=torch.float64, device="cuda:0")


def gpu_counter():
    return torch.zeros(2, dtype=torch.int32, device="cuda:0")


@needs_gpu
def test_nothing_waits_for_the_device():
    cases = on_gpu()
    bank = matrix.bank_of(cases, 2)
    options = {"local_ratio": [0.5, None], "starvation": gpu_counter(), "starvation_limit": 2.0}
    options["rate"] = gpu_rates(0.5, 0.3)
    with wk.use_backend("native"):
        wk.evolve_(bank, **options)
        wk.filter_importance(bank)  # its tables know no groups
        with no_waiting():
            wk.evolve_(bank, **options)
            donor = wk.match_filters(bank, wk.filter_importance(bank), **options).donor
            wk.crossover_(bank, donor, validate=False)
            cases[0].weight.data = cases[0].weight.clone()  # a moved parameter: the pointer table is sent again
            wk.filter_importance(bank)


@needs_gpu
def test_only_outputs_are_allocated():
    bank, rates = matrix.bank_of(on_gpu(), 2), gpu_rates(0.5, 0.3)
    with wk.use_backend("native"):
        keep = wk.evolve_(bank, rate=rates, local_ratio=[0.5, None])
        before = torch.cuda.memory_stats(0)["allocation.all.allocated"]
        again = wk.evolve_(bank, rate=rates, local_ratio=[0.5, None])
    assert torch.cuda.memory_stats(0)["allocation.all.allocated"] - before == len(keep) == len(again)


@needs_gpu
@rules
def test_graph_replays_with_changed_weights_and_rate(rule):
    captured, eager = on_gpu(), on_gpu()
    rates, counters = gpu_rates(0.5, 0.3), [gpu_counter(), gpu_counter()]
    options = {"local_ratio": [0.5, None], "starvation_limit": 2.0, "rule": rule}
    bank, other = matrix.bank_of(captured, 2), matrix.bank_of(eager, 2)
    with wk.use_backend("native"):
        wk.evolve_(bank, rate=rates, starvation=counters[0], **options)  # tables, before the capture
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


@needs_gpu
def test_capture_before_the_first_call_is_refused():
    bank = wk.FilterBank([torch.randn(6, 3, 3, 3, device="cuda"), torch.randn(5, 7, 3, 3, device="cuda")])
    rates = gpu_rates(0.5)

    def capture():
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            rates.add_(0)  # an empty graph would warn
            wk.evolve_(bank, rate=rates)

    with wk.use_backend("native"):
        with pytest.raises(RuntimeError, match="before capturing"):
            capture()
        wk.evolve_(bank, rate=rates)


@needs_gpu
def test_streams_do_not_share_scratch():
    """The same layout on two streams at once, neither of them the default one."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    rates = gpu_rates(0.5, 0.3)
    given = [on_gpu(seed) for seed in (43, 47)]
    expected = [on_gpu(seed) for seed in (43, 47)]
    with wk.use_backend("native"):
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
    current = torch.cuda.current_device()
    other = torch.device("cuda", 1 - current)
    matrix.check_importance(other, matrix.DTYPES, "contiguous", backend="native")
    matrix.check_evolution(other, matrix.DTYPES, "contiguous", "paper", backend="native")
    assert torch.cuda.current_device() == current


@needs_gpu
def test_memory_of_the_host_is_refused():
    weight = torch.randn(3, 2)
    layout = BankView([weight], [0], ()).layout
    table = layout.table.data_ptr()
    host = torch.empty(14, dtype=torch.int64)
    with pytest.raises(ValueError, match="is not in the memory of a CUDA device"):
        native.cuda_importance(
            *([weight.data_ptr()], table, 1, (host.data_ptr(), 8), (host.data_ptr(), 112), (host.data_ptr(), 12), 0, 0)
        )


@needs_gpu
def test_offsets_beyond_2_31_elements():
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    base = torch.zeros(2**31 + 4096, dtype=torch.float16, device="cuda")
    weight = base.as_strided((3, 5, 3, 3), (2**30 + 64, 9, 3, 1), 0)
    weight.copy_(torch.arange(1, 4).view(3, 1, 1, 1) * torch.rand(3, 5, 3, 3))
    expected = weight.cpu().clone()
    with wk.use_backend("torch"):
        wk.evolve_(wk.FilterBank([expected]), rate=0.4, local_ratio=None)
    with wk.use_backend("native"):
        wk.evolve_(wk.FilterBank([weight]), rate=0.4, local_ratio=None)
    assert torch.equal(weight.cpu(), expected)
    assert int(base.count_nonzero()) == 3 * 45


@needs_gpu
def test_native_runs_where_triton_is_not_installed(monkeypatch):
    able = backends.unavailable
    reason = "Triton is not installed"
    availability.pretend(monkeypatch, lambda name, device: reason if name == "triton" else able(name, device))
    assert wk.backend_of("evolve_", torch.device("cuda")) == "native"
