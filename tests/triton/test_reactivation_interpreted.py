"""Unit reactivation under Triton's interpreter: bits of the reference, launches, tables, how tensors are cut."""

import math
import os
from itertools import cycle

import pytest
import torch

import we_kernels as wk
from tests import units
from tests.banks import DTYPES, FORMATS

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the interpreter is off", allow_module_level=True)
pytest.importorskip("triton")

from we_kernels.reactivation.triton import sums, tables, write
from we_kernels.runtime.triton import launch

SCALES = ("targets", "initial", "layer")


@pytest.fixture
def launches():
    seen = []

    def record(name, arguments, constants):
        seen.append((name, arguments, constants))

    launch.observers.append(record)
    yield seen
    launch.observers.remove(record)


@pytest.fixture
def small_cuts(monkeypatch):
    """Tensors of a few hundred elements are cut as large ones are."""
    for module, sizes in (
        (sums, {"BLOCK": 32, "SCAN": 16, "PART": 64, "MOST_PARTS": 4}),
        (write, {"BLOCK": 16, "SPAN": 4}),
    ):
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)
    tables.plan_tables.cache_clear()
    yield
    tables.plan_tables.cache_clear()


@pytest.mark.parametrize(("dtype", "formats", "scale"), [*zip(cycle(DTYPES), FORMATS, cycle(SCALES))], ids=str)
def test_bits_of_the_reference(dtype, formats, scale):
    units.check_reactivation_bits("cpu", dtype, scale, formats, "triton")


def plan_of_many_entries(device="cpu"):
    """More rows and columns than a tile has; both drawn and both of a mean; a fifth of the units are revived."""
    generator = torch.Generator().manual_seed(8)
    specs = (
        ((37, 3, 2), 1, True, False, "draw", "keep"),
        ((6, 21, 1), 2, False, True, "keep", "draw"),
        ((34, 5, 2), 1, True, True, "mean", "mean or one"),
        ((40,), 1, True, False, "mean", "keep"),
    )
    items = []
    for shape, groups, has_rows, has_columns, row, column in specs:
        values, sizes = torch.randn(shape, generator=generator), (shape[0], groups * (*shape, 1)[1])
        rows, columns = (
            torch.randint(-1, 50, (size,), generator=generator) if has else None
            for size, has in zip(sizes, (has_rows, has_columns), strict=True)
        )
        items.append(wk.UnitTensor(values.to(device), rows, columns, groups, row, column))
    return wk.UnitPlan(items, 50), torch.rand(50, generator=generator) < 0.2


@pytest.mark.parametrize("scale", ["layer", "initial"])
def test_tensors_of_many_parts_and_tiles(small_cuts, launches, scale):
    results = []
    for name in ("torch", "triton"):
        plan, revived = plan_of_many_entries()
        with wk.use_backend(name):
            wk.reactivate_(plan, revived, seed=3, step=4, scale=scale)
        results.append([item.tensor for item in plan.items])
    for ours, wanted in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=0)
    tiles = launches[-1][1][4]
    assert len(tiles) > 30
    assert len(tiles.unique(dim=0)) == len(tiles)


def test_parts_and_tiles_cover_every_tensor_once(small_cuts):
    """Whatever the sizes: elements in parts, rows and columns in tiles."""
    shape, groups = (36, 7, 3), 3
    rows, columns = torch.arange(36), torch.arange(21)
    plan = wk.UnitPlan([wk.UnitTensor(torch.ones(shape), rows, columns, groups, "mean", "draw")], 36)
    with wk.use_backend("triton"):
        wk.reactivate_(plan, torch.zeros(36).bool(), seed=0, step=0)
    view = plan.view()
    made = tables.plan_tables(view.layout, *map(tuple, view[2:]), torch.device("cpu"))
    (tiles,) = made.tiles
    written = torch.zeros(2, 36, 7, 3, dtype=torch.int32)
    for _, axis, place, first, size, low, high in tiles.writes.tolist():
        assert place == plan.start(0, ("rows", "columns")[axis]) + first
        for entry in range(first, first + size):
            if axis == 0:
                written[0, entry].view(-1)[low:high] += 1
            else:
                written[1, entry // 7 * 12 + low : entry // 7 * 12 + high, entry % 7] += 1
    assert written.eq(1).all()
    summed, norms, places = torch.zeros(3, 36 * 7 * 3), torch.zeros(21), []
    for kind, _, first, size, place in tiles.sums.tolist():
        if kind == sums.DRAWN.value:
            norms[first : first + size] += 1
        else:
            summed[kind, first : first + size] += 1
            places.append(place)
    assert summed[:2].eq(1).all()
    assert norms.eq(1).all()
    assert sorted(places) == list(range(made.parts))
    assert made.parts == 2 * sums.MOST_PARTS


def test_sums_are_left_alone_when_nothing_is_revived(launches, poisoned):
    tables.plan_tables.cache_clear()
    plan = units.make_plan(torch.float32)
    with wk.use_backend("triton"):
        wk.reactivate_(plan, torch.zeros(units.UNITS).bool(), seed=0, step=0, given=units.GIVEN)
    part_sums, part_counts, norms = launches[-1][1][-3:]
    assert part_sums.isnan().all()
    assert part_counts.eq(-99).all()
    assert norms.eq(-99).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_given_numbers_that_are_not_finite(dtype):
    for number in (math.nan, math.inf, -math.inf, 1e39):
        wanted = torch.tensor(number, dtype=torch.float32).to(dtype)
        row = torch.ones(3, dtype=dtype)
        plan = wk.UnitPlan([wk.UnitTensor(row, torch.tensor([0, -1, 0]), row_value="given")], 1)
        with wk.use_backend("triton"):
            wk.reactivate_(plan, torch.tensor([True]), seed=0, step=0, given=torch.tensor([number]))
        torch.testing.assert_close(row[::2], wanted.expand(2), rtol=0, atol=0, equal_nan=True)
        assert row[1] == 1


def test_parents_that_lead_nowhere_end():
    """A unit whose parent is itself, or comes after it, asks nobody: nothing runs for ever."""
    activity = torch.tensor([1.0, 1.0, 0.0, 1.0])
    parents = torch.tensor([1, 0, 2, 3], dtype=torch.int32)
    with wk.use_backend("triton"):
        found = wk.dormant_units(activity, [4], 0.1, parents=parents)
    assert found.tolist() == [False, False, True, False]


STEP = ["dormant_kernel", "unit_sums_kernel", "write_units_kernel"]


def step(layers, dtypes=(torch.float32,), parents=False):
    """Convolutions behind each other with their moments."""
    width, items = 4, []
    for i in range(layers):
        dtype = dtypes[i % len(dtypes)]
        rows = width * (i + 1) + torch.arange(width)
        own = [torch.ones(width, width, 3, 3, dtype=dtype) for _ in range(3)]
        for tensor, values in zip(own, (("draw", "zero"), ("zero", "zero"), ("mean", "mean")), strict=True):
            items.append(wk.UnitTensor(tensor, rows, rows - width, 1, *values))
    plan = wk.UnitPlan(items, width * (layers + 1))
    chosen = torch.full((plan.units,), -1, dtype=torch.int32) if parents else None
    with wk.use_backend("triton"):
        activity = torch.arange(plan.units) % 4 + 0.0
        dormant = wk.dormant_units(activity, [width] * (layers + 1), 0.1, parents=chosen)
        wk.reactivate_(plan, dormant, seed=1, step=2)


@pytest.mark.parametrize("layers", [1, 2, 9])
def test_launches_whatever_the_number_of_layers(launches, layers):
    step(layers)
    assert [name for name, *_ in launches] == STEP


def test_one_more_launch_for_parents_and_two_for_each_further_dtype(launches):
    step(3, DTYPES[:3], parents=True)
    wanted = ["dormant_kernel", "dormant_parents_kernel", *["unit_sums_kernel"] * 3, *["write_units_kernel"] * 3]
    assert [name for name, *_ in launches] == wanted


def test_nothing_is_summed_for_what_needs_no_sums(launches):
    plan = wk.UnitPlan([wk.UnitTensor(torch.ones(4, 3), torch.arange(4), row_value="draw")], 4)
    with wk.use_backend("triton"):
        wk.reactivate_(plan, torch.ones(4).bool(), seed=0, step=0, scale="initial")
    assert [name for name, *_ in launches] == ["write_units_kernel"]


def test_every_launch_is_compiled_ahead_of_time(launches):
    from tests.triton import aot_table

    step(4, DTYPES, parents=True)
    listed = {
        variant.key()
        for variant in aot_table.variants()
        if variant.kernel.__name__ in {*STEP, "dormant_parents_kernel"}
    }
    found = set()
    for name, arguments, constants in launches:
        found.add(aot_table.key(name, constants))
        assert [aot_table.type_of(argument) for argument in arguments] == aot_table.signature(name), name
    assert found == listed
