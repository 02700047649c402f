"""channel_activity: against NumPy in float64, layouts, offsets and blocks, awkward values, what is refused."""

import numpy as np
import pytest
import torch

import we_kernels as wk
from tests.banks import DTYPES, FORMATS, place, random_values
from we_kernels.activity.geometry import with_geometry

SHAPES = [
    ((3, 5, 7, 9), 1),
    ((9, 6, 2, 3), 1),
    ((2, 3, 4, 5, 6), 1),
    ((11, 70), 1),
    ((5, 3, 13), -1),
    ((10, 4, 1, 1), 1),
    ((1, 1, 6, 5), 1),
    ((8, 1, 3), 2),
    ((6, 7), 0),
    ((7,), 0),
    ((4, 2, 3, 2, 3, 2), 3),
    ((2, 9, 37, 31), 1),
    ((1, 130, 3, 5), 1),
]
"""Every size of a shape differs from its others, or is 1: runs, columns, both taken together, one position only."""
EPS = 2.0**-23
TOLERANCE = {"torch": 4e-6, "native": 8 * EPS, "triton": 8 * EPS}
"""PyTorch's norms add one by one in float32 on a CPU."""


def summed(activation, dim):
    """float64 [C] by NumPy."""
    values = np.abs(np.moveaxis(activation.double().numpy(), dim, 0))
    return torch.from_numpy(values.reshape(len(values), -1).sum(1))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_numpy(backend, dtype, memory_format):
    for seed, (shape, dim) in enumerate(SHAPES):
        case = place(random_values(shape, dtype, seed), memory_format, dim)
        before = case.buffer.clone()
        expected = summed(case.weight, dim)
        sums = torch.arange(len(expected), dtype=torch.float64)
        wk.add_channel_activity_(sums, case.weight, dim)
        rtol = 1e-14 if dtype == torch.float64 else TOLERANCE[backend]
        torch.testing.assert_close(sums, expected + torch.arange(len(expected)), rtol=rtol, atol=0)
        mean = wk.channel_activity(case.weight, dim)
        count = case.weight.numel() // len(expected)
        torch.testing.assert_close(mean, (expected / count).float(), rtol=TOLERANCE[backend], atol=0)
        assert torch.equal(case.buffer, before)


@pytest.mark.parametrize("shape", [(3, 11, 2, 5), (3, 11), (2, 3, 11)], ids=str)
def test_offsets_and_blocks(backend, shape):
    """Three units of two channels each, from the fourth channel on, into the middle of a row."""
    dim = 1 if len(shape) != 3 else -1
    activation = torch.randn(shape)
    row = torch.full((7,), -2.0)
    wk.add_channel_activity_(row[2:5], activation, dim, offset=4, block=2, overwrite=True)
    expected = summed(activation, dim)[4:10].view(3, 2).sum(1).float()
    torch.testing.assert_close(row, torch.tensor([-2, -2, *expected, -2, -2]))
    wk.add_channel_activity_(row[2:5], activation, dim, offset=4, block=2)
    torch.testing.assert_close(row, torch.tensor([-2, -2, *(2 * expected), -2, -2]))


VIEWS = {
    "expanded positions": lambda x: x[:, :, :1, :1].expand(-1, -1, 4, 6),
    "expanded channels": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "all expanded": lambda x: x[:1, :1, :1, :1].expand(2, 5, 3, 4),
    "every other position": lambda x: x[:, :, ::2, 1::2],
    "every other channel": lambda x: x[:, ::2],
    "every other of channels_last": lambda x: x.to(memory_format=torch.channels_last)[:, 1::2, :, ::2],
    "overlapping windows": lambda x: x.contiguous().as_strided((3, 4, 5), (2, 1, 3)),
    "gaps in all of six": lambda x: x.reshape(4, 5, 3, 2, 3, 2).repeat(1, 2, 2, 2, 2, 2)[::3, ::2, ::2, ::2, ::2, ::2],
    "permuted": lambda x: x.permute(3, 0, 2, 1),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views(backend, view):
    activation = VIEWS[view](random_values((4, 5, 6, 6), torch.float32, 3))
    for dim in range(activation.dim()):
        found = wk.channel_activity(activation, dim)
        expected = summed(activation, dim) / (activation.numel() // activation.shape[dim])
        torch.testing.assert_close(found, expected.float(), rtol=TOLERANCE[backend], atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_many_equal_numbers_are_added_up_exactly_enough(backend, memory_format):
    """Added one by one in float16 these would stop growing, in float32 lose half a percent."""
    size = 40 if backend == "triton" else 160
    rtol = 5e-4 if backend == "torch" else 4 * EPS
    activation = torch.full((20, 4, size, size), 0.1).half().to(memory_format=memory_format)
    expected = float(activation[0, 0, 0, 0])
    torch.testing.assert_close(wk.channel_activity(activation), torch.full((4,), expected), rtol=rtol, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_infinity_and_subnormals(backend, dtype):
    for memory_format in ("contiguous", "channels_last"):
        activation = place(torch.zeros(2, 5, 3, 4).to(dtype), memory_format).weight
        tiny = torch.finfo(dtype).smallest_normal / 4
        activation[1, 0, 2, 3], activation[0, 1, 0, 0], activation[0, 2, 1, 1] = torch.nan, torch.inf, -torch.inf
        activation[:, 3] = -tiny
        sums = torch.full((5,), torch.nan, dtype=torch.float64)
        wk.add_channel_activity_(sums, activation, overwrite=True)
        assert sums.isnan().tolist() == [True, False, False, False, False]
        assert sums[1:3].tolist() == [torch.inf, torch.inf]
        assert sums[3:].tolist() == [24 * tiny, 0]


def test_empty_batches_and_no_channels(backend):
    for shape in ((0, 3, 2, 2), (0, 3), (4, 3, 0)):
        assert wk.channel_activity(torch.empty(shape)).tolist() == [0, 0, 0]
        sums = torch.ones(3)
        wk.add_channel_activity_(sums, torch.empty(shape))
        assert sums.tolist() == [1, 1, 1]
        wk.add_channel_activity_(sums, torch.empty(shape), overwrite=True)
        assert sums.tolist() == [0, 0, 0]
    assert wk.channel_activity(torch.empty(4, 0)).shape == (0,)
    wk.add_channel_activity_(torch.empty(0), torch.ones(4, 3), offset=3)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_repeats_bit_for_bit(backend, memory_format):
    activation = place(random_values((5, 7, 11, 13), torch.float32, 1), memory_format).weight
    found = [wk.channel_activity(activation) for _ in range(3)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_operator(backend, opcheck):
    activation, sums = torch.randn(3, 5, 2, 4), torch.zeros(5, dtype=torch.float64)
    for overwrite in (False, True):
        arguments = (sums.clone(), activation, 1, overwrite)
        opcheck(torch.ops.we_kernels.add_channel_activity_.default, arguments)
    version = sums._version
    wk.add_channel_activity_(sums, activation)
    assert sums._version > version

    def step(sums, activation):
        wk.add_channel_activity_(sums, activation.relu(), 1, offset=1, block=2)
        return wk.channel_activity(activation)

    eager, compiled = torch.zeros(2), torch.zeros(2)
    expected = step(eager, activation)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(compiled, activation)
    assert torch.equal(found, expected)
    assert torch.equal(compiled, eager)
    assert bool(eager.all())


def test_modes_and_gradients(backend):
    activation = torch.randn(4, 3, requires_grad=True)
    with torch.inference_mode():
        inside, sums = activation.detach() * 1, torch.zeros(3)
    expected = wk.channel_activity(activation)
    assert not expected.requires_grad
    assert torch.equal(wk.channel_activity(inside), expected)
    wk.add_channel_activity_(sums, inside)
    torch.testing.assert_close(sums / 4, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wk.channel_activity(inside), expected)


def test_memory_is_read_in_order_of_the_memory():
    """What geometry makes of the usual layouts: runs, rows, or narrow ones of several positions."""
    x = torch.empty(8, 6, 10, 10)
    images = with_geometry(x, 1)[1]
    assert (images.columns, images.sizes, images.columns_inner) == (6, (1, 1, 8, 100), False)
    last = with_geometry(x.to(memory_format=torch.channels_last), 1)[1]
    assert (last.columns, last.sizes, last.columns_inner) == (480, (1, 1, 1, 10), True)
    small = with_geometry(torch.empty(8, 6, 3, 3), 1)[1]
    assert (small.columns, small.run, small.sizes) == (54, 9, (1, 1, 1, 8))
    assert with_geometry(torch.empty(9, 100), 1)[1].columns == 100
    assert with_geometry(x[:, :1].expand(-1, 6, -1, -1), 1)[1].column_stride == 0
    same, _ = with_geometry(x[::2, :, ::2, ::2], 1)
    assert same.data_ptr() == x.data_ptr()  # no copy


X = torch.ones(2, 6, 3)


def add(*sums, **options):
    """To sums of `X`."""
    wk.add_channel_activity_(torch.zeros(*sums) if sums else torch.zeros(6), X, **options)


BAD = {
    "activation": (lambda: wk.channel_activity([1.0]), TypeError, "activation must be a tensor, got list"),
    "integers": (lambda: wk.channel_activity(X.int()), TypeError, "activation must be float32, float64"),
    "sparse": (lambda: wk.channel_activity(X.to_sparse()), TypeError, "activation must be a dense tensor"),
    "meta": (lambda: wk.channel_activity(X.to("meta")), TypeError, "activation is a meta tensor"),
    "vmap": (
        lambda: torch.func.vmap(wk.channel_activity)(X),
        TypeError,
        r"activation is being transformed by torch\.f",
    ),
    "scalar": (lambda: wk.channel_activity(torch.ones(())), ValueError, "activation must have at least one dimension"),
    "dim": (lambda: wk.channel_activity(X, 3), ValueError, r"dim must be in \[-3, 2\] for an activation of shape"),
    "dim -4": (lambda: wk.channel_activity(X, -4), ValueError, r"dim must be in \[-3, 2\]"),
    "dim type": (lambda: wk.channel_activity(X, 1.0), TypeError, "dim must be an integer, got float"),
    "sums": (lambda: wk.add_channel_activity_([0.0] * 6, X), TypeError, "sums must be a tensor, got list"),
    "sums dtype": (
        lambda: wk.add_channel_activity_(torch.zeros(6).half(), X),
        TypeError,
        r"sums must be float32 or float64, got torch\.float16",
    ),
    "sums shape": (lambda: add(2, 3), ValueError, "sums must be a dense vector"),
    "sums device": (
        lambda: wk.add_channel_activity_(torch.zeros(6, device="meta"), X),
        ValueError,
        "sums must be on cpu, like the activation, got meta",
    ),
    "column": (lambda: wk.add_channel_activity_(torch.zeros(6, 2)[:, 0], X), ValueError, "sums must be a dense vector"),
    "expanded": (
        lambda: wk.add_channel_activity_(torch.zeros(1).expand(6), X),
        ValueError,
        "sums must be a dense vector",
    ),
    "offset": (
        lambda: wk.add_channel_activity_(torch.zeros(6), X, offset=1),
        ValueError,
        "within the 6 channels.* 1 to 7",
    ),
    "negative": (lambda: add(2, offset=-1), ValueError, "got -1 to 1"),
    "offset type": (
        lambda: add(2, offset=0.0),
        TypeError,
        "offset must be an int",
    ),
    "block": (
        lambda: add(2, block=0),
        ValueError,
        "block must be at least 1, got 0",
    ),
    "blocks": (lambda: add(4, block=2), ValueError, "got 0 to 8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        call()


def test_what_is_refused_changes_nothing():
    sums = torch.full((4,), 3.0)
    with pytest.raises(ValueError, match="block"):
        wk.add_channel_activity_(sums, X, block=2, overwrite=True)
    assert sums.tolist() == [3.0] * 4
