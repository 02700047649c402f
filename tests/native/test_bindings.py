"""The extension refuses what would make it touch memory that it was not given."""

import pytest
import torch

import we_kernels as wk
from we_kernels.runtime.layout import Layer
from we_kernels.runtime.view import BankView

FIELDS = Layer._fields


class Call:
    """Arguments of the extension's functions for two small layers; change one and see it refused."""

    def __init__(self):
        self.weights = [torch.full((4, 3, 3, 3), 7.0), torch.full((5, 2), 7.0).double()]
        layout = BankView(self.weights, [0, 0], ()).layout
        self.table = layout.table.clone()
        self.filters = 9
        self.pointers = [weight.data_ptr() for weight in self.weights]
        self.rates = torch.tensor([0.5], dtype=torch.float64)
        self.importance = torch.full((9,), -7.0)
        self.donor = torch.full((9,), -7, dtype=torch.int32)
        self.threshold = torch.full((1,), -7.0)
        self.inferior = torch.full((2,), -7, dtype=torch.int32)

    def evolve(self, native, **changes):
        a = {
            "weights": self.pointers,
            "table": self.table.data_ptr(),
            "num_layers": 2,
            "num_filters": self.filters,
            "rates": self.rates.data_ptr(),
            "local_ratios": [0.5],
            "zero_is_inferior": [True],
            "starvation": 0,
            "limit": float("inf"),
            "rule": "paper",
            "donor": self.donor.data_ptr(),
            "importance": self.importance.data_ptr(),
            "threshold": self.threshold.data_ptr(),
            "inferior": self.inferior.data_ptr(),
            "threads": 1,
        }
        native.evolve(*(a | changes).values())

    def assert_untouched(self):
        assert all(bool((weight == 7).all()) for weight in self.weights)
        for output in (self.importance, self.donor, self.threshold, self.inferior):
            assert bool((output == -7).all())


def test_a_good_call_works(native):
    call = Call()
    call.evolve(native)
    assert call.importance.tolist() == [63.0] * 4 + [7.0] * 5
    assert call.threshold.tolist() == [7.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [16]}, "1 weights for a table of 2 layers"),
        ({"weights": [0, 16]}, "layer 0 of the table: its weight has no memory"),
        ({"weights": [16, 20]}, "layer 1 of the table: its weight is misaligned"),
        ({"weights": [2**64 - 64, 16]}, "layer 0 of the table: its weight ends past all memory"),
        ({"table": 0}, "table is null"),
        ({"table": 12}, "table is misaligned"),
        ({"num_layers": -1}, "table has a negative size"),
        ({"num_filters": 8}, "importance has 8 elements, not 9"),
        ({"num_filters": -1}, "importance has a negative size"),
        ({"rates": 0}, "rates is null"),
        ({"rates": 4}, "rates is misaligned"),
        ({"local_ratios": []}, "group is not in"),
        ({"zero_is_inferior": [True, False]}, "zero_is_inferior has 2 elements, not 1"),
        ({"rule": "none"}, "rule must be"),
        ({"starvation": 2}, "starvation is misaligned"),
        ({"donor": 0}, "donor is null"),
        ({"importance": 0}, "importance is null"),
        ({"threshold": 0}, "threshold is null"),
        ({"inferior": 3}, "inferior is misaligned"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_bad_arguments(native, changes, message):
    call = Call()
    with pytest.raises(ValueError, match=message):
        call.evolve(native, **changes)
    call.assert_untouched()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("filters", -1, "filters is negative"),
        ("filters", 2**31, "more than 2\\^31 - 1 filters"),
        ("channels", 0, "a size is not positive"),
        ("kernel0", 0, "a size is not positive"),
        ("kernel1", -3, "a size is not positive"),
        ("kernel2", 2**62, "too many elements"),
        ("kernel2", 2**31, "a kernel has more than"),
        ("filter_stride", -27, "a stride is negative"),
        ("filter_stride", 2**61, "a stride is too large"),
        ("filter_stride", 0, "a stride is 0"),
        ("channel_stride", 1, "elements overlap"),
        ("stride2", 2**63 - 1, "a stride is too large"),
        ("dtype", 4, "dtype is not in"),
        ("dtype", -1, "dtype is not in"),
        ("blend", 2, "blend is neither 0 nor 1"),
        ("group", 1, "group is not in"),
        ("group", -1, "group is not in"),
        ("first_filter", 1, "first_filter is 1, not 0"),
    ],
)
def test_bad_tables(native, field, value, message):
    call = Call()
    call.table[0, FIELDS.index(field)] = value
    if field == "filter_stride" and value == 0:
        call.table[0, FIELDS.index("channel_stride")] = 2**20
    if field == "kernel2" and value == 2**31:  # a layer that would be possible, but for this
        call.table[0, FIELDS.index("filters")] = 1
        call.table[0, FIELDS.index("channels")] = 1
        call.table[1, FIELDS.index("first_filter")] = 1
    with pytest.raises(ValueError, match=f"layer 0 of the table: .*{message}"):
        call.evolve(native)
    call.assert_untouched()


def test_the_other_functions_check_too(native):
    call = Call()
    with pytest.raises(ValueError, match="importance has 8 elements, not 9"):
        native.filter_importance(call.pointers, call.table.data_ptr(), 2, call.importance.data_ptr(), 8, 1)
    with pytest.raises(ValueError, match="donor has 10 elements, not 9"):
        native.crossover(call.pointers, call.table.data_ptr(), 2, call.donor.data_ptr(), 10, "paper", 1)
    with pytest.raises(ValueError, match="rule must be"):
        native.crossover(call.pointers, call.table.data_ptr(), 2, call.donor.data_ptr(), 9, "papers", 1)
    segments = torch.tensor([[4, 0, 0], [5, 3, 0]])
    with pytest.raises(ValueError, match="layer 1 of the table: first_filter is 3, not 4"):
        native.match_filters(
            *(call.importance.data_ptr(), 9, segments.data_ptr(), 2, call.rates.data_ptr(), [0.5], [], 0, 1.0),
            *(call.donor.data_ptr(), call.threshold.data_ptr(), call.inferior.data_ptr(), 1),
        )
    with pytest.raises(TypeError):
        native.crossover(["here"], call.table.data_ptr(), 2, call.donor.data_ptr(), 9, "paper", 1)
    with pytest.raises(ValueError, match="no instruction set is called 'mmx'"):
        native.limit_simd("mmx")
    call.assert_untouched()


def test_donors_outside_the_layer_are_none(native):
    call = Call()
    call.donor[:] = torch.tensor([4, -2, 2**31 - 1, -(2**31), -1, 5, 9, 100, -9], dtype=torch.int32)
    native.crossover(call.pointers, call.table.data_ptr(), 2, call.donor.data_ptr(), 9, "paper", 1)
    assert all(bool((weight == 7).all()) for weight in call.weights)


def call_count_bins(native, call, **changes):
    counts = torch.full((9, 300), -7)
    a = {"weights": call.pointers, "table": call.table.data_ptr(), "num_layers": 2, "bins": 4, "per_filter": True}
    a |= {"counts": counts.data_ptr(), "rows": 9, "threads": 1}
    try:
        native.count_bins(*(a | changes).values())
    finally:
        if changes:
            assert bool((counts == -7).all())
    return counts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [16]}, "1 weights for a table of 2 layers"),
        ({"table": 0}, "table is null"),
        ({"bins": 0}, "bins is not in"),
        ({"bins": 257}, "bins is not in"),
        ({"rows": 2}, "counts has the wrong number of rows"),
        ({"per_filter": False}, "counts has the wrong number of rows"),
        ({"counts": 0}, "counts is null"),
        ({"counts": 4}, "counts is misaligned"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_count_bins_checks(native, changes, message):
    call = Call()
    assert (call_count_bins(native, call) != -7).sum() == 9 * 4
    with pytest.raises(ValueError, match=message):
        call_count_bins(native, call, **changes)
    call.assert_untouched()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [16, 16, 16]}, "weights are not one per network and layer"),
        ({"weights": []}, "weights are not one per network and layer"),
        ({"tables": []}, "weights are not one per network and layer"),
        ({"tables": [0, 0]}, "table is null"),
        ({"num_layers": -1}, "weights are not one per network and layer"),
        ({"coefficients": 0}, "coefficients is null"),
        ({"coefficients": 2}, "coefficients is misaligned"),
        ({"written": 0}, "written is not in"),
        ({"written": 3}, "written is not in"),
        ({"columns": 9}, "coefficients has the wrong size"),
        ({"per_filter": True}, "coefficients has the wrong size"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_blend_checks(native, changes, message):
    first, second, shares = Call(), Call(), torch.full((4,), 0.25)
    a = {"weights": first.pointers + second.pointers, "tables": [first.table.data_ptr(), second.table.data_ptr()]}
    a |= {"num_layers": 2, "coefficients": shares.data_ptr(), "written": 2, "columns": 2, "per_filter": False}
    a |= {"threads": 1}
    native.blend(*a.values())
    with pytest.raises(ValueError, match=message):
        native.blend(*(a | changes).values())
    first.assert_untouched()
    second.assert_untouched()


def test_blend_refuses_networks_that_differ(native):
    first, second, shares = Call(), Call(), torch.zeros(4)
    second.table[0, FIELDS.index("channels")] = 2
    tables = [first.table.data_ptr(), second.table.data_ptr()]
    with pytest.raises(ValueError, match="layer 0"):
        native.blend(first.pointers + second.pointers, tables, 2, shares.data_ptr(), 2, 2, False, 1)
    first.assert_untouched()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": 0}, "table is null"),
        ({"rate": 0}, "rate is null"),
        ({"rate": 4}, "rate is misaligned"),
        ({"step": 0}, "step is null"),
        ({"step": 4}, "step is misaligned"),
        ({"selected": 0}, "selected is null"),
        ({"num_filters": 8}, "selected has 8 elements, not 9"),
        ({"num_layers": -1}, "table has a negative size"),
    ],
)
def test_select_filters_checks(native, changes, message):
    segments = torch.tensor([[4, 0, 0], [5, 4, 0]])
    rate, step, selected = torch.tensor([0.5]).double(), torch.tensor([3]), torch.full((9,), 77, dtype=torch.uint8)
    a = {"table": segments.data_ptr(), "num_layers": 2, "rate": rate.data_ptr(), "seed": 1, "step": step.data_ptr()}
    a |= {"replacement": False, "selected": selected.data_ptr(), "num_filters": 9}
    with pytest.raises(ValueError, match=message):
        native.select_filters(*(a | changes).values())
    assert bool((selected == 77).all())
    native.select_filters(*a.values())
    assert selected.sum() == 4


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [16]}, "1 weights for a table of 2 layers"),
        ({"table": 12}, "table is misaligned"),
        ({"selected": 0}, "selected is null"),
        ({"num_filters": 10}, "selected has 10 elements, not 9"),
        ({"buffer": 0}, "buffer is null"),
        ({"buffer": 4}, "buffer is misaligned"),
        ({"bytes": 575}, "buffer has 575 elements, not 576"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_copy_unselected_checks(native, changes, message, restore):
    call, selected = Call(), torch.zeros(9, dtype=torch.uint8)
    buffer = torch.full((72,), -7.0).double()
    before = buffer.clone()
    a = {"weights": call.pointers, "table": call.table.data_ptr(), "num_layers": 2, "selected": selected.data_ptr()}
    a |= {"num_filters": 9, "buffer": buffer.data_ptr(), "bytes": 576, "restore": restore, "threads": 1}
    with pytest.raises(ValueError, match=message):
        native.copy_unselected(*(a | changes).values())
    assert torch.equal(buffer, before)
    call.assert_untouched()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [[], []]}, "weights and tables must be three"),
        ({"weights": [[16], [16], [16]]}, "1 weights for a table of 2 layers"),
        ({"tables": [0, 0, 0]}, "table is null"),
        ({"masked": b"\1"}, "masked and first need one entry a layer"),
        ({"first": b"\1\1\1"}, "masked and first need one entry a layer"),
        ({"masked": b"\1\0"}, "selected has 9 elements, not 4"),
        ({"selected": 0}, "selected is null"),
        ({"num_selected": 8}, "selected has 8 elements, not 9"),
        ({"lr": 0}, "lr is null"),
        ({"steps": [0, 0, 0]}, "steps must have one entry for each dtype"),
        ({"steps": [0, 0, 0, -1]}, "steps must not be negative"),
        ({"grain": 0}, "grain must be positive"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_asynchronous_sgd_checks(native, changes, message):
    calls, selected = [Call() for _ in range(3)], torch.ones(9, dtype=torch.uint8)
    lr = torch.tensor([0.1]).double()
    a = {"weights": [call.pointers for call in calls], "tables": [call.table.data_ptr() for call in calls]}
    a |= {"num_layers": 2, "masked": b"\1\1", "first": b"\0\0", "selected": selected.data_ptr(), "num_selected": 9}
    a |= {"lr": lr.data_ptr(), "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
    a |= {"maximize": False, "fused": True, "steps": [0, 0, 0, 0], "grain": 1, "threads": 1}
    with pytest.raises(ValueError, match=message):
        native.asynchronous_sgd(*(a | changes).values())
    for call in calls:
        call.assert_untouched()
    native.asynchronous_sgd(*a.values())
    assert all(bool((weight < 7).all()) for weight in calls[0].weights)


def test_asynchronous_sgd_refuses_tables_that_differ(native):
    calls, selected, lr = [Call() for _ in range(3)], torch.ones(9, dtype=torch.uint8), torch.tensor([0.1]).double()
    calls[1].table[1, FIELDS.index("channels")] = 1
    tables = [call.table.data_ptr() for call in calls]
    with pytest.raises(ValueError, match="layer 1 differs in size or dtype from table to table"):
        native.asynchronous_sgd(
            *([call.pointers for call in calls], tables, 2, b"\1\1", b"\0\0", selected.data_ptr(), 9, lr.data_ptr()),
            *(0.9, 0.0, 0.0, False, False, True, [0, 0, 0, 0], 1, 1),
        )
    for call in calls:
        call.assert_untouched()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": 0}, "activation: it has no memory"),
        ({"values": 6}, "activation: it is misaligned"),
        ({"values": 2**64 - 64}, "activation: it ends past all memory"),
        ({"dtype": 4}, "dtype is not in"),
        ({"dtype": -1}, "dtype is not in"),
        ({"columns": 0}, "a size is not positive"),
        ({"column_stride": -1}, "a stride is negative"),
        ({"run": 0}, "run or channels is not positive"),
        ({"channels": 0}, "run or channels is not positive"),
        ({"run": 2**62, "channels": 4}, "columns are not a multiple"),
        ({"channels": 4}, "columns are not a multiple"),
        ({"channels": 7}, "columns are not a multiple"),
        ({"sizes": [1, 1, 0, 3]}, "a size is not positive"),
        ({"sizes": [2**62, 1, 1, 3]}, "too many elements"),
        ({"strides": [0, 0, -18, 6]}, "a stride is negative"),
        ({"strides": [0, 0, 2**61, 6]}, "a stride is too large"),
        ({"sums": 0}, "sums is null"),
        ({"sums": 4}, "sums is misaligned"),
        ({"num_sums": 4}, "sums has 4 elements, not 3"),
        ({"num_sums": -1}, "sums has a negative size"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_add_activity_checks(native, changes, message):
    activation, sums = torch.full((2, 3, 6), -2.0), torch.full((3,), -7.0).double()
    a = {"values": activation.data_ptr(), "dtype": 0, "columns": 6, "column_stride": 1, "run": 1, "channels": 3}
    a |= {"sizes": [1, 1, 2, 3], "strides": [0, 0, 18, 6], "sums": sums.data_ptr(), "num_sums": 3, "wide": True}
    a |= {"overwrite": True, "threads": 1}
    with pytest.raises(ValueError, match=message):
        native.add_activity(*(a | changes).values())
    assert sums.tolist() == [-7.0] * 3
    native.add_activity(*a.values())
    assert sums.tolist() == [24.0] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activity": 0}, "activity is null"),
        ({"activity": 6}, "activity is misaligned"),
        ({"num_units": -1}, "activity has a negative size"),
        ({"num_units": 8}, "sizes must be positive and sum to the number of units"),
        ({"sizes": [4, 6]}, "sizes must be positive and sum to the number of units"),
        ({"sizes": [4, 0, 5]}, "sizes must be positive and sum to the number of units"),
        ({"sizes": [2**63 - 1, 2**63 - 1]}, "sizes must be positive and sum to the number of units"),
        ({"parents": 0}, "parents is null"),
        ({"parents": 2}, "parents is misaligned"),
        ({"num_parents": 8}, "parents has 8 elements, not 9"),
        ({"dormant": 0}, "dormant is null"),
    ],
)
def test_dormant_units_checks(native, changes, message):
    activity, parents = torch.zeros(9), torch.full((9,), -1, dtype=torch.int32)
    dormant = torch.full((9,), 77, dtype=torch.uint8)
    a = {"activity": activity.data_ptr(), "num_units": 9, "sizes": [4, 5], "parents": parents.data_ptr()}
    a |= {"num_parents": 9, "threshold": 0.1, "dormant": dormant.data_ptr()}
    if "num_units" in changes:
        changes = {"num_parents": 0} | changes
    with pytest.raises(ValueError, match=message):
        native.dormant_units(*(a | changes).values())
    assert bool((dormant == 77).all())
    native.dormant_units(*a.values())
    assert bool((dormant == 1).all())


@pytest.mark.parametrize("parent", [-(2**31), -2, 9, 2**31 - 1, 8])
def test_parents_that_there_are_not_are_none(native, parent):
    """Nor does one that is its own parent hang the program."""
    activity = torch.tensor([0.0, 1, 1, 1, 0, 1, 1, 1, 1])
    parents = torch.full((9,), parent, dtype=torch.int32)
    found = wk.dormant_units(activity, [4, 5], 0.1, parents=parents)
    assert found.tolist() == (activity == 0).tolist()


class UnitCall:
    """Arguments of ``reactivate`` for two tensors: rows that are drawn, and columns in two groups."""

    def __init__(self):
        self.tensors = [torch.full((4, 3, 3, 3), 7.0), torch.full((6, 2), 7.0).double()]
        self.table = BankView(self.tensors, [0, 0], ()).layout.table.clone()
        self.units = torch.arange(8, dtype=torch.int32)
        self.revived, self.given = torch.ones(8, dtype=torch.bool), torch.ones(1)
        self.targets, self.step = torch.ones(8), torch.ones(1, dtype=torch.int64)

    def __call__(self, native, **changes):
        a = {
            "tensors": [tensor.data_ptr() for tensor in self.tensors],
            "table": self.table.data_ptr(),
            "units": self.units.data_ptr(),
            "num_entries": 8,
            "rows": [0, -1],
            "columns": [-1, 4],
            "groups": [1, 2],
            "row_values": [3, 0],
            "column_values": [0, 6],
            "revived": self.revived.data_ptr(),
            "num_units": 8,
            "given": self.given.data_ptr(),
            "num_given": 1,
            "scaled": True,
            "targets": self.targets.data_ptr(),
            "seed": 1,
            "step": self.step.data_ptr(),
            "threads": 1,
        }
        native.reactivate(*(a | changes).values())

    def changed(self):
        return [bool((tensor != 7).any()) for tensor in self.tensors]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": [16]}, "rows, columns, groups and values need one entry a tensor"),
        ({"tensors": [0, 16]}, "layer 0 of the table: its weight has no memory"),
        ({"tensors": [16, 20]}, "layer 1 of the table: its weight is misaligned"),
        ({"table": 0}, "table is null"),
        ({"units": 0}, "units is null"),
        ({"units": 2}, "units is misaligned"),
        ({"num_entries": -1}, "units has a negative size"),
        ({"num_entries": 7}, "tensor 1: its columns are not among the units"),
        ({"rows": [5, -1]}, "tensor 0: its rows are not among the units"),
        ({"rows": [-2, -1]}, "tensor 0: its rows are not among the units"),
        ({"rows": [-1, -1]}, "tensor 0: its rows have a value, but no units"),
        ({"rows": [0]}, "rows, columns, groups and values need one entry a tensor"),
        ({"columns": [-1, 2**63 - 1]}, "tensor 1: its columns are not among the units"),
        ({"columns": [-1, -1]}, "tensor 1: its columns have a value, but no units"),
        ({"groups": [1, 4]}, "tensor 1: its groups do not divide its rows"),
        ({"groups": [0, 2]}, "tensor 0: its groups do not divide its rows"),
        ({"groups": [1, 3]}, "tensor 1: its columns are not among the units"),
        ({"row_values": [7, 0]}, "tensor 0: the value of its rows is not in"),
        ({"column_values": [0, -1]}, "tensor 1: the value of its columns is not in"),
        ({"columns": [0, 4], "column_values": [3, 6]}, "tensor 0: rows and columns are drawn, not both"),
        ({"revived": 0}, "revived is null"),
        ({"num_units": -1}, "revived has a negative size"),
        ({"given": 0}, "given is null"),
        ({"num_given": 0}, "given has 0 elements, not 1"),
        ({"num_given": 2}, "given has 2 elements, not 1"),
        ({"targets": 2}, "targets is misaligned"),
        ({"step": 0}, "step is null"),
        ({"step": 4}, "step is misaligned"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_reactivate_checks(native, changes, message):
    call = UnitCall()
    with pytest.raises(ValueError, match=message):
        call(native, **changes)
    assert call.changed() == [False, False]
    call(native)
    assert call.changed() == [True, True]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("filters", 0, "tensor 0: it has no rows"),
        ("filters", 2**30, "tensor 0: it has more than 2\\^31 - 1 elements"),
        ("channel_stride", 1, "layer 0 of the table: elements overlap"),
    ],
)
def test_reactivate_checks_tables(native, field, value, message):
    call = UnitCall()
    call.table[0, FIELDS.index(field)] = value
    if field == "filters":
        call.table[1, FIELDS.index("first_filter")] = value
    with pytest.raises(ValueError, match=message):
        call(native)
    assert call.changed() == [False, False]


@pytest.mark.parametrize("unit", [-(2**31), -2, 8, 2**31 - 1])
def test_units_that_there_are_not_are_none(native, unit):
    call = UnitCall()
    call.units[:4] = unit
    call(native)
    assert call.changed() == [False, True]


def adamw_arguments(calls):
    a = {"weights": [call.pointers for call in calls], "tables": [call.table.data_ptr() for call in calls]}
    a |= {"num_layers": 2, "row_resets": [0, 0], "column_resets": [0, 0], "groups": [1, 5], "steps": [3.0, 3.0]}
    a |= {"corrections": [(-0.1, 0.5)] * 2, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    a |= {"decoupled": True, "maximize": False, "roots": [0, 0, 0], "roots_mode": 0, "fused": True}
    return a | {"rounding_steps": [0, 0, 0, 0], "grain": 1, "threads": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [[], []]}, "weights and tables must be five"),
        ({"weights": [[16]] * 5}, "1 weights for a table of 2 layers"),
        ({"tables": [0] * 5}, "table is null"),
        ({"row_resets": [0]}, "steps, corrections, groups and resets need one entry a layer"),
        ({"column_resets": [2, 0]}, "column_resets is misaligned"),
        ({"groups": [1, 2]}, "groups of layer 1 must divide its filters"),
        ({"groups": [0, 1]}, "groups of layer 0 must divide its filters"),
        ({"steps": [1.0]}, "steps, corrections, groups and resets need one entry a layer"),
        ({"corrections": []}, "steps, corrections, groups and resets need one entry a layer"),
        ({"roots": [0]}, "roots must be three addresses"),
        ({"roots": [8, 0, 0]}, "roots need a limit of threads"),
        ({"rounding_steps": [0, 0, 0, -1]}, "steps must not be negative"),
        ({"grain": 0}, "grain must be positive"),
        ({"threads": 0}, "threads must be positive"),
    ],
)
def test_unit_adamw_checks(native, changes, message):
    calls = [Call() for _ in range(5)]
    arguments = adamw_arguments(calls)
    with pytest.raises(ValueError, match=message):
        native.unit_adamw(*(arguments | changes).values())
    for call in calls:
        call.assert_untouched()
    native.unit_adamw(*arguments.values())
    assert all(bool((weight < 7).all()) for weight in calls[0].weights)


def test_unit_adamw_refuses_tables_that_differ(native):
    calls = [Call() for _ in range(5)]
    calls[3].table[1, FIELDS.index("channels")] = 1
    with pytest.raises(ValueError, match="layer 1 differs in size or dtype from table to table"):
        native.unit_adamw(*adamw_arguments(calls).values())
    for call in calls:
        call.assert_untouched()
