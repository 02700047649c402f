"""The extension refuses what would make it touch memory that it was not given."""

import pytest
import torch

from we_kernels.layout import Layer, layout_of

FIELDS = Layer._fields


class Call:
    """Arguments of the extension's functions for two small layers; change one and see it refused."""

    def __init__(self):
        self.weights = [torch.full((4, 3, 3, 3), 7.0), torch.full((5, 2), 7.0).double()]
        layout = layout_of(self.weights, [0, 0], [0, 0])
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
            "rule": "paper",
            "starvation": 0,
            "limit": float("inf"),
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
            *(call.importance.data_ptr(), 9, segments.data_ptr(), 2, call.rates.data_ptr(), [0.5], 0, 1.0),
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
