"""Checks of unit reactivation, on any device, against loops over elements. See `matrix`."""

import itertools
import math
from contextlib import nullcontext
from functools import cache

import torch

import we_kernels as wk
from tests.banks import place
from tests.matrix import EPS, on
from tests.methods import assert_same_bits

UNITS = 23

# Name: shape, groups, first units of rows and of columns (None: of no unit), values.
TENSORS = {
    "conv": ((7, 6, 3, 2), 1, 0, None, "draw", "keep"),
    "both sides": ((9, 7, 3, 3), 1, 7, 0, "draw", "zero"),
    "grouped": ((8, 3, 5), 4, 15, 7, "draw", "zero"),
    "transposed": ((8, 5, 2, 3), 2, 15, 0, "zero", "draw"),
    "kept outgoing": ((5, 9), 1, None, 7, "keep", "keep"),
    "flattened": ((11, 24), 1, None, 15, "keep", "zero"),
    "long": ((3, 1100), 1, 7, None, "draw", "keep"),
    "bias": ((7,), 1, 0, None, "zero", "keep"),
    "scale": ((9,), 1, 7, None, "mean or one", "keep"),
    "variance": ((9,), 1, 7, None, "one", "keep"),
    "first moment": ((9, 7, 3, 3), 1, 7, 0, "zero", "zero"),
    "second moment": ((9, 7, 3, 3), 1, 7, 0, "mean", "mean"),
    "given": ((4, 6, 2), 2, 3, 7, "given", "given"),
    "row steps": ((9,), 1, 7, None, "given", "keep"),
    "column steps": ((7,), 1, 0, None, "given", "keep"),
    "gaps": ((7, 4), 1, -3, None, "draw", "keep"),
}
GIVEN = (0.25, 17.0, 2.0**24)


def make_cases(dtype, formats="contiguous"):
    """A `Case` per tensor; steps are float32."""
    generator = torch.Generator().manual_seed(3)
    cases = []
    for name, (shape, *_) in TENSORS.items():
        values = torch.randn(shape, generator=generator)
        values = values.abs() if name in ("second moment", "scale", "variance") else values
        cases.append(place(values.to(torch.float32 if "steps" in name else dtype), formats))
    return cases


def tables(name):
    """Units of rows and of columns, or None."""
    shape, groups, first_row, first_column, *_ = TENSORS[name]
    rows, columns = (*shape, 1)[:2]
    found = []
    for size, first in ((rows, first_row), (groups * columns, first_column)):
        if first is None:
            found.append(None)
        elif first < 0:  # every second has no unit
            found.append(torch.tensor([i % 4 if i % 2 else -1 for i in range(size)]))
        else:
            # Blocks of columns for one unit where there are more of them than units from there.
            block = -(-size // (UNITS - first))
            found.append(first + torch.arange(size) // block)
    return found


def plan_of(tensors):
    """For these tensors in the order of `TENSORS`."""
    items = []
    for (name, (_, groups, *_, row, column)), tensor in zip(TENSORS.items(), tensors, strict=True):
        items.append(wk.UnitTensor(tensor, *tables(name), groups, row, column, name))
    return wk.UnitPlan(items, UNITS)


def make_plan(dtype):
    """On the CPU."""
    return plan_of([case.weight for case in make_cases(dtype)])


@cache
def philox(c0, c1, c2, c3, seed):
    """The first number, with Python's integers (Salmon et al. 2011)."""
    low, k0, k1 = 0xFFFFFFFF, seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ k0, b & low, a >> 32 ^ c3 ^ k1, a & low
        k0, k1 = k0 + 0x9E3779B9 & low, k1 + 0xBB67AE85 & low
    return c0


def drawn(element, number, seed, step):
    """In [-1, 1)."""
    return (philox(element, number | 2**31, step & 0xFFFFFFFF, step >> 32, seed) >> 8) * 2.0**-23 - 1


def as_wanted(weight, seed, step, rows):
    """The first drawn tensor of a plan, as drawn for these rows."""
    wanted, length = weight.clone(), weight[0].numel()
    bound = torch.tensor(1 / math.sqrt(length))
    for row in rows:
        values = [drawn(row * length + i, 0, seed, step) for i in range(length)]
        wanted[row] = (torch.tensor(values) * bound).view(weight[row].shape)
    return wanted


def targets_of(plan):
    """A norm for every row and column; none for some."""
    return torch.arange(plan.entries).remainder(5).float()


def wanted_values(plan, revived, seed, step, scale):
    """Each tensor as float64, by loops over its elements."""
    results, number, given = [], 0, iter(GIVEN)
    targets = targets_of(plan).tolist()
    for i, item in enumerate(plan.items):
        x = item.tensor.double()
        shape = (*x.shape, 1)[:2]
        x = x.reshape(*shape, -1)
        size, columns = x.shape[2], shape[1]
        places = {}
        for r, c in itertools.product(*map(range, shape)):
            column = r // (shape[0] // item.groups) * columns + c
            places[r, c] = (r, column)

        def unit(axis, index, item=item):
            table = item.rows if axis == 0 else item.columns
            return -1 if table is None else int(table[index])

        values = item.row_value, item.column_value
        hit = {}
        for place_, indices in places.items():
            own = [unit(axis, index) for axis, index in enumerate(indices)]
            hits = [u >= 0 and bool(revived[u]) and v != "keep" for u, v in zip(own, values, strict=True)]
            found = [v for v, h in zip(values, hits, strict=True) if h]
            if found:
                hit[place_] = "zero" if "zero" in found else found[0]
        others = [x[p].tolist() for p in places if p not in hit]
        flat = list(itertools.chain(*others))
        mean = sum(flat) / len(flat) if flat else float(x.mean())
        new = x.clone()
        number_given = next(given) if "given" in values else None
        axis = values.index("draw") if "draw" in values else None
        bound = float(torch.tensor(1 / math.sqrt(columns * size)))
        norms, alive_norm, alive = {}, 0.0, set()
        for p, indices in places.items() if axis is not None else ():
            index = indices[axis]
            draws = [drawn((p[0] * columns + p[1]) * size + k, number, seed, step) for k in range(size)]
            norms[index] = norms.get(index, 0.0) + sum(map(abs, draws)) * bound
            own = unit(axis, index)
            if own >= 0 and not revived[own]:
                alive.add(index)
                alive_norm += float(x[p].abs().sum())
        for p, value in hit.items():
            if value == "draw":
                index = places[p][axis]
                draws = [drawn((p[0] * columns + p[1]) * size + k, number, seed, step) for k in range(size)]
                target = alive_norm / len(alive) if alive else 0.0
                if scale == "targets":
                    target = targets[plan.start(i, ("rows", "columns")[axis]) + index]
                factor = target / norms[index] if target > 0 and scale != "initial" else 1.0
                new[p] = torch.tensor(draws, dtype=torch.float64) * bound * factor
            else:
                one = mean if flat or value != "mean or one" else 1.0
                new[p] = {"zero": 0.0, "one": 1.0, "mean": mean, "mean or one": one, "given": number_given}[value]
        number += "draw" in values
        results.append(new.view(item.tensor.shape))
    return results


def check_reactivation(device, dtype, scale, *, formats="contiguous", share=0.3, backend=None):
    """Values against the loops; what is not written keeps its bits."""
    cases = make_cases(dtype, formats)
    plan = plan_of([case.weight for case in cases])
    revived = torch.rand(UNITS, generator=torch.Generator().manual_seed(1)) < share
    seed, step = 2**40 + 5, 2**33 + 9
    wanted = wanted_values(plan, revived, seed, step, scale)
    before = [case.weight.clone() for case in cases]
    buffers = [case.buffer.to(device) for case in cases]
    moved = [
        buffer.as_strided(case.weight.shape, case.weight.stride(), case.weight.storage_offset())
        for case, buffer in zip(cases, buffers, strict=True)
    ]
    plan = plan_of(moved)
    option = targets_of(plan).to(device) if scale == "targets" else scale
    with wk.use_backend(backend) if backend else nullcontext():
        wk.reactivate_(plan, revived.to(device), seed=seed, step=step, scale=option, given=GIVEN)
    for name, case, tensor, was, wants, buffer in zip(TENSORS, cases, moved, before, wanted, buffers, strict=True):
        found = tensor.cpu()
        rtol = max(EPS[found.dtype], 1e-6)
        torch.testing.assert_close(
            found.double(), wants, rtol=rtol, atol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
        kept = wants == was.double()
        assert torch.equal(found[kept], was[kept]), name
        case.buffer.copy_(buffer.cpu())
        assert case.guards_intact(), name


def check_dormant(device, threshold, backend=None):
    """Layers of many sizes, one of them dead, with parents."""
    sizes = [1, 130, 7, 1025, 64, 3]
    generator = torch.Generator().manual_seed(2)
    activity = torch.rand(sum(sizes), generator=generator) ** 4
    activity[131:138] = 0
    parents = torch.full((sum(sizes),), -1, dtype=torch.int32)
    parents[1163:1227] = torch.arange(1, 65, dtype=torch.int32)
    parents[1227:] = torch.arange(1170, 1173, dtype=torch.int32)
    own = []
    for layer in activity.double().split(sizes):
        own += (layer <= threshold * (layer.sum() / len(layer) + 1e-9)).tolist()
    wanted = list(own)
    for unit, parent in enumerate(parents.tolist()):
        wanted[unit] |= parent >= 0 and wanted[parent]
    with wk.use_backend(backend) if backend else nullcontext():
        found = wk.dormant_units(activity.to(device), sizes, threshold, parents=parents.to(device))
    assert found.tolist() == wanted


def check_reactivation_bits(device, dtype, scale, formats, backend, share=0.6):
    """Those of the reference on the CPU; means, and what has the norm of living units, within a rounding."""
    cases = make_cases(dtype, formats)
    moved = on(cases, device)
    revived = torch.rand(UNITS, generator=torch.Generator().manual_seed(4)) < share
    for name, placed in (("torch", cases), (backend, moved)):
        plan = plan_of([case.weight for case in placed])
        where = plan.device
        option = targets_of(plan).to(where) if scale == "targets" else scale
        with wk.use_backend(name):
            wk.reactivate_(plan, revived.to(where), seed=2**63 - 1, step=2**40 + 3, scale=option, given=GIVEN)
    for (name, (*_, row, column)), ours, wanted in zip(TENSORS.items(), moved, cases, strict=True):
        inexact = {"mean", "mean or one"} | ({"draw"} if scale == "layer" else set())
        if inexact & {row, column}:
            eps = max(EPS[ours.weight.dtype], EPS[torch.float32])  # numbers are drawn in float32
            torch.testing.assert_close(ours.weight.cpu(), wanted.weight, rtol=2 * eps, atol=0, msg=name)
        else:
            assert_same_bits([ours], [wanted])
