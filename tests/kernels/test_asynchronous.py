"""Random subsets, snapshots of the unselected filters, and SGD that moves only the subset: every backend."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.optim.sgd import sgd as functional_sgd

import we_kernels as wk
from tests.banks import DTYPES, FORMATS, place, random_values
from we_kernels.runtime.philox import philox

SIZES = (7, 1, 40, 130, 16)


def bank_of_sizes(sizes=SIZES):
    return wk.FilterBank([torch.zeros(size, 2) for size in sizes])


def select(rate, bank=None, seed=1, step=0, **options):
    return wk.select_filters(bank_of_sizes() if bank is None else bank, rate, seed=seed, step=step, **options)


def random_mask(count, seed=1):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5


def bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


# Selection


def test_philox_of_the_published_vectors():
    """Known answers of the Random123 library."""
    for counter, seed, expected in (
        ((0, 0, 0, 0), 0, 0x6627E8D5),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, 0x408F276D),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, 0xD16CFE09),
    ):
        assert philox(*(torch.tensor([c]) for c in counter), seed).tolist() == [expected]


def philox_by_loops(row, layer, step, seed):
    c, k = [row, layer, step & 0xFFFFFFFF, step >> 32], [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[0]


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize(
    ("rate", "seed", "step"),
    [(0.0, 0, 0), (0.1, 7, 3), (0.5, 2**63 - 1, 2**63 - 1), (0.77, 2**40 + 5, 2**33 + 9), (1.0, 1, 2**31)],
)
def test_selection_is_its_definition(backend, rate, seed, step, replacement):
    expected = []
    for layer, n in enumerate(SIZES):
        chosen = [False] * n
        if replacement:
            for draw in range(max(1, math.floor(rate * n))):
                chosen[philox_by_loops(draw, layer, step, seed) * n >> 32] = True
        else:
            for row in sorted(range(n), key=lambda j: (philox_by_loops(j, layer, step, seed), j))[
                : max(1, round(rate * n))
            ]:
                chosen[row] = True
        expected += chosen
    found = select(rate, seed=seed, step=step, replacement=replacement)
    assert found.dtype == torch.bool
    assert found.tolist() == expected


def test_halves_round_to_even(backend):
    bank = bank_of_sizes((1, 3, 5, 7, 9))
    counts = [int(part.sum()) for part in bank.split(select(0.5, bank))]
    assert counts == [1, 2, 2, 4, 4]


def test_rate_and_step_may_be_tensors(backend):
    bank = bank_of_sizes((9, 20))
    for rate, step in ((0.3, 4), (0.8, 2**35)):
        tensors = torch.tensor([rate], dtype=torch.float64), torch.tensor([step])
        assert torch.equal(select(tensors[0], bank, step=tensors[1]), select(rate, bank, step=step))


def test_layers_of_one_filter_and_of_none(backend):
    bank = wk.FilterBank([torch.zeros(1, 3), torch.zeros(0, 3), torch.zeros(4, 3)])
    for replacement in (False, True):
        found = select(0.01, bank, replacement=replacement)
        assert found[0]
        assert int(found[1:].sum()) == 1
    assert select(0.5, wk.FilterBank([])).shape == (0,)


def test_input_channels_are_a_bank_along_dimension_one(backend):
    weights = [torch.zeros(4, 6, 3, 3), torch.zeros(5, 1, 3, 3)]
    found = wk.select_filters(wk.FilterBank(weights, 1), 0.5, seed=0, step=0, replacement=True)
    assert found.shape == (7,)
    assert 1 <= int(found[:6].sum()) <= 3
    assert found[6]  # a depthwise layer always moves


def draws(sizes, rate, steps, **options):
    bank = bank_of_sizes(sizes)
    return torch.stack([select(rate, bank, step=step, seed=11, **options) for step in range(steps)]).double()


def test_filters_and_pairs_are_uniform_and_steps_independent():
    n, k, steps = 12, 5, 4000
    drawn = draws((n, n), k / n, steps)
    first, second = drawn.split(n, dim=1)

    def assert_near(counts, p):
        """Within 4.5 standard deviations of a binomial."""
        assert bool(((counts - steps * p).abs() < 4.5 * math.sqrt(steps * p * (1 - p))).all())

    assert_near(drawn.sum(0), k / n)
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    assert_near((first.T @ first)[off_diagonal], k * (k - 1) / (n * (n - 1)))
    assert_near(first.T @ second, (k / n) ** 2)  # layers
    for lag in (1, 2, 7):
        assert_near(first[lag:].T @ first[:-lag] + lag * (k / n) ** 2, (k / n) ** 2)  # steps
    other = torch.stack([select(k / n, bank_of_sizes((n, n)), step=step, seed=12) for step in range(steps)]).double()
    assert_near(first.T @ other[:, :n], (k / n) ** 2)  # seeds


def test_all_subsets_are_equally_likely():
    drawn = draws((5,), 0.4, 4000)
    codes = (drawn * 2 ** torch.arange(5)).sum(1).long()
    counts = torch.bincount(codes)[torch.bincount(codes) > 0].double()
    assert len(counts) == 10
    chi_square = float(((counts - 400) ** 2 / 400).sum())
    assert chi_square < 27.9  # 9 degrees of freedom, 0.1%


def test_draws_with_replacement_have_the_expected_share():
    """1 - (1 - 1/N)^(N/2), about 39%, distinct channels at rate 0.5."""
    n, steps = 64, 500
    share = float(draws((n,), 0.5, steps, replacement=True).mean())
    assert abs(share - (1 - (1 - 1 / n) ** (n // 2))) < 0.004


# Snapshot

SHAPES = ((6, 5, 3, 3), (5, 300), (11,), (3, 2, 2, 3, 4), (1, 7, 3, 3))


def dims_of(shape):
    return (0,) if len(shape) == 1 else (0, 1)


def make_cases(dtype, memory_format, seed=0):
    return [
        place(random_values(shape, dtype, seed + i), memory_format, dim)
        for i, shape in enumerate(SHAPES)
        for dim in dims_of(shape)
    ]


def bank_of(cases):
    return wk.FilterBank([case.weight for case in cases], [case.filter_dim for case in cases])


@pytest.mark.parametrize(
    ("dtype", "memory_format"), [*zip(DTYPES + DTYPES[:1], FORMATS, strict=True), (DTYPES[3], FORMATS[0])], ids=str
)
def test_snapshot(backend, dtype, memory_format):
    cases = make_cases(dtype, memory_format)
    for case in cases:  # bits of every kind: NaNs with payloads, subnormals, -0
        bits(case.weight).random_() if case.weight.is_contiguous() else None
    before, bank = copy.deepcopy(cases), bank_of(cases)
    selected = random_mask(bank.num_filters)
    buffer = wk.unselected_buffer(bank).fill_(0x5A)
    wk.save_unselected_(bank, selected, buffer)
    assert all(torch.equal(bits(a.buffer), bits(b.buffer)) for a, b in zip(cases, before, strict=True))
    for case in cases:
        case.weight.fill_(3.5)
    wk.restore_unselected_(bank, selected, buffer)
    for case, old, moved in zip(cases, before, bank.split(selected), strict=True):
        assert case.guards_intact()
        rows, wanted = case.weight.movedim(case.filter_dim, 0), old.weight.movedim(case.filter_dim, 0)
        assert torch.equal(bits(rows[~moved]), bits(wanted[~moved]))
        assert bool((rows[moved] == 3.5).all())
    # Only the unselected rows were copied: each byte of the others' places is as it was.
    element = torch.zeros((), dtype=dtype).element_size()
    written = sum(
        int((~moved).sum()) * (weight.numel() // len(moved))
        for weight, moved in zip(bank.weights, bank.split(selected), strict=True)
    )
    assert int((buffer != 0x5A).sum()) <= written * element
    assert int((buffer == 0x5A).sum()) >= len(buffer) - written * element


def test_mixed_dtypes_and_extreme_selections(backend):
    cases = [place(random_values(shape, DTYPES[i % 4], i), "contiguous") for i, shape in enumerate(SHAPES)]
    before, bank = copy.deepcopy(cases), bank_of(cases)
    for selected in (torch.zeros(bank.num_filters).bool(), torch.ones(bank.num_filters).bool()):
        buffer = wk.unselected_buffer(bank).fill_(0)
        wk.save_unselected_(bank, selected, buffer)
        for case in cases:
            case.weight.add_(1)
        moved = copy.deepcopy(cases)
        wk.restore_unselected_(bank, selected, buffer)
        for case, wanted in zip(cases, moved if selected.all() else before, strict=True):
            assert torch.equal(bits(case.buffer), bits(wanted.buffer))
        assert not selected.all() or not buffer.any()


def test_snapshot_of_nothing(backend):
    bank, none = wk.FilterBank([]), torch.empty(0, dtype=torch.bool)
    buffer = wk.unselected_buffer(bank)
    assert buffer.shape == (0,)
    wk.save_unselected_(bank, none, buffer)
    wk.restore_unselected_(bank, none, buffer)
    bank = wk.FilterBank([torch.empty(0, 3, 3, 3), torch.ones(2, 2)])
    selected = torch.tensor([True, False])
    buffer = wk.unselected_buffer(bank)
    wk.save_unselected_(bank, selected, buffer)
    bank.weights[1].zero_()
    wk.restore_unselected_(bank, selected, buffer)
    assert bank.weights[1].tolist() == [[0, 0], [1, 1]]


# SGD

OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 1e-3},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3, "weight_decay": 5e-4},
    "nesterov": {"momentum": 0.85, "nesterov": True, "weight_decay": 1e-2},
    "nesterov, no decay": {"momentum": 0.85, "nesterov": True},
    "maximize": {"momentum": 0.7, "maximize": True, "weight_decay": 1e-3},
    "maximize, nesterov": {"momentum": 0.7, "maximize": True, "nesterov": True},
    "maximize only": {"maximize": True},
}
PARAMETERS = (
    ((6, 5, 3, 3), 0),
    ((7,), None),
    ((130, 3, 1, 1), 0),
    ((9, 1, 3, 3), 0),
    ((4, 6, 3, 3), 1),
    ((2, 1100), None),
    ((5, 8, 3), 0),
    ((0, 4), None),
    ((17, 2, 5, 5), 1),
    ((2, 3, 2, 3, 4), 0),
)
DIMS = [dim for _, dim in PARAMETERS]
MASKED = [i for i, dim in enumerate(DIMS) if dim is not None]


def tensors(dtype, memory_format, seed):
    return [place(random_values(shape, dtype, seed + i), memory_format) for i, (shape, _) in enumerate(PARAMETERS)]


def weights_of(cases):
    return [case.weight for case in cases]


def torch_step(cases, grads, buffers, first, lr, *, momentum=0, dampening=0, weight_decay=0, **options):
    """torch.optim.SGD(foreach=True) on copies in the same layout: parameters and momentum buffers after the step."""
    params = weights_of(copy.deepcopy(cases))
    buffers = [None] * len(params) if first or not buffers else weights_of(copy.deepcopy(buffers))
    functional_sgd(
        params,
        weights_of(copy.deepcopy(grads)),
        buffers,
        foreach=True,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=options.get("nesterov", False),
        maximize=options.get("maximize", False),
    )
    return params, buffers


def assert_same(found, wanted, exact):
    if exact:
        assert torch.equal(bits(found), bits(wanted))
    else:
        eps = torch.finfo(found.dtype).eps
        torch.testing.assert_close(found, wanted, rtol=4 * eps, atol=4 * eps)


def check_steps(backend, dtype, formats, rate, options, steps=2, lr=0.03):
    """Every step against torch's from the same state."""
    # Triton rounds as CUDA does, tests/triton has its own oracle.
    exact = backend != "triton" and (dtype.itemsize > 2 or formats in DENSE)
    cases = tensors(dtype, formats[0], 0)
    buffers = tensors(dtype, formats[1], 500) if options.get("momentum") else []
    for buffer in buffers:
        buffer.weight.fill_(math.nan)
    params = weights_of(cases)
    bank = wk.FilterBank([params[i] for i in MASKED], [DIMS[i] for i in MASKED])
    for step in range(steps):
        grads = tensors(dtype, formats[2], 1000 * (step + 1))
        before, grads_before = copy.deepcopy(cases), copy.deepcopy(grads)
        wanted, wanted_buffers = torch_step(cases, grads, buffers, step == 0, lr, **options)
        selected = random_mask(bank.num_filters, step) | (rate == 1)
        wk.asynchronous_sgd_(
            params,
            weights_of(grads),
            weights_of(buffers) or None,
            DIMS,
            selected,
            lr=lr,
            first_step=step == 0,
            **options,
        )
        parts = iter(bank.split(selected))
        for i, (param, old, new, dim) in enumerate(zip(params, before, wanted, DIMS, strict=True)):
            moves = torch.ones_like(param, dtype=torch.bool)
            if dim is not None:
                moves.movedim(dim, -1)[...] = next(parts)
            assert torch.equal(bits(param)[~moves], bits(old.weight)[~moves]), (i, step)
            assert_same(param[moves], new[moves], exact)
        for buffer, new in zip(buffers, wanted_buffers, strict=False):
            assert_same(buffer.weight, new, exact)
        for ours, old in zip(grads, grads_before, strict=True):
            assert torch.equal(bits(ours.buffer), bits(old.buffer))
    for case in cases + buffers:
        assert case.guards_intact()


SAME = ("contiguous", "contiguous", "contiguous")
DENSE = (
    SAME,
    ("channels_last", "channels_last", "channels_last"),
    ("shifted", "contiguous", "shifted"),
    ("transposed", "transposed", "transposed"),
)
"""Of parameters, buffers and gradients. In the other layouts torch's own float16 and bfloat16 depend on the layout."""
GAPS = (
    ("sliced", "sliced", "sliced"),
    ("contiguous", "channels_last", "sliced"),
    ("channels_last", "channels_last", "contiguous"),
)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_option(backend, dtype, options):
    check_steps(backend, dtype, SAME, 0.5, OPTIONS[options])


@pytest.mark.parametrize("formats", DENSE + GAPS, ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layout(backend, dtype, formats):
    check_steps(backend, dtype, formats, 0.5, OPTIONS["dampening"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rate_one_is_plain_sgd(backend, dtype):
    check_steps(backend, dtype, SAME, 1.0, OPTIONS["nesterov"])


def test_first_steps_of_some(backend):
    """Parameters that get their first gradient later."""
    params = [torch.ones(4, 3), torch.ones(5)]
    grads = [torch.full((4, 3), 2.0), torch.full((5,), 2.0)]
    buffers = [torch.full((4, 3), 10.0), torch.full((5,), math.nan)]
    wk.asynchronous_sgd_(
        params,
        grads,
        buffers,
        [0, None],
        torch.tensor([True, False, True, False]),
        lr=0.5,
        momentum=0.5,
        dampening=0.5,
        first_step=[False, True],
    )
    assert buffers[0].eq(6).all()
    assert buffers[1].eq(2).all()
    assert params[0][:, 0].tolist() == [-2, 1, -2, 1]
    assert params[1].eq(0).all()


@pytest.mark.parametrize(
    "lr", [torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64), torch.tensor(0.25).bfloat16(), 0.25]
)
def test_lr_of_any_kind(backend, lr):
    params, grads = [torch.ones(3, 2)], [torch.full((3, 2), 2.0)]
    wk.asynchronous_sgd_(params, grads, None, [0], torch.tensor([False, True, False]), lr=lr)
    assert params[0].tolist() == [[1, 1], [0.5, 0.5], [1, 1]]


def test_expanded_gradients(backend):
    """Such as those of a sum."""
    params = [torch.zeros(4, 3), torch.zeros(3)]
    grads = [torch.ones(()).expand(4, 3), torch.ones(1).expand(3)]
    wk.asynchronous_sgd_(params, grads, None, [0, None], torch.tensor([True, False, False, True]), lr=0.5)
    assert params[0][:, 1].tolist() == [-0.5, 0, 0, -0.5]
    assert params[1].tolist() == [-0.5] * 3


def test_scalars_mixed_dtypes_and_nothing(backend):
    params = [torch.tensor(1.0), torch.ones(3).double(), torch.ones(2, 2).bfloat16(), torch.empty(0), torch.ones(0, 3)]
    grads = [torch.ones_like(param) for param in params]
    buffers = [torch.zeros_like(param) for param in params]
    none = torch.empty(0, dtype=torch.bool)
    wk.asynchronous_sgd_(params, grads, buffers, [None] * 5, none, lr=0.5, momentum=0.5)
    assert [param.flatten()[:1].tolist() for param in params] == [[0.5], [0.5], [0.5], [], []]
    assert params[0].shape == ()
    wk.asynchronous_sgd_([], [], None, [], none, lr=0.5)
    wk.asynchronous_sgd_([torch.empty(0, 4)], [torch.empty(0, 4)], None, [0], none, lr=0.5)


def test_values_that_are_not_finite_go_through(backend):
    """As under SGD; what does not move keeps its bits whatever the gradient is."""
    params = [torch.tensor([[1.0, math.inf], [1.0, 2.0]])]
    grads = [torch.tensor([[math.nan, 1.0], [math.nan, -math.inf]])]
    wk.asynchronous_sgd_(params, grads, None, [0], torch.tensor([True, False]), lr=0.5)
    assert math.isnan(params[0][0, 0])
    assert params[0][0, 1] == math.inf
    assert params[0][1].tolist() == [1, 2]


# Inside PyTorch


def sgd_arguments(momentum=0.9):
    params = [torch.ones(4, 3, 3, 3), torch.ones(5), torch.ones(3, 4, 2)]
    grads = [torch.full_like(param, 2) for param in params]
    buffers = [torch.full_like(param, 3) for param in params] if momentum else []
    selected = torch.tensor([True, False, False, True, True, False, True, True])
    lr = torch.tensor([0.5], dtype=torch.float64)
    return (params, grads, buffers, [0, -1, 1], [False] * 3, selected, lr, momentum, 0.0, 0.1, False, False)


def test_opcheck(opcheck):
    ops = torch.ops.we_kernels
    rate, step = torch.tensor([0.5], dtype=torch.float64), torch.tensor([3])
    for replacement in (False, True):
        opcheck(ops.select_filters.default, ([4, 7], [0, 0], rate, 5, step, replacement))
    weights, selected = (
        [torch.rand(4, 3, 3, 3), torch.rand(2, 3)],
        torch.tensor([True, False, False, True] + [False] * 3),
    )
    buffer = torch.zeros(512, dtype=torch.uint8)
    opcheck(ops.save_unselected_.default, (weights, [0, 1], [0, 0], selected, buffer))
    opcheck(ops.restore_unselected_.default, (weights, [0, 1], [0, 0], selected, buffer))
    for momentum in (0.9, 0.0):
        opcheck(ops.asynchronous_sgd_.default, sgd_arguments(momentum))


def test_compiles_into_one_graph():
    def step(weights, grads, buffers, buffer):
        bank = wk.FilterBank(weights[:2])
        selected = wk.select_filters(bank, 0.5, seed=3, step=1)
        wk.save_unselected_(bank, selected, buffer)
        weights[0].add_(1)
        wk.restore_unselected_(bank, selected, buffer)
        wk.asynchronous_sgd_(weights, grads, buffers, [0, 0, None], selected, lr=0.1, momentum=0.9)
        return selected.sum()

    def inputs():
        weights = [torch.arange(24.0).view(6, 4), torch.ones(5, 2, 3, 3), torch.ones(7)]
        return weights, [w + 1 for w in weights], [w * 2 for w in weights], torch.zeros(512, dtype=torch.uint8)

    eager, compiled = inputs(), inputs()
    assert torch.equal(step(*eager), torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled))
    for a, b, before in zip(eager[0] + eager[2], compiled[0] + compiled[2], inputs()[0] + inputs()[2], strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, before)
    assert torch.equal(eager[3], compiled[3])


def test_version_counters(backend):
    params = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3))]
    loss = sum((param**2).sum() for param in params)
    buffers = [torch.zeros(4, 3), torch.zeros(3)]
    bank = wk.FilterBank(params[:1])
    selected = select(0.5, bank)
    snapshot = wk.unselected_buffer(bank)
    wk.save_unselected_(bank, selected, snapshot)
    assert snapshot._version > 0
    assert params[0]._version == 0
    wk.restore_unselected_(bank, selected, snapshot)
    version = params[0]._version
    assert version > 0
    wk.asynchronous_sgd_(params, [torch.ones(4, 3), torch.ones(3)], buffers, [0, None], selected, lr=0.1, momentum=0.9)
    assert params[0]._version > version
    assert all(tensor._version > 0 for tensor in (params[1], *buffers))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Bad input

W = torch.full((4, 3, 3, 3), 2.0)
ALL = torch.ones(4, dtype=torch.bool)


def sgd(params=(W,), grads=(W,), buffers=None, dims=(0,), selected=ALL, **options):
    return lambda: wk.asynchronous_sgd_(params, grads, buffers, dims, selected, **{"lr": 0.1} | options)


def choose(rate=0.5, **options):
    return lambda: wk.select_filters(wk.FilterBank([W]), rate, **{"seed": 0, "step": 0} | options)


def snapshot(function, selected=ALL, buffer=None):
    if buffer is None:
        buffer = torch.zeros(448, dtype=torch.uint8)
    return lambda: function(wk.FilterBank([W]), selected, buffer)


BAD = {
    "rate range": (choose(1.5), ValueError, r"rate must be in \[0, 1\], got 1.5"),
    "rate NaN": (choose(math.nan), ValueError, "rate must be in"),
    "rate type": (choose("1"), TypeError, "rate must be a number"),
    "rate dtype": (choose(torch.tensor([0.5])), TypeError, "rate must be torch.float64"),
    "rate shape": (choose(torch.tensor(0.5).double()), ValueError, r"rate must have shape \(1,\)"),
    "seed type": (choose(seed=1.0), TypeError, "seed must be an integer, got float"),
    "seed negative": (choose(seed=-1), ValueError, r"seed must be in \[0, 2\^63 - 1\], got -1"),
    "seed large": (choose(seed=2**63), ValueError, "seed must be in"),
    "step bool": (choose(step=True), TypeError, "step must be an integer, got bool"),
    "step negative": (choose(step=-5), ValueError, "step must be in"),
    "step dtype": (choose(step=torch.tensor([0.0])), TypeError, "step must be torch.int64"),
    "step shape": (choose(step=torch.tensor(0)), ValueError, r"step must have shape \(1,\)"),
    "selected dtype": (snapshot(wk.save_unselected_, ALL.int()), TypeError, "selected must be torch.bool"),
    "selected size": (snapshot(wk.restore_unselected_, ALL[:3]), ValueError, r"selected must have shape \(4,\)"),
    "buffer dtype": (snapshot(wk.save_unselected_, ALL, W), TypeError, "buffer .*unselected_buffer.* torch.uint8"),
    "buffer size": (
        snapshot(wk.restore_unselected_, ALL, torch.zeros(64, dtype=torch.uint8)),
        ValueError,
        r"buffer .*unselected_buffer.* shape \(448,\)",
    ),
    "buffer strides": (
        snapshot(wk.save_unselected_, ALL, torch.zeros(896, dtype=torch.uint8)[::2]),
        ValueError,
        "buffer must be contiguous",
    ),
    "grads count": (sgd(grads=[]), ValueError, r"grads must have one entry per parameter \(1\), got 0"),
    "grads none": (sgd(grads=[None]), TypeError, r"grads\[0\] must be a tensor, got NoneType"),
    "grads shape": (sgd(grads=[W[:2]]), ValueError, r"grads\[0\] must have shape .*\[4, 3, 3, 3\]"),
    "grads dtype": (sgd(grads=[W.half()]), ValueError, r"grads\[0\] must have dtype torch.float32"),
    "grads device": (sgd(grads=[W.to("meta")]), ValueError, r"grads\[0\] must have device cpu"),
    "grads sparse": (sgd(grads=[W.to_sparse()]), ValueError, r"grads\[0\] must have layout torch.strided"),
    "no buffers": (sgd(momentum=0.9), ValueError, r"momentum_buffers must have one entry per parameter \(1\), got 0"),
    "buffer shape": (
        sgd(buffers=[W[0]], momentum=0.9),
        ValueError,
        r"momentum_buffers\[0\] must have shape",
    ),
    "params type": (sgd(params=[3]), TypeError, r"params\[0\] must be a tensor, got int"),
    "params dtype": (sgd([W.int()], [W.int()]), TypeError, r"params\[0\] must be float32.*int32"),
    "params six": (
        sgd([W[None, None]], [W[None, None]], dims=[None], selected=ALL[:0]),
        ValueError,
        r"params\[0\] must have at most 5 dimensions, got 6",
    ),
    "params devices": (
        sgd([W, W.to("meta")], [W, W.to("meta")], dims=[0, None]),
        ValueError,
        r"params\[1\] must be on cpu, like params\[0\], got meta",
    ),
    "params twice": (sgd([W, W], [W, W], dims=[0, None]), ValueError, "params holds a tensor twice"),
    "expanded": (
        sgd([W[:1].expand(4, 3, 3, 3)], [W]),
        ValueError,
        r"params\[0\] overlaps itself",
    ),
    "expanded buffer": (
        sgd(buffers=[W[:1].expand(4, 3, 3, 3)], momentum=0.5),
        ValueError,
        r"momentum_buffers\[0\] overlaps itself",
    ),
    "filters without elements": (
        sgd([W[:, :0]], [W[:, :0]]),
        ValueError,
        r"params\[0\] of shape \(4, 0, 3, 3\) has filters without elements",
    ),
    "dims count": (sgd(dims=[]), ValueError, "filter_dims must have one entry per parameter"),
    "dims range": (sgd(dims=[4]), ValueError, r"filter_dims\[0\] must be None or below 4, got 4"),
    "dims negative": (sgd(dims=[-1]), ValueError, r"filter_dims\[0\] must be None or at least 0, got -1"),
    "first count": (sgd(first_step=[]), ValueError, "first_step must have one entry per parameter"),
    "sgd selected size": (sgd(selected=ALL[:2]), ValueError, r"selected must have shape \(4,\), got \(2,\)"),
    "sgd selected dtype": (sgd(selected=ALL.byte()), TypeError, "selected must be torch.bool"),
    "lr type": (sgd(lr="0.1"), TypeError, "lr must be a number, got str"),
    "lr NaN": (sgd(lr=math.nan), ValueError, "lr must be finite, got nan"),
    "lr shape": (sgd(lr=torch.ones(2)), ValueError, "lr must be a number or a floating-point tensor of one element"),
    "lr dtype": (sgd(lr=torch.ones(1).int()), ValueError, "lr must be a number or a floating-point tensor"),
    "lr device": (sgd(lr=torch.ones(1, device="meta")), ValueError, "lr must be on cpu"),
    "momentum type": (sgd(momentum=None), TypeError, "momentum must be a number, got NoneType"),
    "weight_decay": (sgd(weight_decay=math.inf), ValueError, "weight_decay must be finite"),
    "nesterov": (sgd(nesterov=True), ValueError, "nesterov needs momentum above 0 and dampening 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
    assert W.eq(2).all()


def test_numpy_numbers_are_numbers():
    bank = bank_of_sizes()
    found = wk.select_filters(bank, 0.5, seed=np.int64(3), step=np.uint8(2))
    assert torch.equal(found, wk.select_filters(bank, 0.5, seed=3, step=2))
    weights = [torch.ones(4, 3) for _ in range(2)]
    options = {"momentum": 0.5, "dampening": 0.25, "weight_decay": 0.125}
    for weight, kind, integer in zip(weights, (float, np.float32), (int, np.int32), strict=True):
        wk.asynchronous_sgd_(
            [weight],
            [torch.full((4, 3), 2.0)],
            [torch.ones(4, 3)],
            [integer(0)],
            torch.tensor([True, False, True, False]),
            lr=kind(0.5),
            **{name: kind(value) for name, value in options.items()},
        )
    assert torch.equal(*weights)
    with pytest.raises(TypeError, match="seed must be an integer"):
        wk.select_filters(bank, 0.5, seed=np.float64(3), step=0)
    with pytest.raises(TypeError, match="momentum must be a number"):
        wk.asynchronous_sgd_([weights[0]], [weights[1]], None, [None], found[:0], lr=0.1, momentum=np.bool_(True))
