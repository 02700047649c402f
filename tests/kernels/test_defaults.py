"""Results do not depend on torch's default dtype, default device and inference mode."""

import pytest
import torch

import we_kernels as wk
from tests.banks import DTYPES, random_values
from we_kernels.runtime import layout, transfer

SHAPES = [(6, 3, 3, 3), (5, 4, 1, 1), (7, 3), (9,)]
NAN = float("nan")


def weights():
    """Few and small: Triton's interpreter is slow."""
    return [random_values(shape, dtype, 0, "ties") for shape, dtype in zip(SHAPES, DTYPES, strict=True)]


def evolve(weights, **options):
    bank = wk.FilterBank(weights, groups=[i % 2 for i in range(len(weights))])
    counter = torch.zeros(2, dtype=torch.int32, device="cpu")
    found = wk.evolve_(
        bank, rate=[0.7, 0.4], local_ratio=[0.9, None], starvation=counter, starvation_limit=1.5, **options
    )
    return [*found, counter, *weights]


def evolve_with_a_nan(weights):
    weights[0][1] = NAN
    return evolve(weights)


def step_by_step(weights):
    bank = wk.FilterBank(weights)
    importance = wk.filter_importance(bank)
    found = wk.match_filters(bank, importance, rate=0.7)
    wk.crossover_(bank, found.donor)
    return [*found, *weights]


def graft(weights):
    bank = wk.FilterBank(weights)
    others = wk.FilterBank([2 * weight for weight in weights])
    measures = [f(bank, per=per) for f in (wk.weight_entropy, wk.weight_l1) for per in ("tensor", "filter")]
    share = torch.full((len(bank),), 0.25, dtype=torch.float32, device="cpu")
    wk.blend_(bank, others, share, per="tensor")
    wk.blend_ring_([bank, others], [share, share], per="tensor")
    return [*measures, *bank.weights, *others.weights]


def overlap(weights):
    return [*wk.filter_overlap(wk.FilterBank(weights))]


def measure_activity(weights):
    sums = [torch.zeros(weight.shape[0], dtype=torch.float32, device="cpu") for weight in weights]
    for own, weight in zip(sums, weights, strict=True):
        wk.add_channel_activity_(own, weight, 0)
    return [*sums, *(wk.channel_activity(weight, 0) for weight in weights)]


def update_asynchronously(weights):
    bank = wk.FilterBank(weights)
    selected = wk.select_filters(bank, 0.5, seed=1, step=2)
    again = wk.select_filters(bank, 0.5, seed=1, step=2, replacement=True)
    buffer = wk.unselected_buffer(bank).zero_()
    wk.save_unselected_(bank, selected, buffer)
    grads, momenta = [weight / 2 for weight in weights], [weight / 4 for weight in weights]
    wk.asynchronous_sgd_(weights, grads, momenta, [0] * len(weights), selected, lr=0.1, momentum=0.9)
    wk.restore_unselected_(bank, again, buffer)
    return [selected, again, *weights, *momenta]


def reactivate(weights):
    rows = [torch.arange(len(weight), dtype=torch.int32, device="cpu") for weight in weights]
    values = ("draw", "draw", "mean", "given")
    plan = wk.UnitPlan(
        [wk.UnitTensor(*parts, row_value=value) for *parts, value in zip(weights, rows, values, strict=True)], 9
    )
    activity = torch.arange(9, dtype=torch.float32, device="cpu")
    parents = activity.int() - 5
    dormant = [wk.dormant_units(activity, [4, 5], 0.2), wk.dormant_units(activity, [4, 5], 0.2, parents=parents)]
    wk.reactivate_(plan, dormant[0], seed=3, step=4, given=[0.1])
    return [*dormant, *weights]


def update_by_adamw(weights):
    states = [[weight / k for weight in weights] for k in (2, 4)]
    squares = [weight * weight for weight in weights]
    rows = [torch.ones(len(weight), dtype=torch.float32, device="cpu") for weight in weights[:-1]]
    wk.unit_adamw_(weights, *states, squares, None, [*rows, None], None, 1, [3] * len(weights), lr=0.1)
    return [*weights, *states[1], *squares]


def project(weights):
    bases, matrices = wk.LowRankBases(), [weight for weight in weights if weight.dim() > 1]
    found = [*wk.project_low_rank_(matrices, 2, bases=bases), *wk.project_low_rank_(matrices, 2, bases=bases)]
    return [*found, *matrices, *bases.tensors.values()]


def nothing(weights):
    bank = wk.FilterBank([])
    importance = wk.filter_importance(bank)
    return [
        importance,
        *wk.match_filters(bank, importance, rate=0.5),
        *wk.evolve_(bank, rate=0.5),
        wk.weight_entropy(bank),
        wk.weight_l1(bank),
        *wk.filter_overlap(bank),
        wk.select_filters(bank, 0.5, seed=1, step=2),
        wk.unselected_buffer(bank),
        *wk.project_low_rank_([], 2),
    ]


CALLS = [
    evolve,
    evolve_with_a_nan,
    step_by_step,
    graft,
    overlap,
    measure_activity,
    update_asynchronously,
    update_by_adamw,
    reactivate,
    project,
    nothing,
]


@pytest.fixture(params=[*DTYPES[1:], "meta"], ids=str)
def other_default(request, backend):
    """Sets another default, once called; everything is as before after the test."""
    dtype = torch.get_default_dtype()

    def change():
        # What earlier tests have cached must not hide a table made under this default, nor one stay for later tests.
        for cached in (layout.segments_of, layout.layout_of):
            cached.cache_clear()
        transfer._uploads.clear()
        if request.param == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(request.param)

    yield change
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)
    layout.segments_of.cache_clear()
    layout.layout_of.cache_clear()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_the_default_does_not_matter(backend, call, other_default):
    start = weights()
    expected = call([weight.clone() for weight in start])
    other_default()
    found = call([weight.clone() for weight in start])
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    assert [x.device for x in found] == [x.device for x in expected]
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x.view(torch.uint8) if x.dim() else x, y.view(torch.uint8) if y.dim() else y)


@pytest.mark.parametrize(
    "call", [evolve, graft, update_asynchronously, update_by_adamw, project], ids=lambda call: call.__name__
)
def test_inference_tensors_are_taken_in_any_mode(backend, call):
    start = weights()
    expected = call([weight.clone() for weight in start])
    with torch.inference_mode():
        inference = [weight.clone() for weight in start]
    for x, y in zip(call(inference), expected, strict=True):
        assert torch.equal(x.view(torch.uint8) if x.dim() else x, y.view(torch.uint8) if y.dim() else y)
