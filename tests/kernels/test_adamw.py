"""A step of AdamW in which rows and columns have their own ages: every backend."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.optim.adam import adam

import we_kernels as wk
from tests.banks import DTYPES, place, random_values
from tests.matrix import as_bits as bits

OPTIONS = {
    "AdamW": {"weight_decay": 1e-2},
    "no decay": {"weight_decay": 0.0},
    "Adam": {"weight_decay": 0.0, "decoupled_weight_decay": False},
    "Adam, decay": {"weight_decay": 1e-2, "decoupled_weight_decay": False},
    "amsgrad": {"weight_decay": 1e-2, "amsgrad": True},
    "maximize": {"weight_decay": 1e-2, "maximize": True},
    "all": {"weight_decay": 0.1, "decoupled_weight_decay": False, "amsgrad": True, "maximize": True, "eps": 1e-3},
    "large weight of the gradient": {"weight_decay": 0.0, "betas": (0.3, 0.6)},
    "no memory": {"weight_decay": 0.0, "betas": (0.0, 0.0), "eps": 0.1},
}
SHAPES = ((6, 5, 3, 3), (7,), (130, 3, 1, 1), (9, 1, 3, 3), (2, 1100), (5, 8, 3), (0, 4), (8, 2, 5, 5), (2, 3, 2, 3, 4))
GROUPS = (3, 1, 1, 9, 1, 5, 1, 2, 1)

SAME = ("contiguous", "contiguous", "contiguous")
DENSE = (
    SAME,
    ("channels_last", "channels_last", "channels_last"),
    ("shifted", "contiguous", "shifted"),
    ("transposed", "transposed", "transposed"),
)
"""Of parameters, moments and gradients. In the other layouts torch's own float16 and bfloat16 depend on the layout."""
GAPS = (
    ("sliced", "sliced", "sliced"),
    ("contiguous", "channels_last", "sliced"),
    ("channels_last", "channels_last", "contiguous"),
)


def tensors(dtype, memory_format, seed, shapes=SHAPES):
    return [place(random_values(shape, dtype, seed + i), memory_format) for i, shape in enumerate(shapes)]


def weights_of(cases):
    return [case.weight for case in cases]


class Step:
    """Parameters, gradients, moments and maxima; what they are after a step."""

    def __init__(self, dtype, formats, options, shapes=SHAPES):
        self.options = {"lr": 0.03, "betas": (0.9, 0.999), "eps": 1e-8, "decoupled_weight_decay": True}
        self.options |= {"amsgrad": False, "maximize": False} | options
        self.params, self.grads = tensors(dtype, formats[0], 0, shapes), tensors(dtype, formats[2], 100, shapes)
        self.means, self.squares, self.maxima = (tensors(dtype, formats[1], seed, shapes) for seed in (200, 300, 400))
        for case in self.squares + self.maxima:
            case.weight.abs_()

    @property
    def written(self):
        return self.params + self.means + self.squares + (self.maxima if self.options["amsgrad"] else [])

    def arguments(self):
        return [weights_of(x) for x in (self.params, self.grads, self.means, self.squares, self.maxima)]

    def ours(self, steps, rows=None, columns=None, groups=1):
        wk.unit_adamw_(*self.arguments(), rows, columns, groups, steps, **self.options)
        return self

    def torchs(self, steps):
        options = dict(self.options)
        beta1, beta2 = options.pop("betas")
        counters = [torch.tensor(float(step - 1)) for step in steps]
        # A sum of equal tensors may be computed twice: gradients are only read by ours.
        adam(*self.arguments(), counters, foreach=True, beta1=beta1, beta2=beta2, **options)
        return self


def assert_same(found, wanted, exact):
    if exact:
        assert torch.equal(bits(found), bits(wanted))
    else:
        eps = torch.finfo(found.dtype).eps
        torch.testing.assert_close(found, wanted, rtol=8 * eps, atol=8 * eps)


def check_step(backend, dtype, formats, options, t=3):
    # Triton rounds as CUDA does, tests/triton has its own oracle.
    exact = backend != "triton" and (dtype.itemsize > 2 or formats in DENSE)
    start = Step(dtype, formats, options)
    steps = [t + i % 2 for i in range(len(SHAPES))]
    found, wanted = copy.deepcopy(start).ours(steps), copy.deepcopy(start).torchs(steps)
    for ours, other in zip(found.written, wanted.written, strict=True):
        assert_same(ours.weight, other.weight, exact)
        assert ours.guards_intact()
    unread = found.grads + ([] if options.get("amsgrad") else found.maxima)
    before = start.grads + ([] if options.get("amsgrad") else start.maxima)
    for ours, other in zip(unread, before, strict=True):
        assert torch.equal(bits(ours.buffer), bits(other.buffer))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_option_is_torchs(backend, dtype, options):
    check_step(backend, dtype, SAME, OPTIONS[options])


@pytest.mark.parametrize("formats", DENSE + GAPS, ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layout_is_torchs(backend, dtype, formats):
    check_step(backend, dtype, formats, OPTIONS["all"], t=1)


@pytest.mark.parametrize("t", [1, 2, 77, 100000.0, 2.0**24])
def test_first_and_late_steps(backend, t):
    check_step(backend, torch.float32, SAME, OPTIONS["AdamW"], t)


# Resets


def column_of(row, channel, shape, groups):
    """As the specification has it."""
    d1 = shape[1] if len(shape) > 1 else 1
    return row // (shape[0] // groups) * d1 + channel


def random_resets(t, seed, shapes=SHAPES, groups=GROUPS):
    """Steps of resets of rows and columns, most of them none, some of neither."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = [], []
    for i, (shape, count) in enumerate(zip(shapes, groups, strict=True)):
        d1 = shape[1] if len(shape) > 1 else 1
        for found, size in ((rows, shape[0]), (columns, count * d1)):
            when = torch.randint(1, t, (size,), generator=generator).float()
            found.append(when * (torch.rand(size, generator=generator) < 0.4))
        if i % 4 == 1:
            rows[-1] = None
        if i % 4 == 2:
            columns[-1] = None
        if i == 5:
            rows[-1] = columns[-1] = None
    return rows, columns


def ages(shape, groups, row, column, t):
    """By loops, int64 of the parameter's shape."""
    found = torch.full(shape, t)
    for r in range(shape[0]):
        for c in range(shape[1] if len(shape) > 1 else 1):
            last = max(
                0 if row is None else int(row[r]),
                0 if column is None else int(column[column_of(r, c, shape, groups)]),
            )
            if len(shape) > 1:
                found[r, c] = max(t - last, 1)
            else:
                found[r] = max(t - last, 1)
    return found


@pytest.mark.sampled(24)
@pytest.mark.parametrize("options", ["AdamW", "all", "no memory"])
@pytest.mark.parametrize("formats", [SAME, DENSE[1], DENSE[3], *GAPS], ids="-".join)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_moves_as_one_of_its_age(backend, dtype, formats, options):
    """torch's step of every age, of which each element takes its own; bit for bit."""
    t, options = 7, OPTIONS[options]
    exact = backend != "triton" and (dtype.itemsize > 2 or formats in DENSE)
    start, (rows, columns) = Step(dtype, formats, options), random_resets(7, 1)
    found = copy.deepcopy(start).ours([t] * len(SHAPES), rows, columns, GROUPS)
    of_age = {age: copy.deepcopy(start).torchs([age] * len(SHAPES)) for age in range(1, t + 1)}
    young = 0
    for i, shape in enumerate(SHAPES):
        age = ages(shape, GROUPS[i], rows[i], columns[i], t)
        young += int((age < t).sum())
        for each, step in of_age.items():
            at = age == each
            assert_same(found.params[i].weight[at], step.params[i].weight[at], exact)
    assert young > 500
    for ours, other in zip(found.written[len(SHAPES) :], of_age[1].written[len(SHAPES) :], strict=True):
        assert_same(ours.weight, other.weight, exact)
    assert all(case.guards_intact() for case in found.written)


def test_resets_of_later_steps_count_as_age_one(backend):
    """After a counter was set back, say."""
    start = Step(torch.float32, SAME, {"weight_decay": 0.0}, ((3, 4),))
    found = copy.deepcopy(start).ours([5], [torch.tensor([0.0, 5.0, 9.0])], None)
    first, fifth = (copy.deepcopy(start).torchs([step]).params[0].weight for step in (1, 5))
    exact = backend != "triton"
    assert_same(found.params[0].weight[0], fifth[0], exact)
    assert_same(found.params[0].weight[1:], first[1:], exact)


def test_steps_and_learning_rate_as_tensors(backend):
    """Read where they are; as if they were numbers."""
    rows, columns = random_resets(6, 2)
    for dtype in (torch.float32, torch.float64):
        start = Step(torch.float32, SAME, OPTIONS["AdamW"] | {"lr": 0.25})
        steps = [6 + i % 2 for i in range(len(SHAPES))]
        wanted = copy.deepcopy(start).ours(steps, rows, columns, GROUPS)
        start.options["lr"] = torch.tensor(0.25, dtype=dtype)
        found = start.ours([torch.tensor(float(step)) for step in steps], rows, columns, GROUPS)
        for ours, other in zip(found.written, wanted.written, strict=True):
            assert_same(ours.weight, other.weight, exact=backend != "triton")


def test_scalars_mixed_dtypes_and_nothing(backend):
    params = [torch.tensor(1.0), torch.ones(3).double(), torch.ones(2, 2).bfloat16(), torch.empty(0), torch.ones(0, 3)]
    grads = [torch.ones_like(param) for param in params]
    means, squares = ([torch.zeros_like(param) for param in params] for _ in range(2))
    rows = [torch.tensor([4.0]), None, torch.tensor([0.0, 4.0]), None, torch.empty(0)]
    means[2][0], squares[2][0] = 0.4, 0.006
    wk.unit_adamw_(params, grads, means, squares, None, rows, None, 1, [5] * 5, lr=0.25, weight_decay=0)
    assert params[0].shape == ()
    assert params[0].item() == pytest.approx(0.75)
    assert params[2][1].tolist() == [0.75, 0.75]
    wk.unit_adamw_([], [], [], [], None, None, None, 1, [], lr=0.5)
    wk.unit_adamw_([params[3]], [grads[3]], [means[3]], [squares[3]], None, None, None, 1, [1], lr=0.5)


def test_expanded_gradients(backend):
    """Such as those of a sum."""
    params, state = [torch.zeros(4, 3), torch.zeros(3)], [[torch.zeros(4, 3), torch.zeros(3)] for _ in range(2)]
    grads = [torch.ones(()).expand(4, 3), torch.ones(1).expand(3)]
    wk.unit_adamw_(params, grads, *state, None, None, None, 1, [1, 1], lr=0.5, weight_decay=0)
    for param in params:
        torch.testing.assert_close(param, torch.full_like(param, -0.5))


def test_values_that_are_not_finite_go_through(backend):
    """As under AdamW: NaN stays NaN, in the maxima, too."""
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 3e38])
    for dtype in DTYPES:
        for amsgrad in (False, True):
            start = Step(dtype, SAME, {"weight_decay": 0.01, "amsgrad": amsgrad}, ((7, 7),))
            start.grads[0].weight.copy_(special.expand(7, 7))
            start.maxima[0].weight.copy_(special[:, None].expand(7, 7).abs())
            found, wanted = copy.deepcopy(start).ours([3]), copy.deepcopy(start).torchs([3])
            for ours, other in zip(found.written, wanted.written, strict=True):
                tolerance = 0 if backend != "triton" else 4 * torch.finfo(dtype).eps
                torch.testing.assert_close(ours.weight, other.weight, rtol=tolerance, atol=tolerance, equal_nan=True)


# Inside PyTorch


def operator_arguments(amsgrad, on_device, young):
    params = [torch.ones(4, 3, 3, 3), torch.ones(5), torch.ones(3, 4, 2)]
    grads, means, squares, maxima = ([torch.full_like(param, x) for param in params] for x in (2.0, 1.0, 3.0, 4.0))
    resets = [torch.tensor([0.0, 2.0, 0.0, 1.0]), torch.empty(0), torch.empty(0)] if young else []
    columns = [torch.empty(0), torch.empty(0), torch.ones(12)] if young else []
    steps = ([], [torch.tensor(3.0) for _ in params]) if on_device else ([3.0] * 3, [])
    lr = (0.0, torch.tensor([0.5])) if on_device else (0.5, None)
    lists = (params, grads, means, squares, maxima if amsgrad else [], resets, columns, [2, 1, 3], *steps)
    return (*lists, *lr, 0.9, 0.99, 1e-8, 0.1, True, False)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("young", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_opcheck(backend, opcheck, amsgrad, on_device, young):
    opcheck(torch.ops.we_kernels.unit_adamw_.default, operator_arguments(amsgrad, on_device, young))


def test_compiles_into_one_graph():
    def step(params, grads, means, squares, rows, counters):
        wk.unit_adamw_(params, grads, means, squares, None, rows, None, 1, counters, lr=0.1)
        return params[0].sum()

    def inputs(counters):
        params = [torch.arange(24.0).view(6, 4), torch.ones(5, 2, 3, 3), torch.ones(7)]
        states = [[param + i for param in params] for i in range(3)]
        return params, *states, [torch.tensor([0.0, 3.0] * 3), None, None], counters

    for counters in ([5, 5, 5], [torch.tensor(5.0)] * 3):
        eager, compiled = inputs(counters), inputs(counters)
        assert torch.equal(step(*eager), torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled))
        for a, b, before in zip(eager[0] + eager[2], compiled[0] + compiled[2], inputs(counters)[0] * 2, strict=True):
            assert torch.equal(a, b)
            assert not torch.equal(a, before)


def test_version_counters(backend):
    params = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(3))]
    loss = sum((param**2).sum() for param in params)
    states = [[torch.zeros(4, 3), torch.zeros(3)] for _ in range(3)]
    grads = [torch.ones(4, 3), torch.ones(3)]
    wk.unit_adamw_(params, grads, *states, None, None, 1, [1, 1], lr=0.1, amsgrad=True)
    assert all(tensor._version > 0 for tensor in (*params, *states[0], *states[1], *states[2]))
    assert all(tensor._version == 0 for tensor in grads)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Bad input

W = torch.full((4, 3, 3, 3), 2.0)
NAMES = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
ROWS, COLUMNS = torch.zeros(4), torch.zeros(3)


def step_of(rows=None, columns=None, groups=1, steps=(1,), **changes):
    lists = [changes.pop(name, (W,)) for name in NAMES]
    return lambda: wk.unit_adamw_(*lists, rows, columns, groups, steps, **{"lr": 0.1} | changes)


def two(**changes):
    return step_of(**{name: changes.pop(name, [W, W.clone()]) for name in NAMES}, **{"steps": (1, 1)} | changes)


BAD = {
    "params type": (step_of(params=[3]), TypeError, r"params\[0\] must be a tensor, got int"),
    "params dtype": (step_of(params=[W.int()]), TypeError, r"params\[0\] must be float32.*int32"),
    "params six": (step_of(params=[W[None, None]]), ValueError, r"params\[0\] must have at most 5 dimensions, got 6"),
    "params sparse": (step_of(params=[W.to_sparse()]), TypeError, r"params\[0\] must be a dense tensor"),
    "params devices": (two(params=[W, W.to("meta")]), ValueError, r"params\[1\] must be on cpu, like params\[0\]"),
    "params twice": (two(params=[W, W]), ValueError, "params holds a tensor twice"),
    "expanded": (step_of(params=[W[:1].expand(4, 3, 3, 3)]), ValueError, r"params\[0\] overlaps itself"),
    "expanded moment": (step_of(exp_avgs=[W[:1].expand(4, 3, 3, 3)]), ValueError, r"exp_avgs\[0\] overlaps itself"),
    "grads count": (step_of(grads=[]), ValueError, r"grads must have one entry per parameter \(1\), got 0"),
    "grads none": (step_of(grads=[None]), TypeError, r"grads\[0\] must be a tensor, got NoneType"),
    "grads dtype": (step_of(grads=[W.half()]), ValueError, r"grads\[0\] must have dtype torch.float32"),
    "grads sparse": (step_of(grads=[W.to_sparse()]), ValueError, r"grads\[0\] must have layout torch.strided"),
    "mean shape": (step_of(exp_avgs=[W[:2]]), ValueError, r"exp_avgs\[0\] must have shape .*\[4, 3, 3, 3\]"),
    "square device": (step_of(exp_avg_sqs=[W.to("meta")]), ValueError, r"exp_avg_sqs\[0\] must have device cpu"),
    "square count": (step_of(exp_avg_sqs=[]), ValueError, "exp_avg_sqs must have one entry per parameter"),
    "no maxima": (
        step_of(max_exp_avg_sqs=None, amsgrad=True),
        ValueError,
        r"max_exp_avg_sqs must have one entry per parameter \(1\), got 0",
    ),
    "maxima shape": (
        step_of(max_exp_avg_sqs=[W[0]], amsgrad=True),
        ValueError,
        r"max_exp_avg_sqs\[0\] must have shape",
    ),
    "rows count": (step_of([ROWS, ROWS]), ValueError, r"row_resets must have one entry per parameter \(1\), got 2"),
    "rows type": (step_of([[1, 2, 3, 4]]), TypeError, r"row_resets\[0\] must be a tensor, got list"),
    "rows dtype": (step_of([ROWS.long()]), TypeError, r"row_resets\[0\] must be torch.float32, got torch.int64"),
    "rows size": (step_of([COLUMNS]), ValueError, r"row_resets\[0\] must have shape \(4,\), got \(3,\)"),
    "rows device": (step_of([ROWS.to("meta")]), ValueError, r"row_resets\[0\] must be on cpu"),
    "rows strides": (step_of([torch.zeros(8)[::2]]), ValueError, r"row_resets\[0\] must be contiguous"),
    "columns size": (
        step_of(None, [COLUMNS], 2),
        ValueError,
        r"column_resets\[0\] must have shape \(6,\), got \(3,\)",
    ),
    "groups": (step_of(None, [COLUMNS], 3), ValueError, r"groups\[0\] must be a positive divisor of 4, .* got 3"),
    "groups 0": (step_of(None, [COLUMNS], [0]), ValueError, r"groups\[0\] must be a positive divisor of 4"),
    "groups type": (step_of(groups=[1.0]), TypeError, r"groups\[0\] must be an integer, got float"),
    "groups count": (step_of(groups=[1, 1]), ValueError, "groups must have one entry per parameter"),
    "steps count": (step_of(steps=[]), ValueError, "steps must have one entry per parameter"),
    "steps zero": (step_of(steps=[0]), ValueError, r"steps\[0\] must be at least 1, the first step, got 0"),
    "steps NaN": (two(steps=[1, math.nan]), ValueError, r"steps\[1\] must be finite, got nan"),
    "steps type": (step_of(steps=["1"]), TypeError, r"steps\[0\] must be a number, got str"),
    "steps dtype": (
        step_of(steps=[torch.tensor(1)]),
        TypeError,
        r"steps\[0\] must be float32 of one element, got torch.int64",
    ),
    "steps shape": (step_of(steps=[torch.ones(2)]), TypeError, r"steps\[0\] must be float32 of one element"),
    "steps device": (step_of(steps=[torch.ones(1).to("meta")]), ValueError, r"steps\[0\] must be on cpu, like params"),
    "steps mixed": (two(steps=[torch.ones(1), 1]), TypeError, r"steps\[1\] must be a tensor, like the others, got int"),
    "lr type": (step_of(lr="0.1"), TypeError, "lr must be a number, got str"),
    "lr negative": (step_of(lr=-0.1), ValueError, "lr must be at least 0, got -0.1"),
    "lr NaN": (step_of(lr=torch.tensor(math.nan)), ValueError, "lr must be finite, got nan"),
    "lr shape": (step_of(lr=torch.ones(2)), ValueError, "lr must be a number or a floating-point tensor"),
    "lr device": (step_of(lr=torch.ones(1, device="meta")), ValueError, "lr must be on cpu"),
    "betas": (step_of(betas=0.9), TypeError, "betas must be two numbers, got 0.9"),
    "beta type": (step_of(betas=("x", 0.9)), TypeError, r"betas\[0\] must be a number, got str"),
    "beta one": (step_of(betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be in \[0, 1\), got 1.0"),
    "beta NaN": (step_of(betas=(math.nan, 0.9)), ValueError, r"betas\[0\] must be in"),
    "eps": (step_of(eps=-1e-8), ValueError, "eps must be at least 0"),
    "weight_decay": (step_of(weight_decay=math.inf), ValueError, "weight_decay must be finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
    assert W.eq(2).all()


def test_numpy_numbers_are_numbers():
    found = []
    for number, integer in ((float, int), (np.float32, np.int64)):
        step = Step(torch.float32, SAME, {"lr": number(0.5), "weight_decay": number(0.25), "eps": number(0.125)})
        step.options["betas"] = (number(0.5), number(0.75))
        found.append(step.ours([integer(2)] * len(SHAPES), groups=integer(1)))
    for a, b in zip(found[0].written, found[1].written, strict=True):
        assert torch.equal(a.buffer, b.buffer)
    with pytest.raises(TypeError, match="lr must be a number"):
        step_of(lr=np.bool_(True))()
