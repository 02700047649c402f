"""Checks of the operators beside the evolution's, on any device, against the reference on the CPU. See `matrix`."""

import math

import torch
from torch.optim.adam import adam as foreach_adam
from torch.optim.sgd import sgd as foreach_sgd

import we_kernels as wk
from tests.banks import Case, place, random_values
from tests.matrix import DTYPES, EPS, as_bits, bank_of, make_cases, on

PAIRS = tuple(
    (dtype, formats)
    for dtype in DTYPES
    for formats in (
        ("contiguous", "contiguous"),
        ("shifted", "contiguous"),
        ("channels_last", "transposed"),
        ("sliced", "shifted"),
    )
)
"""Each dtype with formats of a tensor and of what is read with it: equal, unaligned, of other strides, with gaps."""


def assert_same_bits(found, wanted):
    """Cases, guards included."""
    for ours, other in zip(found, wanted, strict=True):
        assert torch.equal(as_bits(ours.buffer.cpu()), as_bits(other.buffer.cpu())), tuple(other.weight.shape)


def check_overlap(device, dtypes, memory_format, backend="triton"):
    check_overlap_of(device, make_cases(dtypes, memory_format, 3), backend)


def check_overlap_of_many_filters(device, backend="triton"):
    """More than a tile of the kernel, in both of its precisions."""
    layers = ((65, torch.float32), (66, torch.float64))
    check_overlap_of(device, [place(random_values((n, 12), dtype, n), "shifted") for n, dtype in layers], backend)


def check_overlap_of(device, cases, backend):
    moved = on(cases, device)
    with wk.use_backend("torch"):
        wanted = wk.filter_overlap(bank_of(cases))
    with wk.use_backend(backend):
        found = wk.filter_overlap(bank_of(moved))
    longest = max(case.weight.numel() // case.weight.shape[case.filter_dim] for case in cases)
    tolerance = 2 * (4 + longest**0.5) * EPS[torch.float32]
    torch.testing.assert_close(found.mean.cpu(), wanted.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.maximum.cpu(), wanted.maximum, rtol=0, atol=tolerance)
    assert_same_bits(moved, cases)


ACTIVATIONS = (
    ((3, 5, 7, 9), 1),
    ((9, 6, 2, 3), 1),
    ((2, 3, 4, 5, 6), 1),
    ((11, 70), -1),
    ((7, 65, 33, 2), 1),
    ((6,), 0),
)
"""Shapes, and the dimension of the channels."""


def check_activity(device, dtypes, memory_format, backend="triton"):
    """Sums, of all channels and of pairs of them, and means; a value that is not finite spoils its channel alone."""
    for i, (shape, dim) in enumerate(ACTIVATIONS):
        case = place(random_values(shape, dtypes[i % len(dtypes)], i), memory_format, dim)
        channels = shape[dim]
        last = case.weight.movedim(dim, 0)[channels - 1]
        last[(-1,) * last.dim()] = math.nan if i % 2 else -math.inf
        (moved,), found = on([case], device), []
        for name, activation in (("torch", case.weight), (backend, moved.weight)):
            sums = torch.full((channels // 2,), 0.5, dtype=torch.float64, device=activation.device)
            narrow = sums.float()
            with wk.use_backend(name):
                wk.add_channel_activity_(sums, activation, dim, offset=channels % 2, block=2)
                wk.add_channel_activity_(narrow, activation, dim, overwrite=True)
                found.append([sums.cpu(), narrow.cpu(), wk.channel_activity(activation, dim).cpu()])
        for wanted, ours in zip(*found, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=4e-6, atol=0, equal_nan=True)
        assert found[0][2][:-1].isfinite().all()
        assert_same_bits([moved], [case])


SELECTIONS = tuple(
    (rate, seed, step, replacement)
    for rate, seed, step in ((0.0, 0, 0), (0.37, 2**40 + 5, 2**33 + 9), (0.5, 2**63 - 1, 2**63 - 1), (1.0, 1, 2**31))
    for replacement in (False, True)
)
"""Arguments of `check_selection` after the device."""


def check_selection(device, rate, seed, step, replacement, backend="triton"):
    sizes, found = (7, 1, 40, 130, 0, 16), []
    for name, where in (("torch", "cpu"), (backend, device)):
        bank = wk.FilterBank([torch.zeros(size, 2, device=where) for size in sizes])
        with wk.use_backend(name):
            found.append(wk.select_filters(bank, rate, seed=seed, step=step, replacement=replacement).tolist())
    assert found[0] == found[1]


def mask_of(bank, seed=5):
    """About half of the filters."""
    return torch.rand(bank.num_filters, generator=torch.Generator().manual_seed(seed)) < 0.5


def check_snapshot(device, dtypes, memory_format, backend="triton"):
    """Restored weights, of bits of every kind, NaNs with payloads and subnormals; saved bytes in any order."""
    saved, cases = [], make_cases(dtypes, memory_format, 9)
    generator = torch.Generator().manual_seed(1)
    for case in cases:
        as_bits(case.buffer).random_(-(2**15), 2**15, generator=generator)
    moved = on(cases, device)
    for name, placed in (("torch", cases), (backend, moved)):
        bank = bank_of(placed)
        selected = mask_of(bank).to(bank.device)
        with wk.use_backend(name):
            buffer = wk.unselected_buffer(bank).fill_(0x5A)
            wk.save_unselected_(bank, selected, buffer)
            saved.append(buffer.cpu().sort().values)
            for case in placed:
                case.weight.fill_(3.5)
            wk.restore_unselected_(bank, selected, buffer)
    assert torch.equal(saved[0], saved[1])
    assert_same_bits(moved, cases)


SGD_OPTIONS = (
    {},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 5e-4},
    {"momentum": 0.85, "nesterov": True, "weight_decay": 1e-2, "maximize": True},
)
SGD_SHAPES = (((6, 5, 3, 3), 0), ((2, 1100), None), ((7,), None), ((4, 6, 3, 3), 1), ((0, 4), None), ((130, 9), 0))
SGD_DIMS = [dim for _, dim in SGD_SHAPES]


def sgd_cases(dtype, formats):
    """Parameters, gradients and momentum buffers."""
    return [
        [place(random_values(shape, dtype, seed + i), form) for i, (shape, _) in enumerate(SGD_SHAPES)]
        for seed, form in ((0, formats[0]), (100, formats[1]), (200, formats[0]))
    ]


def weights_of(cases):
    return [case.weight for case in cases]


def masks(selected):
    """For each of `SGD_SHAPES` what moves, in its own shape."""
    parts = iter(selected.split([shape[dim] for shape, dim in SGD_SHAPES if dim is not None]))
    for shape, dim in SGD_SHAPES:
        moves = torch.ones(shape, dtype=torch.bool, device=selected.device)
        if dim is not None:
            moves.movedim(dim, -1)[...] = next(parts)
        yield moves


def masked_sgd(cases, selected, first, options):
    params, grads, buffers = map(weights_of, cases)
    wk.asynchronous_sgd_(
        params,
        grads,
        buffers if "momentum" in options else None,
        SGD_DIMS,
        selected,
        lr=0.03,
        first_step=first,
        **options,
    )


def selected_of_sgd():
    count = sum(shape[dim] for shape, dim in SGD_SHAPES if dim is not None)
    return torch.rand(count, generator=torch.Generator().manual_seed(2)) < 0.5


def check_sgd(device, dtype, formats, options, backend="triton"):
    """Within roundings; what is not selected keeps its bits."""
    selected = selected_of_sgd()
    for first in (True, False):
        cases = sgd_cases(dtype, formats)
        before, moved = [on(part, "cpu") for part in cases], [on(part, device) for part in cases]
        with wk.use_backend("torch"):
            masked_sgd(cases, selected, first, options)
        with wk.use_backend(backend):
            masked_sgd(moved, selected.to(device), first, options)
        for ours, wanted in zip(moved[0] + moved[2], cases[0] + cases[2], strict=True):
            found = ours.buffer.cpu()
            torch.testing.assert_close(found, wanted.buffer, rtol=4 * EPS[dtype], atol=4 * EPS[dtype])
            there = found.as_strided(wanted.weight.shape, wanted.weight.stride(), wanted.weight.storage_offset())
            assert Case(there, 0, found).guards_intact()
        for ours, old, moves in zip(moved[0], before[0], masks(selected), strict=True):
            assert torch.equal(as_bits(ours.weight.cpu())[~moves], as_bits(old.weight)[~moves])
        assert_same_bits(moved[1], before[1])


def check_sgd_is_foreach(device, dtype, options, backend="triton"):
    """Bit for bit what PyTorch's own step makes of the selected filters on that device."""
    selected = selected_of_sgd().to(device)
    for first in (True, False):
        cases = [on(part, device) for part in sgd_cases(dtype, ("contiguous", "contiguous"))]
        params, grads, buffers = (weights_of(on(part, device)) for part in cases)
        own = buffers if "momentum" in options and not first else [None] * len(params)
        settings = {"momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False, **options}
        foreach_sgd(params, grads, own, foreach=True, lr=0.03, **settings)
        with wk.use_backend(backend):
            masked_sgd(cases, selected, first, options)
        for ours, wanted, moves in zip(cases[0], params, masks(selected), strict=True):
            assert torch.equal(as_bits(ours.weight)[moves], as_bits(wanted)[moves]), (first, tuple(wanted.shape))
        if "momentum" in options:
            for ours, wanted in zip(cases[2], own, strict=True):
                assert torch.equal(as_bits(ours.weight), as_bits(wanted)), (first, tuple(wanted.shape))


ADAMW_OPTIONS = (
    {"weight_decay": 1e-2},
    {"weight_decay": 0.1, "decoupled_weight_decay": False, "amsgrad": True, "maximize": True},
    {"weight_decay": 0.0, "betas": (0.3, 0.5), "eps": 1e-3},
)
ADAMW_SHAPES = ((6, 5, 3, 3), (2, 1100), (7,), (4, 6, 3, 3), (0, 4), (130, 9))
ADAMW_GROUPS = (3, 1, 1, 2, 1, 1)


def adamw_cases(dtype, formats):
    """Parameters, gradients, first and second moments and maxima."""
    cases = [
        [place(random_values(shape, dtype, seed + i), form) for i, shape in enumerate(ADAMW_SHAPES)]
        for seed, form in zip(range(0, 500, 100), (formats[0], formats[1], *[formats[0]] * 3), strict=True)
    ]
    for case in cases[3] + cases[4]:
        case.weight.abs_()
    return cases


def adamw_resets(device):
    """Of rows, of columns, of both and of neither."""
    rows, columns = [], []
    for i, (shape, groups) in enumerate(zip(ADAMW_SHAPES, ADAMW_GROUPS, strict=True)):
        size = groups * (shape[1] if len(shape) > 1 else 1)
        rows.append((torch.arange(shape[0]) % 3).float().to(device) if i % 3 != 1 else None)
        columns.append((torch.arange(size) % 4).float().to(device) if i % 4 == 0 else None)
    return rows, columns


def adamw_step(cases, steps, options, resets=(None, None), lr=0.03):
    wk.unit_adamw_(*map(weights_of, cases), *resets, ADAMW_GROUPS, steps, **{"lr": lr} | options)


def check_adamw(device, dtype, formats, options, backend="triton"):
    """Within roundings, with ages; steps and learning rate of the host, and on the device."""
    numbers = [5.0 + i % 2 for i in range(len(ADAMW_SHAPES))]
    for on_device in (False, True):
        cases = adamw_cases(dtype, formats)
        moved = [on(part, device) for part in cases]
        with wk.use_backend("torch"):
            adamw_step(cases, numbers, options, adamw_resets("cpu"))
        steps, lr = numbers, 0.03
        if on_device:
            steps = [torch.tensor(number, device=device) for number in numbers]
            lr = torch.tensor(0.03, dtype=torch.float64, device=device)
        with wk.use_backend(backend):
            adamw_step(moved, steps, options, adamw_resets(device), lr)
        for part, wanted in zip(moved, cases, strict=True):
            for ours, other in zip(part, wanted, strict=True):
                found = ours.buffer.cpu()
                torch.testing.assert_close(found, other.buffer, rtol=8 * EPS[dtype], atol=8 * EPS[dtype])
                there = found.as_strided(other.weight.shape, other.weight.stride(), other.weight.storage_offset())
                assert Case(there, 0, found).guards_intact()
        assert_same_bits(moved[1], cases[1])


def check_adamw_is_foreach(device, dtype, options, backend="triton"):
    """Bit for bit what PyTorch's own step gives on that device, where nothing was reset."""
    cases = [on(part, device) for part in adamw_cases(dtype, ("contiguous", "contiguous"))]
    theirs = [on(part, device) for part in cases]
    settings = {"amsgrad": False, "maximize": False, "decoupled_weight_decay": True, "eps": 1e-8, **options}
    beta1, beta2 = settings.pop("betas", (0.9, 0.999))
    counters = [torch.tensor(4.0) for _ in ADAMW_SHAPES]
    foreach_adam(*map(weights_of, theirs), counters, foreach=True, lr=0.03, beta1=beta1, beta2=beta2, **settings)
    with wk.use_backend(backend):
        adamw_step(cases, [5.0] * len(ADAMW_SHAPES), options)
    for ours, wanted in zip(cases, theirs, strict=True):
        assert_same_bits(ours, wanted)


def check_entropy(device, dtypes, memory_format, bins, flavour="normal", backend="triton"):
    """Counts are those of the reference, there and on the CPU; its logarithms may be another library's.

    One tensor holds a bad value.
    """
    cases = make_cases(dtypes, memory_format, 21, flavour)
    cases[4].weight[0, 2] = -math.inf
    moved, results = on(cases, device), []
    for name, placed in (("torch", cases), ("torch", moved), (backend, moved)):
        bank = bank_of(placed)
        with wk.use_backend(name):
            results.append([wk.weight_entropy(bank, bins, per=per, check_finite=False) for per in ("tensor", "filter")])
    for wanted, *others in zip(*results, strict=True):
        for found in others:
            torch.testing.assert_close(found.cpu(), wanted, rtol=2 * EPS[torch.float32], atol=0, equal_nan=True)
        assert 0 < int(wanted.isnan().sum()) < len(wanted)
    assert_same_bits(moved, cases)


def check_blend(device, dtypes, formats, networks, per, backend="triton"):
    """A ring, then the first network alone with the second; bit for bit."""
    generator = torch.Generator().manual_seed(networks)
    cases = [make_cases(dtypes, formats[i % len(formats)], 40 * i) for i in range(networks)]
    moved = [on(part, device) for part in cases]
    size = len(cases[0]) if per == "tensor" else bank_of(cases[0]).num_filters
    shares = torch.rand(networks + 1, size, generator=generator) * 1.5 - 0.25
    for name, placed in (("torch", cases), (backend, moved)):
        banks = [bank_of(part) for part in placed]
        own = shares.to(banks[0].device)
        with wk.use_backend(name):
            wk.blend_ring_(banks, own[:-1], per=per)
            wk.blend_(banks[0], banks[1], own[-1], per=per)
    for ours, wanted in zip(moved, cases, strict=True):
        assert_same_bits(ours, wanted)
