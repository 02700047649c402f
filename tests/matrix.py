"""Cases for the GPU backends, interpreted or emulated (device "cpu") and on a GPU alike, and how each is checked."""

import copy

import torch

import we_kernels as wk
from tests.banks import Case, place, random_values

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = ("contiguous", "channels_last", "sliced", "transposed", "shifted")

SHAPES = (
    ((7,), 0),
    ((1,), 0),
    ((10, 1), 0),
    ((11, 5), 1),
    ((1, 6), 0),
    ((3, 1100), 0),
    ((9, 4, 3), 0),
    ((5, 3, 1, 7), 1),
    ((6, 10, 1, 1), 0),
    ((4, 256, 1, 1), 0),
    ((8, 3, 3, 3), 0),
    ((6, 14, 3, 3), 1),
    ((13, 1, 3, 3), 0),
    ((4, 40, 3, 3), 0),
    ((4, 2, 5, 5), 0),
    ((3, 4, 7, 7), 1),
    ((3, 5, 2, 3, 4), 0),
)
"""Shapes, and the dimension of the filters: vectors, rows, kernels of 1, 3, 9, 25 and 49 elements, one channel, one
filter; short, long and looped-over rows."""

SIZES = (1, 5, 17, 40, 3, 130, 2, 9, 1, 31, 12, 6, 8, 7, 4, 16, 33, 10, 19, 11)
"""Filters of the layers for matching: more layers than a starvation tile, more filters than a rank tile."""

MIXES = (
    *((DTYPES[i:] + DTYPES[:i], memory_format) for i, memory_format in enumerate(FORMATS)),
    *(((dtype,), "contiguous") for dtype in DTYPES),
)
"""Dtypes in turn with every memory format, and each dtype alone."""

EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def make_cases(dtypes, memory_format, seed, flavour="normal"):
    """One placed tensor per shape, dtypes in turn."""
    return [
        place(random_values(shape, dtypes[i % len(dtypes)], seed + i, flavour), memory_format, dim)
        for i, (shape, dim) in enumerate(SHAPES)
    ]


def on(cases, device):
    """The same tensors in the same memory layout on another device."""
    moved = []
    for case in cases:
        buffer = case.buffer.to(device, copy=True)
        weight = buffer.as_strided(case.weight.shape, case.weight.stride(), case.weight.storage_offset())
        moved.append(Case(weight, case.filter_dim, buffer))
    return moved


def bank_of(cases, groups=1):
    return wk.FilterBank(
        [case.weight for case in cases],
        [case.filter_dim for case in cases],
        groups=[i % groups for i in range(len(cases))],
    )


def check_importance(device, dtypes, memory_format, flavour="normal", backend="triton"):
    cases = make_cases(dtypes, memory_format, 3, flavour)
    moved = on(cases, device)
    with wk.use_backend("torch"):
        expected = wk.filter_importance(bank_of(cases))
    with wk.use_backend(backend):
        found = wk.filter_importance(bank_of(moved)).cpu()
    longest = max(case.weight.numel() // case.weight.shape[case.filter_dim] for case in cases)
    smallest = float(torch.finfo(torch.float32).smallest_normal) * EPS[torch.float32]
    torch.testing.assert_close(found, expected, rtol=EPS[torch.float32] * max(4.0, longest**0.5), atol=2 * smallest)
    assert all(torch.equal(a.buffer.cpu(), b.buffer) for a, b in zip(moved, cases, strict=True))


def importances(sizes, flavour, seed=5):
    """float32 [F] with a spread between layers."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.rand(n, generator=generator) ** 4 * 10 ** float(i % 4 - 2) for i, n in enumerate(sizes)]
    values = torch.cat(parts)
    if flavour == "ties":
        values = (values * 8).round() / 8
    elif flavour == "zeros":
        values = values * (torch.rand(len(values), generator=generator) < 0.4)
        values[values == 0] = torch.tensor([0.0, -0.0]).repeat(len(values))[: int((values == 0).sum())]
    elif flavour == "tiny":
        values = values * 1e-40
    elif flavour == "equal":
        values = torch.full_like(values, 0.25)
    return values


def check_matching(device, flavour, rates, ratios, groups, limit, counters, sizes=SIZES, backend="triton"):
    """Donors, thresholds, counts and counters are those of the reference; counters carry over to a second call."""
    values = importances(sizes, flavour)
    bank = {d: wk.FilterBank([torch.zeros(n, device=d) for n in sizes], groups=groups) for d in ("cpu", device)}
    counter = {
        name: None if counters is None else torch.tensor(counters, dtype=torch.int32, device=d)
        for name, d in (("torch", "cpu"), (backend, device))
    }
    for _ in range(1 if counters is None else 2):
        found = {}
        for name, d in (("torch", "cpu"), (backend, device)):
            with wk.use_backend(name):
                found[name] = wk.match_filters(
                    bank[d],
                    values.to(d),
                    rate=rates,
                    local_ratio=ratios,
                    starvation=counter[name],
                    starvation_limit=limit,
                    zero_is_inferior=[True, False, True][: max(groups) + 1],
                )
        for field in ("donor", "threshold", "inferior"):
            ours, theirs = getattr(found[backend], field).cpu(), getattr(found["torch"], field)
            assert ours.tolist() == theirs.tolist(), field
        if counters is not None:
            assert counter[backend].tolist() == counter["torch"].tolist()
    return found["torch"]


def donors_of(cases, seed=11):
    """Random valid donors, about half of the filters of every layer."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for case in cases:
        n = case.weight.shape[case.filter_dim]
        order = torch.randperm(n, generator=generator)
        donor = torch.full((n,), -1, dtype=torch.int32)
        donor[order[: n // 2]] = order[n // 2 : n // 2 * 2].int()
        parts.append(donor)
    return torch.cat(parts)


def check_crossover(device, dtypes, memory_format, rule, flavour="normal", backend="triton"):
    cases = make_cases(dtypes, memory_format, 7, flavour)
    donor = donors_of(cases)
    moved, before = on(cases, device), copy.deepcopy(cases)
    with wk.use_backend("torch"):
        wk.crossover_(bank_of(cases), donor, rule)
    with wk.use_backend(backend):
        wk.crossover_(bank_of(moved), donor.to(device), rule)
    for ours, wanted, old in zip(moved, cases, before, strict=True):
        assert_same_weights(ours.buffer.cpu(), wanted, old)


def assert_same_weights(buffer, wanted, old):
    """Element crossover is bit-equal in every dtype; a blend differs by the rounding of its two norms."""
    kernel = [size for dim, size in enumerate(wanted.weight.shape) if dim not in (0, 1)]
    height = kernel[max(len(kernel) - 2, 0)] if kernel else 1
    if height > 1:
        assert torch.equal(as_bits(buffer), as_bits(wanted.buffer))
    else:
        eps = EPS[buffer.dtype]
        scale = float(old.weight.abs().max())
        torch.testing.assert_close(buffer, wanted.buffer, rtol=8 * eps, atol=8 * eps * scale)
        weight = buffer.as_strided(wanted.weight.shape, wanted.weight.stride(), wanted.weight.storage_offset())
        assert Case(weight, 0, buffer).guards_intact()


def as_bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def check_evolution(device, dtypes, memory_format, rule, groups=2, limit=1.5, backend="triton"):
    """evolve_ is exactly its three operators one after the other, on the same backend."""
    cases = make_cases(dtypes, memory_format, 13)
    together, apart = on(cases, device), on(cases, device)
    counters = [torch.zeros(groups, dtype=torch.int32, device=device) for _ in range(2)]
    options = {"rate": [0.6, 0.4][:groups], "local_ratio": [0.6, None][:groups], "starvation_limit": limit}
    with wk.use_backend(backend):
        found = wk.evolve_(bank_of(together, groups), rule=rule, starvation=counters[0], **options)
        bank = bank_of(apart, groups)
        importance = wk.filter_importance(bank)
        selection = wk.match_filters(bank, importance, starvation=counters[1], **options)
        wk.crossover_(bank, selection.donor, rule)
    assert [part.tolist() for part in found] == [part.tolist() for part in selection]
    assert int((found.donor >= 0).sum()) > 20
    assert counters[0].tolist() == counters[1].tolist()
    for a, b, old in zip(together, apart, cases, strict=True):
        assert torch.equal(as_bits(a.buffer.cpu()), as_bits(b.buffer.cpu()))
        assert a.weight.shape[a.filter_dim] < 6 or not torch.equal(a.buffer.cpu(), old.buffer)


def check_poison(device, value, layer, backend="triton"):
    """One bad weight: nothing changes, thresholds are NaN."""
    cases = make_cases(DTYPES, "contiguous", 17)
    cases[layer].weight.view(-1)[-1] = value
    moved = on(cases, device)
    counter = torch.tensor([3, 1], dtype=torch.int32, device=device)
    with wk.use_backend(backend):
        found = wk.evolve_(
            bank_of(moved, 2), rate=0.7, local_ratio=[0.9, None], starvation=counter, starvation_limit=4.0
        )
    assert found.donor.eq(-1).all()
    assert found.threshold.isnan().all()
    assert found.inferior.eq(0).all()
    assert counter.tolist() == [3, 1]
    for ours, old in zip(moved, cases, strict=True):
        assert torch.equal(as_bits(ours.buffer.cpu()), as_bits(old.buffer))


MATCHINGS = tuple(
    (flavour, rates, ratios, groups, limit, None if limit is None else counters)
    for groups, counters, limits in (
        ([0] * len(SIZES), [0], (None, 2.5)),
        ([i % 3 for i in range(len(SIZES))], [0, 5, 2], (None, 3.0)),
    )
    for limit in limits
    for flavour, rate, ratio in (
        ("normal", 0.0, 0.1),
        ("normal", 0.3, 0.0),
        ("normal", 0.5, 0.01),
        ("normal", 1.0, 1.0),
        ("ties", 0.7, 0.1),
        ("zeros", 0.5, 0.0),
        ("tiny", 0.4, 0.2),
        ("equal", 0.5, 1.0),
        ("normal", 0.4, None),
        ("ties", 0.9, None),
    )
    for rates, ratios in (
        ([rate, min(1.0, rate + 0.2), rate / 2][: max(groups) + 1], [ratio, None, 0.05][: max(groups) + 1]),
    )
)
"""Arguments of `check_matching` after the device."""


def mix_id(case):
    dtypes, memory_format = case
    return f"{str(dtypes[0]).removeprefix('torch.')}{'-and-others' * (len(dtypes) > 1)}-{memory_format}"


def matching_id(case):
    flavour, rates, ratios, groups, limit, _ = case
    return f"{flavour}-{rates[0]}-{ratios[0]}-{max(groups) + 1}groups-{limit}"
