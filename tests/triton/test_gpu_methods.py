"""The checks of `methods` with the compiled kernels on a GPU; where there is none, some of them in the interpreter.

There they show that the checks are right: tests/kernels has all cases for the interpreter, which is slow. Of each check
one case is in the plain tier.
"""

import os
from itertools import cycle

import pytest
import torch

import we_kernels as wk
from tests import matrix, methods, units
from tests.banks import FORMATS
from tests.waiting import no_waiting

pytest.importorskip("triton")
if torch.cuda.is_available() == (os.environ.get("TRITON_INTERPRET") == "1"):
    pytest.skip("needs a GPU, or Triton's interpreter where there is none", allow_module_level=True)

DEVICE = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
slow = pytest.mark.slow if DEVICE.type == "cpu" else lambda test: test


def some(cases, step=5):
    """Without a GPU every ``step``-th, slow but for the first."""
    if DEVICE.type == "cuda":
        return list(cases)
    return [pytest.param(case, marks=pytest.mark.slow if i else ()) for i, case in enumerate([*cases][1::step])]


mixes = pytest.mark.parametrize("mix", some(matrix.MIXES), ids=matrix.mix_id)


@mixes
def test_overlap(mix):
    methods.check_overlap(DEVICE, *mix)


@slow
def test_overlap_of_many_filters():
    methods.check_overlap_of_many_filters(DEVICE)


@mixes
def test_activity(mix):
    methods.check_activity(DEVICE, *mix)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="there are no graphs")
def test_activity_in_a_graph():
    activation, sums = torch.randn(4, 6, 8, 8, device=DEVICE), torch.zeros(6, dtype=torch.float64, device=DEVICE)
    with no_waiting():
        wk.add_channel_activity_(sums, activation)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        wk.add_channel_activity_(sums, activation)
    before = sums.clone()
    activation.mul_(2)
    graph.replay()
    torch.testing.assert_close(sums, 3 * before)


@pytest.mark.parametrize("selection", some(methods.SELECTIONS, 1), ids=str)
def test_selection(selection):
    methods.check_selection(DEVICE, *selection)


@mixes
def test_snapshot(mix):
    methods.check_snapshot(DEVICE, *mix)


@pytest.mark.parametrize("case", some(zip(methods.PAIRS, cycle(methods.SGD_OPTIONS))), ids=str)
def test_sgd(case):
    pair, options = case
    methods.check_sgd(DEVICE, *pair, options)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="PyTorch rounds otherwise on a CPU")
@pytest.mark.parametrize("options", methods.SGD_OPTIONS, ids=len)
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_sgd_has_the_bits_of_foreach(dtype, options):
    methods.check_sgd_is_foreach(DEVICE, dtype, options)


@pytest.mark.parametrize("case", some(zip(methods.PAIRS, cycle(methods.ADAMW_OPTIONS))), ids=str)
def test_adamw(case):
    pair, options = case
    methods.check_adamw(DEVICE, *pair, options)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="PyTorch rounds otherwise on a CPU")
@pytest.mark.parametrize("options", methods.ADAMW_OPTIONS, ids=len)
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_adamw_has_the_bits_of_foreach(dtype, options):
    methods.check_adamw_is_foreach(DEVICE, dtype, options)


@mixes
def test_entropy(mix):
    methods.check_entropy(DEVICE, *mix, 10)


@slow
@pytest.mark.parametrize("bins", [1, 100])
def test_entropy_of_other_numbers_of_bins(bins):
    methods.check_entropy(DEVICE, matrix.DTYPES, "sliced", bins)


@slow
@pytest.mark.parametrize("flavour", ["ties", "zeros", "tiny"])
def test_entropy_of_awkward_values(flavour):
    methods.check_entropy(DEVICE, matrix.DTYPES, "contiguous", 10, flavour)


@pytest.mark.parametrize("case", some(zip(methods.PAIRS, cycle(("tensor", "filter", "tensor")))), ids=str)
def test_blend(case):
    (dtype, formats), per = case
    methods.check_blend(DEVICE, (dtype,), formats, 2, per)


@slow
@pytest.mark.parametrize("networks", [3, 5])
def test_ring_of_several_networks(networks):
    methods.check_blend(DEVICE, matrix.DTYPES, ("contiguous",), networks, "filter")


@pytest.mark.parametrize("threshold", [0.0, 0.025, 0.1, 3.0])
def test_dormant_units(threshold):
    units.check_dormant(DEVICE, threshold, backend="triton")


@slow
@pytest.mark.parametrize("scale", ["layer", "initial", "targets"])
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_reactivation(dtype, scale):
    units.check_reactivation(DEVICE, dtype, scale, backend="triton")


@slow
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_reactivation_of_none_and_all(share):
    units.check_reactivation(DEVICE, torch.float32, "layer", share=share, backend="triton")


@slow
@pytest.mark.parametrize("scale", ["targets", "initial", "layer"])
@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("dtype", matrix.DTYPES, ids=str)
def test_reactivation_has_the_bits_of_the_reference(dtype, formats, scale):
    units.check_reactivation_bits(DEVICE, dtype, scale, formats, "triton")
