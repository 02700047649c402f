"""dormant_units and reactivate_: against loops over elements, bad input, what stays as it is."""

import copy
import math

import pytest
import torch

import we_kernels as wk
from tests.banks import DTYPES
from tests.units import UNITS, as_wanted, check_dormant, check_reactivation, make_plan
from we_kernels.reactivation import rule
from we_kernels.reactivation.plan import VALUES

SCALES = ("layer", "initial", "targets")


def test_names_of_values():
    assert [getattr(rule, name.upper().replace(" ", "_")) for name in VALUES] == list(range(len(VALUES)))


@pytest.mark.sampled(8)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_loops(backend, dtype, scale):
    check_reactivation("cpu", dtype, scale)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_none_and_all(backend, share):
    check_reactivation("cpu", torch.float32, "layer", share=share)


@pytest.mark.parametrize("formats", ["channels_last", "sliced"])
def test_strides(backend, formats):
    check_reactivation("cpu", torch.float32, "layer", formats=formats)


def test_nothing_is_written_when_nothing_is_revived(backend):
    plan = make_plan(torch.float32)
    before = [item.tensor.clone() for item in plan.items]
    plan.items[0].tensor[0, 0, 0, 0] = before[0][0, 0, 0, 0] = -math.nan
    wk.reactivate_(plan, torch.zeros(UNITS, dtype=torch.bool), seed=0, step=0, given=[3.0, 4.0, 5.0])
    for item, was in zip(plan.items, before, strict=True):
        assert torch.equal(item.tensor.view(torch.int32), was.view(torch.int32))


def test_random_numbers_depend_on_seed_step_and_tensor(backend):
    found = []
    for seed, step in ((0, 0), (1, 0), (0, 1), (2**63 - 1, 2**63 - 1)):
        units = torch.arange(4)
        tensors = [torch.zeros(4, 40) for _ in range(2)]
        plan = wk.UnitPlan([wk.UnitTensor(tensor, rows=units, row_value="draw") for tensor in tensors], 4)
        wk.reactivate_(plan, torch.ones(4, dtype=torch.bool), seed=seed, step=step)
        found += tensors
    for i, one in enumerate(found):
        assert all(not torch.equal(one, other) for other in found[:i])
        assert one.abs().max() <= 1 / math.sqrt(40)
    assert abs(torch.cat(found).mean()) < 0.005
    assert torch.cat(found).std() == pytest.approx(1 / math.sqrt(40 * 3), rel=0.05)


def test_known_numbers():
    """What earlier versions drew: a run that is resumed goes on alike."""
    weight = torch.zeros(2, 3)
    plan = wk.UnitPlan([wk.UnitTensor(weight, rows=torch.tensor([-1, 0]), row_value="draw")], 1)
    wk.reactivate_(plan, torch.tensor([True]), seed=7, step=11)
    torch.testing.assert_close(weight, as_wanted(weight, seed=7, step=11, rows=[1]), rtol=0, atol=0)


def test_step_on_the_device(backend):
    weights = [torch.zeros(3, 5) for _ in range(2)]
    for weight, step in zip(weights, (2**40 + 3, torch.tensor([2**40 + 3])), strict=True):
        plan = wk.UnitPlan([wk.UnitTensor(weight, rows=torch.arange(3), row_value="draw")], 3)
        wk.reactivate_(plan, torch.ones(3, dtype=torch.bool), seed=5, step=step)
    assert torch.equal(*weights)


@pytest.mark.parametrize("scale", ["initial", "targets"])
def test_the_default_dtype_does_not_matter(backend, scale):
    weights = [torch.zeros(3, 500) for _ in range(2)]
    targets, revived = torch.full((3,), 0.7), torch.ones(3, dtype=torch.bool)
    try:
        for weight, dtype in zip(weights, (torch.float32, torch.float64), strict=True):
            plan = wk.UnitPlan([wk.UnitTensor(weight, rows=torch.arange(3), row_value="draw")], 3)
            torch.set_default_dtype(dtype)
            wk.reactivate_(plan, revived, seed=5, step=1, scale=targets if scale == "targets" else scale)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(*weights)


def test_means_leave_out_what_is_not_finite_and_what_is_written(backend):
    state = torch.tensor([[1.0, 100.0], [3.0, math.inf], [50.0, 60.0], [5.0, math.nan]])
    units = torch.tensor([-1, -1, 0, -1])
    plan = wk.UnitPlan([wk.UnitTensor(state, rows=units, row_value="mean")], 1)
    wk.reactivate_(plan, torch.tensor([True]), seed=0, step=0)
    assert state[2].tolist() == [109 / 4] * 2
    alone, gamma = torch.tensor([2.0, 4.0]), torch.tensor([2.0, 4.0])
    both = torch.tensor([0, 0])
    plan = wk.UnitPlan(
        [wk.UnitTensor(alone, both, row_value="mean"), wk.UnitTensor(gamma, both, row_value="mean or one")], 1
    )
    wk.reactivate_(plan, torch.tensor([True]), seed=0, step=0)
    assert alone.tolist() == [3.0, 3.0]
    assert gamma.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_living_weights_without_a_norm_scale_nothing(backend, bad):
    weight = torch.full((3, 4), bad)
    plan = wk.UnitPlan([wk.UnitTensor(weight, rows=torch.arange(3), row_value="draw")], 3)
    wk.reactivate_(plan, torch.tensor([True, False, False]), seed=7, step=11)
    plain = torch.zeros(3, 4)
    wanted = as_wanted(plain, seed=7, step=11, rows=[0])
    assert torch.equal(weight[0], wanted[0])


@pytest.mark.parametrize("threshold", [0.0, 0.025, 0.1, 3.0])
def test_dormant_units(backend, threshold):
    check_dormant("cpu", threshold)


def test_dormant_units_of_awkward_layers(backend):
    activity = torch.tensor([0.0, 0.0, 0.0, 1.0, math.nan, 0.0, math.inf, 0.0, 1.0, 1e-12, 1e-12])
    found = wk.dormant_units(activity, [2, 1, 3, 2, 1, 2], 0.1)
    dead, nothing = [True, True, True], [False] * 5
    assert found.tolist() == [*dead, *nothing, False, True, True]


def test_parents_of_parents(backend):
    activity = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    parents = torch.tensor([-1, -1, 0, 0, 1, 1, 3, 5], dtype=torch.int32)
    found = wk.dormant_units(activity, [2, 4, 2], 0.1, parents=parents)
    assert found.tolist() == [True, False, True, True, False, False, True, False]
    grandchild = wk.dormant_units(
        torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        [2, 2, 2],
        0.1,
        parents=torch.tensor([-1, -1, 0, 1, 2, 3], dtype=torch.int32),
    )
    assert grandchild.tolist() == [True, False] * 3


def test_opcheck(backend, opcheck):
    plan = make_plan(torch.float32)
    view = plan.view()
    revived = torch.arange(UNITS) % 3 == 0
    given, step = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([5])
    opcheck(torch.ops.we_kernels.reactivate_.default, (*view, revived, given, True, None, 3, step))
    parents = torch.full((6,), -1, dtype=torch.int32)
    opcheck(torch.ops.we_kernels.dormant_units.default, (torch.rand(6), [2, 4], parents, 0.1))


def plan_of(**options):
    return wk.UnitPlan([wk.UnitTensor(torch.zeros(4, 6, 3), **options)], 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": torch.arange(3)}, r"rows of tensor must have shape \(4,\), got \(3,\)"),
        ({"rows": torch.tensor([0, 1, 2, 4])}, "rows of tensor must be from -1 to 3, got 0 to 4"),
        ({"rows": torch.tensor([-2, 1, 2, 3])}, "from -1 to 3, got -2 to 3"),
        ({"rows": torch.rand(4)}, "rows of tensor must be an int32 or int64 tensor"),
        ({"columns": torch.arange(6), "groups": 2}, r"columns of tensor must have shape \(12,\)"),
        ({"groups": 3}, "groups of tensor must divide its 4 rows, got 3"),
        ({"row_value": "draw"}, "tensor has no rows of units"),
        ({"column_value": "zero"}, "tensor has no columns of units"),
        ({"rows": torch.arange(4), "row_value": "two"}, "row_value of tensor must be"),
        (
            {"rows": torch.arange(4), "columns": torch.zeros(6).long(), "row_value": "draw", "column_value": "draw"},
            '"draw" for its rows or its columns, not for both',
        ),
    ],
)
def test_plans_that_cannot_be(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        plan_of(**options)


def test_tensors_that_cannot_be():
    for tensor, message in (
        (torch.zeros(3, dtype=torch.int32), "must be float32, float64, float16 or bfloat16"),
        (torch.zeros(2, 0), "has no elements"),
        (torch.zeros(3, 1).expand(3, 4), "overlaps itself"),
        (torch.zeros(1, 1, 1, 1, 1, 1), "1 to 5 dimensions"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            wk.UnitPlan([wk.UnitTensor(tensor)], 0)
    weight = torch.zeros(4, 4)
    with pytest.raises(ValueError, match="twice"):
        wk.UnitPlan([wk.UnitTensor(weight), wk.UnitTensor(weight)], 0)
    with pytest.raises(ValueError, match="second overlaps first"):
        wk.UnitPlan([wk.UnitTensor(weight, name="first"), wk.UnitTensor(weight[1:], name="second")], 0)


def test_bad_calls_change_nothing(backend):
    plan = make_plan(torch.float32)
    before = [item.tensor.clone() for item in plan.items]
    revived = torch.ones(UNITS, dtype=torch.bool)
    good = {"revived": revived, "seed": 0, "step": 0, "given": [1.0, 2.0, 3.0]}
    for options, message in (
        ({"revived": revived[1:]}, "revived must have shape"),
        ({"revived": revived.float()}, "revived must be torch.bool"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"step": 2**63}, "step must be in"),
        ({"step": torch.zeros(2, dtype=torch.int64)}, "step must have shape"),
        ({"scale": "mean"}, "scale must be"),
        ({"scale": torch.ones(3)}, "scale must have shape"),
        ({"given": [1.0]}, "given must have one number"),
        ({"given": torch.ones(3).double()}, "given must be torch.float32"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            wk.reactivate_(plan, **(good | options))
    with pytest.raises(TypeError, match="plan must be a UnitPlan"):
        wk.reactivate_([], revived, seed=0, step=0)
    for arguments, message in (
        ((torch.rand(3), [2], 0.1), "activity must have shape"),
        ((torch.rand(2).double(), [2], 0.1), "activity must be torch.float32"),
        ((torch.rand(2), [2, 0], 0.1), "sizes must be positive"),
        ((torch.rand(2), [2], -0.1), "threshold must be a finite number from 0"),
        ((torch.rand(2), [2], math.nan), "threshold must be a finite number from 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            wk.dormant_units(*arguments)
    with pytest.raises(TypeError, match=r"parents must be torch\.int32"):
        wk.dormant_units(torch.rand(2), [2], 0.1, parents=torch.tensor([-1, 0]))
    assert all(torch.equal(item.tensor, was) for item, was in zip(plan.items, before, strict=True))


def test_tensors_that_changed_under_the_plan(backend):
    weight = torch.nn.Parameter(torch.zeros(3, 5))
    plan = wk.UnitPlan([wk.UnitTensor(weight, torch.arange(3), row_value="one", name="fc.weight")], 3)
    weight.data = torch.zeros(3, 5)
    wk.reactivate_(plan, torch.tensor([False, True, False]), seed=0, step=0)
    assert weight.tolist() == [[0.0] * 5, [1.0] * 5, [0.0] * 5]
    weight.data = torch.zeros(4, 5)
    with pytest.raises(ValueError, match=r"fc\.weight was resized"):
        wk.reactivate_(plan, torch.tensor([False, True, False]), seed=0, step=0)


def test_a_copied_plan_writes_to_its_own_tensors(backend):
    plan = wk.UnitPlan([wk.UnitTensor(torch.zeros(3, 5), torch.arange(3), row_value="one")], 3)
    plan.view()
    copied = copy.deepcopy(plan)
    wk.reactivate_(copied, torch.ones(3, dtype=torch.bool), seed=0, step=0)
    assert copied.items[0].tensor.all()
    assert not plan.items[0].tensor.any()
