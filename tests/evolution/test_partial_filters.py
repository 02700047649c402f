"""Parts of filters, as ranks have them, against the whole; in processes: tests/sharding/partial_worker.py."""

import pytest
import torch

import we_kernels as wk
from weight_evolution.evolution.partial_filters import blend_rows_, with_one_kernel

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(), (1, 3)])
def test_parts_are_blended_as_the_whole(dtype, kernel):
    torch.manual_seed(0)
    filters = torch.randn(6, 7, *kernel).mul(8).round().div(8).to(dtype)
    filters[1] = filters[2] = 0  # a pair of zeros stays
    donor = torch.tensor([3, 2, -1, -1, 5, -1], dtype=torch.int32)
    l1 = wk.filter_importance(with_one_kernel(wk.FilterBank([filters]), [True]))
    assert torch.equal(l1, filters.float().abs().flatten(1).sum(1))
    parts = [part.clone() for part in filters.split(4, 1)]
    for part in parts:
        blend_rows_(part, torch.tensor([0, 1, 4]), torch.tensor([3, 2, 5]), l1)
    wk.crossover_(wk.FilterBank([filters]), donor)
    assert torch.equal(torch.cat(parts, 1), filters)


def test_norms_of_parts_add_up():
    """Beside a weight whose filters are whole, of which importances are given; along dimension 1; of 3d kernels."""
    torch.manual_seed(0)
    whole, transposed, volume = torch.randn(3, 5), torch.randn(6, 4, 2, 2).double(), torch.randn(2, 4, 2, 3, 2)
    volume = volume.to(memory_format=torch.channels_last_3d)
    parts = [
        wk.filter_importance(with_one_kernel(wk.FilterBank([whole, a, b], [0, 1, 0]), [False, True, True]))
        for a, b in zip(transposed.split(3, 0), volume.split([1, 3], 1), strict=True)
    ]
    assert torch.equal(parts[0][:3], whole.abs().mean(1))
    expected = torch.cat([transposed.abs().sum((0, 2, 3)), volume.abs().sum((1, 2, 3, 4))]).float()
    torch.testing.assert_close(sum(part[3:] for part in parts), expected)
