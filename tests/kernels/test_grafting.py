"""Entropies and blends: against the specification in plain loops, the recorded cases, and every backend."""

import copy
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import we_kernels as wk
from tests.banks import DTYPES, FORMATS, cases, place, random_values
from we_kernels.grafting.operators import entropy_of_counts
from we_kernels.grafting.spread import part_counts, part_ranges
from we_kernels.runtime import backends

RECORDED = sorted((Path(__file__).parents[1] / "data" / "filter_grafting").glob("*.json"))
SHAPES = [(7, 5, 3, 3), (9, 4, 1, 1), (6, 2, 1, 3), (11, 6), (13,), (8, 3, 5), (4, 3, 2, 3, 2), (3, 1), (1, 700)]
NAN, INF = float("nan"), float("inf")


def entropy_by_loops(values, bins):
    """Of one tensor or filter; edges are rounded to the dtype that it is computed in."""
    number = np.float64 if values.dtype == torch.float64 else np.float32
    x = [number(value) for value in values.flatten().tolist()]
    low, high = min(x), max(x)
    width = (high - low) / number(bins)
    edges = [low + number(k) * width for k in range(bins + 1)]
    counts = [sum(a <= value < b for value in x) for a, b in pairwise(edges)]
    return -sum(n / len(x) * math.log(n / len(x)) for n in counts if n)


def make(dtype, memory_format, flavour="normal", seed=0):
    """Cases and their bank."""
    made = []
    for i, shape in enumerate(SHAPES):
        dim = 1 if i % 4 == 3 else 0
        made.append(place(random_values(shape, dtype, seed + i, flavour), memory_format, dim))
    return made, bank_of(made)


def bank_of(made):
    return wk.FilterBank([case.weight for case in made], [case.filter_dim for case in made])


def filters_of(bank):
    return [f for w, dim in zip(bank.weights, bank.filter_dims, strict=True) for f in w.movedim(dim, 0).unbind()]


@pytest.mark.parametrize("bins", [1, 2, 10, 37])
@pytest.mark.parametrize("flavour", ["normal", "ties", "zeros", "tiny"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_is_that_of_plain_loops(dtype, flavour, bins):
    _, bank = make(dtype, "sliced", flavour)
    with wk.use_backend("torch"):
        per_tensor = wk.weight_entropy(bank, bins)
        per_filter = wk.weight_entropy(bank, bins, per="filter")
    assert (per_tensor.dtype, per_filter.dtype) == (torch.float32, torch.float32)
    assert (per_tensor.shape, per_filter.shape) == ((len(bank),), (bank.num_filters,))
    for found, groups in ((per_tensor, bank.weights), (per_filter, filters_of(bank))):
        expected = torch.tensor([entropy_by_loops(values, bins) for values in groups], dtype=torch.float32)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_entropy_of_known_histograms(backend):
    weights = [
        torch.arange(11.0),  # a tenth of the range each, the maximum in no bin
        torch.full((5, 2), 3.0),
        torch.tensor([0.0, 0.0, 0.0, 1.0]),
        torch.tensor([-0.0, 0.0]),
        torch.tensor([7.0]),
    ]
    eleventh = math.log(11) * 10 / 11
    expected = torch.tensor([eleventh, 0.0, -0.75 * math.log(0.75), 0.0, 0.0])
    found = wk.weight_entropy(wk.FilterBank(weights))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert not found.signbit().any()


@pytest.mark.parametrize("backend", ["native", "triton"], indirect=True)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_is_the_references(backend, dtype, memory_format):
    made, bank = make(dtype, memory_format)
    for bins in (10,) if backend == "triton" else (1, 10, 16, 17, 256):
        for per in ("tensor", "filter"):
            found = wk.weight_entropy(bank, bins, per=per)
            with wk.use_backend("torch"):
                assert found.tolist() == wk.weight_entropy(bank, bins, per=per).tolist()
    assert all(case.guards_intact() for case in made)


AWKWARD = {
    "range overflows": [-3e38, 3e38, 1e38, 0.0, -2e38, 2.9e38, 1.0],
    "largest": [3.4e38, 3.4e38, 3.3e38, 3.39e38, 3.38e38],
    "almost everything": [0.0, 1.0, 3.3e38],
    "far from zero, huge": [-3.3e38, -1.0, 1e38],
    "subnormals": [1e-45, 3e-45, 0.0, -1e-44, 2e-44, 1e-40],
    "neighbours": [1.0, 1.0 + 2**-23, 1.0 + 2**-22, 1.0 + 3 * 2**-23, 1.0 + 2**-21],
    "far from zero": [1000.0 + i * 2**-14 for i in range(40)],
    "last edge above the maximum": [0.1 * i for i in range(21)],
    "zeros of both signs": [0.0, -0.0, -0.0, 1.0],
}


@pytest.mark.parametrize("values", AWKWARD.values(), ids=AWKWARD.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entropy_of_awkward_values(backend, dtype, values):
    weights = [torch.tensor(values, dtype=dtype), torch.tensor([*values, *values[:-1]] * 9, dtype=dtype).view(9, -1)]
    if dtype == torch.float64 and max(map(abs, values)) > 1e38:
        weights = [weight * 5e269 for weight in weights]
    for bins in (3, 100) if backend == "triton" else (1, 3, 10, 100):
        found = wk.weight_entropy(wk.FilterBank(weights), bins)
        with wk.use_backend("torch"):
            assert found.tolist() == wk.weight_entropy(wk.FilterBank(weights), bins).tolist()
        assert found.isfinite().all()


def test_entropy_where_the_range_overflows():
    weight = torch.tensor([-3e38, 3e38, 1.0])
    found = wk.weight_entropy(wk.FilterBank([weight]), 2)
    torch.testing.assert_close(found, torch.tensor([math.log(3) * 2 / 3]))


@pytest.mark.parametrize("value", [NAN, -NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_of_values_that_are_not_finite(backend, dtype, value):
    _, bank = make(dtype, "transposed")
    clean = wk.weight_entropy(bank)
    for layer in (0, 4, 7):
        bank.weights[layer].movedim(-1, 0)[-1].fill_(value)
    with pytest.raises(wk.NonFiniteWeightError, match=r"weights\[0\], weights\[4\], weights\[7\]$"):
        wk.weight_entropy(bank)
    found = wk.weight_entropy(bank, check_finite=False)
    bad = torch.zeros(len(bank), dtype=torch.bool)
    bad[[0, 4, 7]] = True
    assert torch.equal(found.isnan(), bad)
    assert torch.equal(found[~bad], clean[~bad])
    per_filter = wk.weight_entropy(bank, check_finite=False, per="filter")
    finite = torch.tensor([bool(f.isfinite().all()) for f in filters_of(bank)])
    assert torch.equal(per_filter.isfinite(), finite)


@pytest.mark.parametrize("flavour", ["normal", "ties", "huge"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_of_parts(backend, dtype, flavour):
    """Of tensors in four banks, some parts empty, a constant and a range that overflows among them."""
    made, _ = make(dtype, "channels_last", "normal" if flavour == "huge" else flavour)
    weights = [case.weight for case in made]
    if flavour == "huge":
        weights = [weight / weight.abs().max() * torch.finfo(dtype).max for weight in weights] + [
            torch.ones(5).to(dtype)
        ]
    chunks = [[*weight.chunk(4), *[weight[:0]] * 4] for weight in weights]
    banks = [wk.FilterBank([parts[i] for parts in chunks]) for i in range(4)]
    low, high = torch.stack([part_ranges(bank) for bank in banks]).unbind(2)
    ranges = torch.stack([low.amin(0), high.amax(0)], 1)
    counts = sum(part_counts(bank, ranges, 10) for bank in banks)
    elements = torch.tensor([weight.numel() for weight in weights], dtype=torch.float64)
    assert torch.equal(entropy_of_counts(counts, elements), wk.weight_entropy(wk.FilterBank(weights)))
    nothing = wk.FilterBank([])
    assert part_ranges(nothing).shape == (0, 2)
    assert part_counts(nothing, part_ranges(nothing), 10).shape == (0, 10)


def test_l1(backend):
    for dtype in DTYPES:
        _, bank = make(dtype, "channels_last")
        tensors = torch.stack([weight.double().abs().sum() for weight in bank.weights]).float()
        filters = torch.stack([f.double().abs().sum() for f in filters_of(bank)]).float()
        torch.testing.assert_close(wk.weight_l1(bank), tensors, rtol=1e-6, atol=0)
        torch.testing.assert_close(wk.weight_l1(bank, per="filter"), filters, rtol=1e-6, atol=0)
    bank.weights[3][0] = NAN
    with pytest.raises(wk.NonFiniteWeightError, match=r"weights\[3\]$"):
        wk.weight_l1(bank)
    assert wk.weight_l1(bank, check_finite=False)[3].isnan()


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded_case(backend, path):
    case = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {key: torch.from_numpy(value) for key, value in file.items()}
    names = [f"{name}" for name in case["coefficient"][0]]
    banks = [
        wk.FilterBank([arrays[f"before/{i}/{name}"] for name in names], names=names) for i in range(case["networks"])
    ]
    convs = [names.index(name) for name in case["entropy"][0]]
    entropy = torch.stack([wk.weight_entropy(bank, case["bins"])[convs] for bank in banks])
    expected = torch.tensor([[network[names[conv]] for conv in convs] for network in case["entropy"]])
    torch.testing.assert_close(entropy, expected, rtol=0, atol=1e-6)
    share = case["a"] / math.pi * torch.atan(case["c"] * (entropy - entropy.roll(1, 0)).double()) + 0.5
    found = [[round(value, 2) for value in row] for row in share.tolist()]
    assert found == [[network[names[conv]] for conv in convs] for network in case["coefficient"]]
    coefficients = torch.tensor([[network[name] for name in names] for network in case["coefficient"]])
    wk.blend_ring_(banks, coefficients, per="tensor")
    for i, bank in enumerate(banks):
        for name, weight in zip(names, bank.weights, strict=True):
            after = arrays[f"after/{i}/{name}"]
            torch.testing.assert_close(weight, after, rtol=0, atol=1e-6 * float(after.abs().max()))


def coefficients_for(bank, per, seed):
    size = len(bank) if per == "tensor" else bank.num_filters
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 1.5 - 0.25


def blended(own, neighbour, filter_dim, share):
    """c * W + (1 - c) * O in the dtype that it is computed in; share is one number or one per filter."""
    number = torch.float64 if own.dtype == torch.float64 else torch.float32
    c = share.to(number)
    if c.dim():
        c = c.view(-1, *[1] * (own.dim() - 1)).movedim(0, filter_dim)
    first, second = c * own.to(number), (1 - c) * neighbour.to(number)
    return (first + second).to(own.dtype)


def parts_of(bank, coefficient, per):
    return coefficient.unbind() if per == "tensor" else bank.split(coefficient)


def expected_ring(banks, coefficients, per):
    """From copies, so that nothing is read after it was written."""
    before = [[weight.clone() for weight in bank.weights] for bank in banks]
    result = []
    for k, (bank, coefficient) in enumerate(zip(banks, coefficients, strict=True)):
        shares = parts_of(bank, coefficient, per)
        lists = zip(before[k], before[k - 1], bank.filter_dims, shares, strict=True)
        result.append([blended(own, previous, dim, c) for own, previous, dim, c in lists])
    return result


def same_bits(a, b):
    ints = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(ints), b.contiguous().view(ints))


@pytest.mark.parametrize("per", ["tensor", "filter"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blend(backend, dtype, memory_format, per):
    made, bank = make(dtype, memory_format)
    others, other = make(dtype, FORMATS[FORMATS.index(memory_format) - 2], seed=40)
    untouched = copy.deepcopy(others)
    coefficient = coefficients_for(bank, per, 3)
    lists = zip(bank.weights, other.weights, bank.filter_dims, parts_of(bank, coefficient, per), strict=True)
    expected = [blended(*arguments) for arguments in lists]
    wk.blend_(bank, other, coefficient)
    assert all(same_bits(weight, wanted) for weight, wanted in zip(bank.weights, expected, strict=True))
    assert all(case.guards_intact() for case in made)
    assert all(torch.equal(a.buffer, b.buffer) for a, b in zip(others, untouched, strict=True))


@pytest.mark.parametrize("per", ["tensor", "filter"])
@pytest.mark.parametrize("networks", [2, 3, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ring(backend, dtype, networks, per):
    made = [make(dtype, FORMATS[(networks * i) % 5], seed=20 * i) for i in range(networks)]
    banks = [bank for _, bank in made]
    coefficients = [coefficients_for(bank, per, i) for i, bank in enumerate(banks)]
    expected = expected_ring(banks, coefficients, per)
    wk.blend_ring_(banks, coefficients)
    for bank, wanted in zip(banks, expected, strict=True):
        assert all(same_bits(a, b) for a, b in zip(bank.weights, wanted, strict=True))
    assert all(case.guards_intact() for network, _ in made for case in network)


def test_ring_of_networks_that_lie_alike(backend):
    """The way of networks made by one constructor: every tensor is contiguous."""
    for dtype in DTYPES:
        banks = [make(dtype, "contiguous", seed=20 * i)[1] for i in range(3)]
        coefficients = torch.stack([coefficients_for(bank, "filter", i) for i, bank in enumerate(banks)])
        expected = expected_ring(banks, coefficients, "filter")
        wk.blend_ring_(banks, coefficients)
        for bank, wanted in zip(banks, expected, strict=True):
            assert all(same_bits(a, b) for a, b in zip(bank.weights, wanted, strict=True))


def test_blend_keeps_values_that_are_not_finite(backend):
    for dtype in DTYPES:
        values = torch.tensor([[NAN, INF, -INF, 1.0, 2.0, torch.finfo(dtype).max] * 7], dtype=dtype)
        other = torch.tensor([[1.0, 1.0, INF, NAN, -INF, torch.finfo(dtype).max] * 7], dtype=dtype)
        expected = blended(values, other, 0, torch.tensor(0.5))
        wk.blend_(wk.FilterBank([values]), wk.FilterBank([other]), torch.tensor([0.5]))
        torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("length", [3, 150])
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 1.0])
def test_signs_of_zeros(backend, coefficient, length):
    for dtype in DTYPES:
        values, other = torch.zeros(1, length, dtype=dtype), torch.zeros(1, length, dtype=dtype)
        values[0, ::2], other[0, ::3], other[0, 1::3] = -0.0, -0.0, -1.0
        expected = blended(values, other, 0, torch.tensor(coefficient))
        wk.blend_(wk.FilterBank([values]), wk.FilterBank([other]), torch.tensor([coefficient]))
        assert same_bits(values, expected)


@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_ends_of_the_range(backend, coefficient):
    for dtype in DTYPES:
        (_, bank), (_, other) = make(dtype, "shifted"), make(dtype, "shifted", seed=50)
        expected = copy.deepcopy((other, bank)[int(coefficient)].weights)
        wk.blend_(bank, other, torch.full((len(bank),), coefficient))
        assert all(torch.equal(a, b) for a, b in zip(bank.weights, expected, strict=True))


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(7, 5, 3, 3, generator=generator),
        torch.randn(4, 9, 1, 1, generator=generator),
        torch.randn(11, generator=generator).double(),
    ]


def test_opcheck(backend, opcheck):
    ops, dims = torch.ops.we_kernels, [0, 1, 0]
    for per_filter, size in ((False, 3),) if backend == "triton" else ((False, 3), (True, 27)):
        opcheck(ops.weight_entropy.default, (tensors(), dims, [0] * 3, 10, per_filter))
        opcheck(ops.count_bins.default, (tensors(), dims, [0] * 3, 10, per_filter))
        opcheck(ops.blend_.default, (tensors(), dims, [0] * 3, tensors(1), torch.rand(size), per_filter))
        weights = [*tensors(), *tensors(1), *tensors(2)]
        opcheck(ops.blend_ring_.default, (weights, dims, torch.rand(3, size), per_filter))


def test_fakes_have_the_real_shapes():
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in tensors()]
        for per_filter in (False, True):
            for operator in (torch.ops.we_kernels.weight_entropy, torch.ops.we_kernels.count_bins):
                real = operator(tensors(), [0, 1, 0], [0] * 3, 10, per_filter)
                fake = operator(fakes, [0, 1, 0], [0] * 3, 10, per_filter)
                assert (real.shape, real.stride(), real.dtype) == (fake.shape, fake.stride(), fake.dtype)


def test_compiles_into_one_graph():
    def step(first, second):
        banks = [wk.FilterBank(first), wk.FilterBank(second)]
        entropy = [wk.weight_entropy(bank) for bank in banks]
        share = torch.sigmoid(entropy[0] - entropy[1])
        wk.blend_ring_(banks, [share, 1 - share])
        wk.blend_(banks[0], banks[1], share)
        return share * 2

    eager, compiled = [tensors(), tensors(1)], [tensors(), tensors(1)]
    expected = step(*eager)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    assert torch.equal(found, expected)
    for network, other, before in zip(eager, compiled, (tensors(), tensors(1)), strict=True):
        for a, b, old in zip(network, other, before, strict=True):
            assert torch.equal(a, b)
            assert not torch.equal(a, old)


@pytest.mark.parametrize("layers", [1, 9])
def test_launches_do_not_grow_with_the_layers(layers):
    launch = pytest.importorskip("we_kernels.runtime.triton.launch")
    if backends.unavailable("triton", "cpu"):
        pytest.skip("needs Triton's interpreter")
    banks = [wk.FilterBank([torch.randn(2, 3 + i) for i in range(layers)]) for _ in range(3)]
    launched = []
    launch.observers.append(lambda name, arguments, constants: launched.append(name))
    try:
        with wk.use_backend("triton"):
            wk.weight_entropy(banks[0])
            wk.weight_entropy(banks[0], per="filter")
            wk.blend_(banks[0], banks[1], torch.rand(layers), per="tensor")
            wk.blend_ring_(banks, torch.rand(3, 2 * layers), per="filter")
    finally:
        launch.observers.pop()
    assert launched == ["range_kernel", "bins_kernel", "filter_bins_kernel", "blend_kernel", "blend_kernel"]


def test_outputs_are_written_whole(backend, monkeypatch):
    """What the allocator hands over is not zero."""
    empty = torch.empty

    def poisoned(*arguments, **options):
        return empty(*arguments, **options).fill_(-99)

    bank = bank_of(make(torch.float32, "sliced")[0][:5])
    with wk.use_backend("torch"):
        expected = [wk.weight_entropy(bank, per=per).tolist() for per in ("tensor", "filter")]
    monkeypatch.setattr(torch, "empty", poisoned)
    assert [wk.weight_entropy(bank, per=per).tolist() for per in ("tensor", "filter")] == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set_and_number_of_threads_gives_the_same(dtype):
    native = pytest.importorskip("we_kernels._native")
    level, threads, bytes_before = native.simd(), torch.get_num_threads(), native.wake_threads_from(0)
    found = []
    try:
        for name in ("baseline", "avx2", "avx512"):
            native.limit_simd(name)
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                banks = [make(dtype, FORMATS[i % 2 * 4], seed=20 * i)[1] for i in range(3)]
                with wk.use_backend("native"):
                    entropies = [
                        wk.weight_entropy(banks[0], bins, per=per) for bins, per in ((10, "tensor"), (19, "filter"))
                    ]
                    wk.blend_ring_(banks[:2], torch.stack([coefficients_for(banks[0], "filter", i) for i in range(2)]))
                    wk.blend_ring_(banks, torch.stack([coefficients_for(banks[0], "tensor", i) for i in range(3)]))
                found.append((entropies, [weight for bank in banks for weight in bank.weights]))
    finally:
        native.limit_simd(level)
        native.wake_threads_from(bytes_before)
        torch.set_num_threads(threads)
    for entropies, weights in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(entropies, found[0][0], strict=True))
        assert all(same_bits(a, b) for a, b in zip(weights, found[0][1], strict=True))


def test_version_counters(backend):
    banks = [wk.FilterBank(tensors(i)) for i in range(2)]
    wk.weight_entropy(banks[0])
    versions = [[weight._version for weight in bank.weights] for bank in banks]
    wk.blend_(*banks, torch.rand(3))
    assert all(weight._version > old for weight, old in zip(banks[0].weights, versions[0], strict=True))
    assert [weight._version for weight in banks[1].weights] == versions[1]
    wk.blend_ring_(banks, torch.rand(2, 3))
    assert all(weight._version > old for weight, old in zip(banks[1].weights, versions[1], strict=True))


def test_parameters_need_no_gradient(backend):
    banks = [wk.FilterBank([torch.nn.Parameter(tensor) for tensor in tensors(i)]) for i in range(2)]
    wk.blend_ring_(banks, torch.rand(2, 3))
    assert not wk.weight_entropy(banks[0]).requires_grad


def test_tied_weights_are_blended_once(backend):
    weights, others = tensors(), tensors(1)
    tied = wk.FilterBank([weights[0], weights[1], weights[0][:]], [0, 1, 0])
    tied_other = wk.FilterBank([others[0], others[1], others[0][:]], [0, 1, 0])
    expected = blended(weights[0], others[0], 0, torch.tensor(0.25))
    assert wk.weight_entropy(tied).shape == (2,)
    wk.blend_(tied, tied_other, torch.tensor([0.25, 0.5]))
    assert torch.equal(weights[0], expected)


def test_empty_banks_and_tensors(backend):
    empty = wk.FilterBank([])
    assert wk.weight_entropy(empty).shape == (0,)
    assert wk.weight_l1(empty, per="filter").shape == (0,)
    wk.blend_(empty, wk.FilterBank([]), torch.empty(0))
    wk.blend_ring_([empty, wk.FilterBank([])], torch.empty(2, 0))
    banks = [wk.FilterBank([torch.empty(0, 4), torch.full((2, 3), float(i)), torch.empty(0)]) for i in range(2)]
    assert wk.weight_entropy(banks[0]).tolist() == [0, 0, 0]
    assert wk.weight_l1(banks[1]).tolist() == [0, 6, 0]
    assert wk.weight_entropy(banks[0], per="filter").tolist() == [0, 0]
    wk.blend_ring_(banks, torch.tensor([[0.5, 0.25], [0.5, 1.0]]), per="filter")
    assert banks[0].weights[1][:, 0].tolist() == [0.5, 0.75]
    assert banks[1].weights[1][:, 0].tolist() == [0.5, 1.0]


def test_sizes_that_say_both(backend):
    banks = [wk.FilterBank([torch.full((0, 3), 1.0), torch.full((2, 3), float(i))]) for i in range(2)]
    with pytest.raises(ValueError, match=r'as many tensors as filters.*say per="tensor"'):
        wk.blend_(*banks, torch.tensor([0.5, 0.25]))
    wk.blend_(*banks, torch.tensor([0.5, 0.25]), per="filter")
    assert banks[0].weights[1][:, 0].tolist() == [0.5, 0.75]
    wk.blend_(*banks, torch.tensor([0.5, 0.0]), per="tensor")
    assert banks[0].weights[1][:, 0].tolist() == [1.0, 1.0]


STORAGE = torch.zeros(100)
BAD_CALLS = {
    "bins type": (lambda a, b: wk.weight_entropy(a, 2.0), TypeError, "bins must be an integer, got float"),
    "bins zero": (lambda a, b: wk.weight_entropy(a, 0), ValueError, "bins must be from 1 to 256, got 0"),
    "bins many": (lambda a, b: wk.weight_entropy(a, 257), ValueError, "bins must be from 1 to 256, got 257"),
    "per": (lambda a, b: wk.weight_entropy(a, per="layer"), ValueError, 'per must be "tensor" or "filter"'),
    "l1 per": (lambda a, b: wk.weight_l1(a, per="layer"), ValueError, 'per must be "tensor" or "filter"'),
    "blend per": (lambda a, b: wk.blend_(a, b, torch.ones(3), per="x"), ValueError, 'per must be "tensor"'),
    "no bank": (lambda a, b: wk.blend_(a, b.weights, torch.ones(3)), TypeError, "other must be a FilterBank"),
    "coefficient type": (lambda a, b: wk.blend_(a, b, 0.5), TypeError, "coefficient must be a tensor, got float"),
    "coefficient dtype": (
        lambda a, b: wk.blend_(a, b, torch.ones(3).double()),
        TypeError,
        "coefficient must be torch.float32, got torch.float64",
    ),
    "coefficient size": (
        lambda a, b: wk.blend_(a, b, torch.ones(4)),
        ValueError,
        r"coefficient must have shape \(3,\), per tensor, or \(22,\), per filter, got \(4,\)",
    ),
    "coefficient size for per": (
        lambda a, b: wk.blend_(a, b, torch.ones(3), per="filter"),
        ValueError,
        r"coefficient must have shape \(22,\), got \(3,\)",
    ),
    "coefficient NaN": (
        lambda a, b: wk.blend_(a, b, torch.tensor([0.5, NAN, 0.5])),
        ValueError,
        "coefficient must be finite, got nan",
    ),
    "ring infinite": (
        lambda a, b: wk.blend_ring_([a, b], [torch.ones(3), torch.tensor([0.5, 0.5, INF])]),
        ValueError,
        r"coefficients\[1\] must be finite, got inf",
    ),
    "one bank": (lambda a, b: wk.blend_ring_([a], torch.ones(1, 3)), ValueError, "at least 2 banks, got 1"),
    "rows": (lambda a, b: wk.blend_ring_([a, b], torch.ones(3, 3)), ValueError, r"one row per bank \(2\), got 3"),
    "kinds": (
        lambda a, b: wk.blend_ring_([a, b], [torch.ones(3), torch.ones(22)]),
        ValueError,
        "all per tensor or all per filter",
    ),
    "fewer tensors": (
        lambda a, b: wk.blend_(a, wk.FilterBank(b.weights[:2]), torch.ones(3)),
        ValueError,
        "other differs from bank: 2 distinct tensors, not 3",
    ),
    "shape": (
        lambda a, b: wk.blend_(a, wk.FilterBank([*b.weights[:2], torch.ones(9)], names=["x", "y", "z"]), torch.ones(3)),
        ValueError,
        r"other differs from bank: z has shape \(9,\), not \(11,\)",
    ),
    "dtype": (
        lambda a, b: wk.blend_ring_([a, b, wk.FilterBank([w.half() for w in a.weights])], torch.ones(3, 3)),
        ValueError,
        r"banks\[2\] differs from banks\[0\]: weights\[0\] is torch.float16, not torch.float32",
    ),
    "filter_dim": (
        lambda a, b: wk.blend_(a, wk.FilterBank(b.weights, [0, 1, 0]), torch.ones(3)),
        ValueError,
        r"other differs from bank: weights\[1\] has filter_dim 1, not 0",
    ),
    "itself": (
        lambda a, b: wk.blend_(a, a, torch.ones(3)),
        ValueError,
        r"weights\[0\] of other overlaps weights\[0\] of bank",
    ),
    "overlap": (
        lambda a, b: wk.blend_ring_(
            [wk.FilterBank([STORAGE[:60].view(6, 10)]), wk.FilterBank([STORAGE[40:].view(6, 10)])], torch.ones(2, 1)
        ),
        ValueError,
        r"weights\[0\] of banks\[1\] overlaps weights\[0\] of banks\[0\]",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_change_nothing(name):
    banks = [wk.FilterBank([torch.randn(7, 5, 3), torch.randn(4, 4), torch.randn(11)]) for _ in range(2)]
    before = copy.deepcopy([bank.weights for bank in banks])
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call(*banks)
    for bank, weights in zip(banks, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(bank.weights, weights, strict=True))


def test_networks_may_interleave_in_memory(backend):
    memory = torch.randn(6, 20)
    banks = [wk.FilterBank([memory[:, i::2]]) for i in range(2)]
    expected = expected_ring(banks, torch.tensor([[0.3], [0.6]]), "tensor")
    wk.blend_ring_(banks, torch.tensor([[0.3], [0.6]]))
    assert torch.equal(banks[0].weights[0], expected[0][0])
    assert torch.equal(banks[1].weights[0], expected[1][0])


def test_any_bank(backend, examples):
    @examples
    @given(st.lists(cases(), min_size=1, max_size=5), st.integers(1, 40), st.booleans(), st.integers(0, 2**16))
    def check(made, bins, per_filter, seed):
        per = "filter" if per_filter else "tensor"
        bank = bank_of(made)
        found = wk.weight_entropy(bank, bins, per=per)
        with wk.use_backend("torch"):
            assert found.tolist() == wk.weight_entropy(bank, bins, per=per).tolist()
        others = [
            place(random_values(tuple(case.weight.shape), case.weight.dtype, seed + i), FORMATS[i], case.filter_dim)
            for i, case in enumerate(made)
        ]
        banks = [bank, bank_of(others)]
        coefficients = [coefficients_for(bank, per, seed + i) for i in range(2)]
        expected = expected_ring(banks, coefficients, per)
        wk.blend_ring_(banks, coefficients, per=per)
        for network, wanted in zip(banks, expected, strict=True):
            assert all(same_bits(a, b) for a, b in zip(network.weights, wanted, strict=True))
        assert all(case.guards_intact() for case in [*made, *others])

    check()
