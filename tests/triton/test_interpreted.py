"""Every operator under Triton's interpreter, on the cases of `matrix`, against the reference."""

import copy
import os

import pytest
import torch

import we_kernels as wk
from tests import matrix
from tests.banks import place, random_values

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the interpreter is off (test_gpu.py runs these cases)", allow_module_level=True)
pytest.importorskip("triton")

from we_kernels.activity.triton import launches as activity_launches
from we_kernels.evolution.rule import MatchingRule
from we_kernels.evolution.triton import crossover, tables
from we_kernels.evolution.triton import launches as steps
from we_kernels.runtime import transfer
from we_kernels.runtime.layout import Layer, layout_of, segments_of
from we_kernels.runtime.transfer import Place
from we_kernels.runtime.triton import launch
from we_kernels.runtime.triton import tables as layer_tables
from we_kernels.runtime.triton.fields import EXTRA_FIELDS
from we_kernels.runtime.view import BankView

HERE = Place(torch.device("cpu"), 0, False)

dtypes = pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
mixes = pytest.mark.parametrize("mix", matrix.MIXES, ids=matrix.mix_id)
rules = pytest.mark.parametrize("rule", ["paper", "released"])


@pytest.fixture(params=["ranked", "counted"])
def method(request, monkeypatch):
    """Thresholds come from ranking the filters of a group, or, as in large groups only, from counting chunks of it."""
    if request.param == "counted":
        monkeypatch.setattr(tables, "RANKED", 0)
    for cached in (layout_of, segments_of):  # and the tables that go with them
        cached.cache_clear()


counted = pytest.mark.parametrize("method", ["counted"], indirect=True)


@mixes
def test_importance(mix):
    matrix.check_importance("cpu", *mix)


@pytest.mark.parametrize("flavour", ["zeros", "tiny"])
def test_importance_of_zeros_and_subnormals(flavour):
    matrix.check_importance("cpu", matrix.DTYPES, "contiguous", flavour)


@pytest.mark.parametrize("case", matrix.MATCHINGS, ids=matrix.matching_id)
def test_matching(case):
    matrix.check_matching("cpu", *case)


def test_matching_starves_and_feeds():
    """The cases above reach every branch of the rule: it fires, counts without firing, and is reset."""
    groups = [0] * len(matrix.SIZES)
    found = matrix.check_matching("cpu", "normal", [0.5], [1e-9], groups, 2.0, [1])
    assert 0 < int((found.inferior > 0).sum()) < len(groups)


@pytest.mark.usefixtures("method")
def test_matching_with_a_large_layer_and_empty_groups():
    matrix.check_matching("cpu", "normal", [0.4, 0.3, 0.2], [0.2, 0.1, None], [0, 2, 0], None, None, (1100, 5, 40))


@pytest.mark.parametrize("start", [-3, 0, 1, 6, 2**31 - 5])
def test_counters_of_any_value(start):
    matrix.check_matching("cpu", "normal", [0.5], [1e-9], [0] * len(matrix.SIZES), 4.0, [start])


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("groups", [[0] * 7 + [1] * 13, [1] * 13 + [0] * 7, [i % 2 for i in range(20)]], ids=str)
def test_matching_of_two_groups(groups):
    matrix.check_matching("cpu", "ties", [0.37, 0.8], [0.1, None], groups, 4.0, [2, 0])


@counted
def test_threshold_of_a_group_larger_than_a_tile(monkeypatch, method):
    monkeypatch.setattr(steps, "THRESHOLD_ITEMS", 1)
    monkeypatch.setattr(steps, "THRESHOLD_LANES", 64)
    monkeypatch.setattr(steps, "THRESHOLD_CANDIDATES", 8)
    for flavour in ("normal", "zeros"):
        matrix.check_matching("cpu", flavour, [0.37, 0.8], [0.1, None], [i % 2 for i in range(20)], None, None)


def thresholds(values, rates):
    """Of one group in one layer, by the kernel alone; what counts its programs is left as it was found."""
    segments = segments_of((len(values),), (0,))
    found = []
    for rate in rates:
        rule = MatchingRule(torch.tensor([rate]).double(), [0.0], None, 2.0, [False])
        _, threshold, _ = steps.match_filters(values, segments, rule)
        found.append(threshold.item())
    assert not any(counter.any() for counter in tables.scratch(segments, 1, HERE).progress)
    return found


AWKWARD = {
    "all equal": lambda n: torch.ones(n),
    "half equal": lambda n: torch.where(torch.arange(n) % 2 == 0, 0.5, torch.linspace(0.0, 1.0, n)),
    "every pivot is small": lambda n: (torch.arange(n) * 128 % n >= 128) * torch.linspace(1.0, 2.0, n),
    "neighbours in float32": lambda n: (0x3F800000 + torch.arange(n).flip(0) // 3).int().view(torch.float32),
    "zeros of both signs": lambda n: torch.where(torch.arange(n) % 3 == 0, -0.0, 0.0),
    "largest and smallest": lambda n: torch.where(torch.arange(n) % 5 == 0, 3.4028234663852886e38, 1e-45),
}


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("values", AWKWARD)
@pytest.mark.parametrize("filters", [1, 129, 300])
def test_threshold_of_awkward_values(values, filters):
    importance = AWKWARD[values](filters)
    rates = (0.0, 0.37, 0.999)
    wanted = [importance.sort().values[int(filters * rate)].item() for rate in rates]
    assert thresholds(importance, rates) == wanted


@counted
def test_threshold_among_more_candidates_than_a_block_holds(monkeypatch, method):
    monkeypatch.setattr(steps, "THRESHOLD_CANDIDATES", 8)
    monkeypatch.setattr(steps, "THRESHOLD_LANES", 64)
    monkeypatch.setattr(steps, "THRESHOLD_ITEMS", 1)
    importance = AWKWARD["every pivot is small"](700)
    assert thresholds(importance, [0.5]) == [importance.sort().values[350].item()]


@pytest.mark.usefixtures("method")
def test_counts_start_at_zero_after_a_poisoned_step():
    values = AWKWARD["half equal"](300)
    values[299] = float("nan")
    assert torch.tensor(thresholds(values, [0.5])).isnan().all()


def test_large_layers_and_long_rows_come_first():
    weights = [torch.zeros(n, c, 1, 1) for n, c in ((20, 8), (100, 2), (3, 600), (0, 5), (40, 300))]
    layout = BankView(weights, [0] * 5, [0, 1, 0, 0, 1]).layout
    static = tables.matching_tables(layout.segments, 2, HERE)
    kinds, owners = static.programs[:, :2].T.tolist()
    assert list(dict.fromkeys(zip(kinds, owners, strict=True))) == [(1, 1), (1, 0), (2, 1), (2, 4), (2, 0), (2, 2)]
    assert layer_tables.row_tiles(layout, HERE)[0][:, 0].unique_consecutive().tolist() == [2, 4, 0, 1]


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, -1e-45])
@pytest.mark.parametrize("where", [0, 150, -1])
def test_bad_importance_stops_the_step(value, where):
    values = matrix.importances(matrix.SIZES, "normal")
    values[where] = value
    bank = wk.FilterBank([torch.zeros(n) for n in matrix.SIZES], groups=[i % 2 for i in range(20)])
    counter = torch.tensor([2, 3], dtype=torch.int32)
    with wk.use_backend("triton"):
        found = wk.match_filters(
            bank, values, rate=0.9, local_ratio=[0.5, None], starvation=counter, starvation_limit=1.0
        )
    assert found.donor.eq(-1).all()
    assert found.threshold.isnan().all()
    assert found.inferior.eq(0).all()
    assert counter.tolist() == [2, 3]


def test_rates_out_of_range_are_clamped():
    bank = wk.FilterBank([torch.zeros(n) for n in (5, 12)], groups=[0, 1])
    values = matrix.importances((5, 12), "normal")
    nan, inf = float("nan"), float("inf")
    for rates, wanted in (((nan, -2.0), (0, 0)), ((7.0, inf), (4, 11)), ((-inf, 0.99), (0, 11))):
        rule = MatchingRule(torch.tensor(rates).double(), [0.1, 0.1], None, inf, [False, False])
        _, threshold, _ = steps.match_filters(values, bank.segments, rule)
        parts = values.split([5, 12])
        assert threshold.tolist() == [part.sort().values[k].item() for part, k in zip(parts, wanted, strict=True)]


@rules
@mixes
def test_crossover(mix, rule):
    matrix.check_crossover("cpu", *mix, rule)


@rules
@pytest.mark.parametrize("flavour", ["ties", "zeros", "tiny"])
def test_crossover_of_awkward_values(flavour, rule):
    matrix.check_crossover("cpu", matrix.DTYPES, "contiguous", rule, flavour)


@rules
@dtypes
def test_crossover_of_values_that_are_not_finite(dtype, rule):
    """NaN and inf among the weights, sums that cancel, and sizes that overflow the dtype: as in the reference."""
    large = float(torch.finfo(dtype).max)
    row = [float("nan"), float("inf"), -large, large, 0.0, -0.0, 1.0, -1.0, large / 2]
    weight = torch.tensor([[[v, w, 1.0], [w, v, 1.0]] for v in row for w in row]).to(dtype).view(9, 9, 2, 3)
    weights = [weight.clone(), weight.flip(3).clone(), weight.flatten(1)[:, :, None, None].clone()]
    donor = torch.tensor([8, 7, 6, 5, -1, -1, -1, -1, -1] * 3, dtype=torch.int32)
    expected = copy.deepcopy(weights)
    with wk.use_backend("torch"):
        wk.crossover_(wk.FilterBank(expected), donor, rule)
    with wk.use_backend("triton"):
        wk.crossover_(wk.FilterBank(weights), donor, rule)
    for ours, wanted in zip(weights[:2], expected[:2], strict=True):
        assert torch.equal(matrix.as_bits(ours), matrix.as_bits(wanted))
    torch.testing.assert_close(weights[2], expected[2], equal_nan=True)


def test_crossover_ignores_donors_outside_of_the_layer():
    weights = [torch.randn(4, 3, 3, 3), torch.randn(6, 2, 3, 3)]
    before = copy.deepcopy(weights)
    donor = torch.tensor([4, -1, -7, 2**31 - 1, 6, -(2**31), 9, -1, -1, -1], dtype=torch.int32)
    with wk.use_backend("triton"):
        wk.crossover_(wk.FilterBank(weights), donor, validate=False)
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))


def test_programs_take_several_filters_in_turn(monkeypatch):
    monkeypatch.setattr(steps, "PROGRAMS", 3)
    monkeypatch.setattr(steps, "FILTER_PROGRAMS", 3)
    matrix.check_crossover("cpu", matrix.DTYPES, "contiguous", "paper")
    matrix.check_evolution("cpu", matrix.DTYPES, "contiguous", "released")


@pytest.mark.parametrize(("part", "parts"), [(1, 2), (64, 2), (70, 1)])
def test_programs_share_a_filter(monkeypatch, launches, part, parts):
    """Filters of one, several and no whole number of warps, and a blend, which is not shared."""
    monkeypatch.setattr(crossover, "PART", part)
    for cached in (layout_of, segments_of):  # and the tables that go with them
        cached.cache_clear()
    weights = [random_values(shape, torch.float32, 3) for shape in ((6, 70, 3, 3), (5, 4, 3, 3), (6, 100, 1, 1))]
    banks = [wk.FilterBank(copy.deepcopy(weights), groups=[0, 0, 1]) for _ in range(2)]
    donors = []
    for backend, bank in zip(("torch", "triton"), banks, strict=True):
        with wk.use_backend(backend):
            donors.append(wk.evolve_(bank, rate=0.7, local_ratio=None).donor)
    assert launches[-1][1][-1] == parts
    assert donors[0].tolist() == donors[1].tolist()
    assert all(rows.ge(0).any() for rows in banks[0].split(donors[0]))
    for wanted, found in zip(*(bank.weights for bank in banks), strict=True):
        torch.testing.assert_close(found, wanted)
    assert torch.equal(banks[0].weights[0], banks[1].weights[0])


@rules
@pytest.mark.parametrize("types", [matrix.DTYPES[:1], matrix.DTYPES], ids=["float32", "mixed"])
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last", "shifted"])
def test_evolution(types, memory_format, rule):
    matrix.check_evolution("cpu", types, memory_format, rule)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layer", [0, 5, 9])
def test_one_bad_weight_stops_the_step(value, layer):
    matrix.check_poison("cpu", value, layer)


@pytest.mark.parametrize("channels", [40, 4])
def test_vector_guard_is_exercised(channels):
    """Rows that may and that may not be read in vectors give the same sums."""
    values = random_values((6, channels, 3, 3), torch.float32, 1)
    aligned = torch.empty(values.numel() + 8)
    start = -(aligned.data_ptr() // 4) % 4
    weights = [aligned[start + shift :][: values.numel()].view_as(values) for shift in (0, 1)]
    found = []
    for weight in weights:
        weight.copy_(values)
        assert (weight.data_ptr() % 16 == 0) == (weight is weights[0])
        with wk.use_backend("triton"):
            found.append(wk.filter_importance(wk.FilterBank([weight])))
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], values.abs().sum((1, 2, 3)) / channels)


def test_dense_rows_are_recognised():
    """In any order, but without gaps."""
    column = (*Layer._fields, *EXTRA_FIELDS).index("dense")
    wanted = {"contiguous": True, "channels_last": True, "sliced": False, "shifted": True, "transposed": False}
    for memory_format, dense in wanted.items():
        case = place(torch.zeros(4, 5, 3, 3), memory_format)
        layout = BankView([case.weight], [0], ()).layout
        assert bool(layer_tables.layers(layout, HERE)[0, column]) == dense, memory_format


def test_moved_weights_are_found_again():
    module = torch.nn.Conv2d(3, 8, 3)
    bank = wk.FilterBank([module.weight])
    with wk.use_backend("triton"):
        first = wk.filter_importance(bank)
        old = module.weight.data
        module.weight.data = old * 2
        torch.testing.assert_close(wk.filter_importance(bank), 2 * first)
        wk.evolve_(bank, rate=0.6, local_ratio=None)
        assert torch.equal(old.abs().sum((1, 2, 3)) / 3, first) or torch.allclose(old.abs().sum((1, 2, 3)) / 3, first)


@pytest.fixture
def launches():
    seen = []

    def record(name, arguments, constants):
        seen.append((name, arguments, constants))

    launch.observers.append(record)
    yield seen
    launch.observers.remove(record)


def evolve(weights, **options):
    groups = [i % 2 for i in range(len(weights))]
    counter = torch.zeros(max(groups) + 1, dtype=torch.int32)
    options = {"rate": 0.5, "local_ratio": 0.5, "starvation": counter, "starvation_limit": 2.0} | options
    with wk.use_backend("triton"):
        wk.evolve_(wk.FilterBank(weights, groups=groups), **options)


@pytest.mark.parametrize("layers", [2, 3, 40])
def test_three_launches_whatever_the_number_of_layers(launches, layers):
    evolve([torch.randn(3 + i % 4, 2, 3, 3) for i in range(layers)])
    assert [name for name, *_ in launches] == [
        "importance_kernel",
        "matching_kernel",
        "match_and_cross_kernel",
    ]


def test_two_more_launches_for_each_further_dtype(launches):
    evolve([torch.randn(5, 2, 3, 3).to(dtype) for dtype in matrix.DTYPES[:3] * 2])
    assert len(launches) == 3 + 2 * 2


def test_tables_and_scratch_are_made_once(launches, monkeypatch):
    weights = [torch.randn(6, 2, 3, 3), torch.randn(9, 4, 1, 1)]
    evolve(weights)
    made = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: made.append(args) or empty(*args, **kwargs))
    monkeypatch.setattr(transfer, "refuse_capture", None)
    evolve(weights)
    assert len(made) == 4  # importance, donor, threshold, inferior
    first, second = launches[:3], launches[3:]
    for (_, before, _), (_, after, _) in zip(first, second, strict=True):
        assert len(before) == len(after)
    assert first[1][1][-1].data_ptr() == second[1][1][-1].data_ptr()  # first_match


def activations_of_every_kind(dtype):
    """Channels or positions lie closer together; one, two or more dimensions of positions count."""
    return (
        torch.randn(2, 70).to(dtype),
        torch.randn(3, 5, 7, 2).to(dtype, memory_format=torch.channels_last)[:, :, ::2],
        place(torch.randn(2, 2, 2, 2, 70).to(dtype), "sliced").weight.movedim(-1, 1),
        torch.randn(3, 2).to(dtype).t(),
        torch.randn(2, 3, 64).to(dtype),
        place(torch.randn(2, 3, 2, 2, 2).to(dtype), "sliced").weight,
    )


def test_every_launch_is_compiled_ahead_of_time(launches):
    """What is launched, with which constants and argument types, is on the list that aot_table.py compiles."""
    from tests.triton import aot_table

    for starvation in (None, torch.zeros(2, dtype=torch.int32)):
        for rule in ("paper", "released"):
            weights = [torch.randn(5, 2, 3, 3).to(dtype) for dtype in matrix.DTYPES]
            limit = None if starvation is None else 1.0
            evolve(weights, rule=rule, starvation=starvation, starvation_limit=limit)
            donor = torch.full((20,), -1, dtype=torch.int32)
            with wk.use_backend("triton"):
                bank = wk.FilterBank(weights)
                wk.match_filters(bank, torch.rand(20), rate=0.5)
                wk.crossover_(bank, donor, rule)
                wk.filter_overlap(bank)
    with wk.use_backend("triton"):
        other = wk.FilterBank([torch.randn_like(weight) for weight in weights])
        for per, size in (("tensor", 4), ("filter", 20)):
            wk.weight_entropy(bank, per=per)
            wk.weight_entropy(wk.FilterBank(weights[:1]), 256, per=per)
            wk.blend_(bank, other, torch.rand(size), per=per)
        for activation in (found for dtype in matrix.DTYPES for found in activations_of_every_kind(dtype)):
            sums = torch.zeros(activation.shape[1], dtype=torch.promote_types(activation.dtype, torch.float32))
            wk.add_channel_activity_(sums, activation)
    elsewhere = ("select_kernel", "snapshot_kernel", "sgd_kernel")  # test_asynchronous_interpreted.py
    elsewhere += ("correction_kernel", "adamw_kernel")  # test_adamw_interpreted.py
    # test_reactivation_interpreted.py
    elsewhere += ("dormant_kernel", "dormant_parents_kernel", "unit_sums_kernel", "write_units_kernel")
    listed = {variant.key() for variant in aot_table.variants() if variant.kernel.__name__ not in elsewhere}
    for name, arguments, constants in launches:
        if name == "matching_kernel":
            constants = constants | {"LAYERS": steps.STARVATION_TILE}
        assert aot_table.key(name, constants) in listed
        types = [aot_table.type_of(argument) for argument in arguments]
        assert types == aot_table.signature(name, constants.get("DTYPE")), name
    assert {name for name, *_ in launches} == {name for name, _ in listed}


def test_bank_without_filters():
    weights = [torch.empty(0, 3, 3, 3), torch.empty(0)]
    counter = torch.tensor([4], dtype=torch.int32)
    with wk.use_backend("triton"):
        found = wk.evolve_(wk.FilterBank(weights), rate=0.5, local_ratio=None, starvation=counter, starvation_limit=2.0)
    assert found.donor.shape == found.importance.shape == (0,)
    assert found.threshold.tolist() == [0.0]
    assert found.inferior.tolist() == [0, 0]
    assert counter.tolist() == [4]


@pytest.mark.parametrize("layers", [1, 2, 30])
def test_overlap_takes_as_many_launches_whatever_the_number_of_layers(launches, layers):
    with wk.use_backend("triton"):
        wk.filter_overlap(wk.FilterBank([torch.randn(3 + i % 4, 2, 3, 3) for i in range(layers)]))
    assert [name for name, *_ in launches] == ["unit_rows_kernel", "overlap_kernel", "overlap_mean_kernel"]


def test_activations_of_too_many_positions_are_taken_in_halves(launches, monkeypatch):
    activation = torch.randn(4, 5, 7, 3)
    expected = wk.channel_activity(activation)
    monkeypatch.setattr(activity_launches, "MOST_POSITIONS", 30)
    with wk.use_backend("triton"):
        torch.testing.assert_close(wk.channel_activity(activation), expected, rtol=1e-6, atol=0)
        sums = torch.full((2,), torch.nan)
        wk.add_channel_activity_(sums, activation, offset=1, block=2, overwrite=True)
    torch.testing.assert_close(sums, expected[1:].view(2, 2).sum(1) * 84, rtol=1e-6, atol=0)
    positions = [arguments[4] for name, arguments, _ in launches if name == "activity_parts_kernel"]
    assert len(positions) == 4 + 8  # pairs of channels have twice as many
    assert max(positions) <= 30


def test_long_parts_of_activations_are_of_a_bounded_number_of_tiles(launches, monkeypatch):
    monkeypatch.setattr(activity_launches, "WANTED_PROGRAMS", 1)
    monkeypatch.setattr(activity_launches, "MOST_TILES", 2)
    for activation in (torch.randn(1500, 3).t().contiguous().t(), torch.randn(500, 70)):
        with wk.use_backend("triton"):
            found = wk.channel_activity(activation)
        torch.testing.assert_close(found, activation.abs().mean(0), rtol=1e-5, atol=0)
    assert [arguments[6] for name, arguments, _ in launches if name == "activity_parts_kernel"] == [3, 8]
