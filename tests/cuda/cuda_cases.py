"""Weights for the CUDA kernels, emulated or real: every dtype and memory format, short and long filters."""

import torch

from tests import banks

SHAPES = (
    ((37,), 0),
    ((13, 29), 0),
    ((6, 5, 3, 3), 0),
    ((5, 7, 2, 3), 1),
    ((4, 3, 2, 3, 5), 0),
    ((3, 16411), 0),  # a block per filter from 16384 elements on
    ((1, 2, 9001), 0),
)


def weights(device="cpu"):
    """Weights and filter_dims; elements around the weights hold a large guard value."""
    placed, dims = [], []
    for seed, ((shape, dim), dtype, form) in enumerate(
        (shape, dtype, form) for form in banks.FORMATS for dtype in banks.DTYPES for shape in SHAPES
    ):
        case = banks.place(banks.random_values(shape, dtype, seed), form, dim)
        weight, buffer = case.weight, case.buffer.to(device)
        placed.append(buffer.as_strided(weight.shape, weight.stride(), weight.storage_offset()))
        dims.append(dim)
    return placed, dims


def check(importance, weights, filter_dims):
    """Against sums in float64; those of float64 weights must be right to the last bit of their float32 result."""
    start = 0
    for weight, dim in zip(weights, filter_dims, strict=True):
        filters = weight.double().movedim(dim, 0)
        filters = filters.reshape(len(filters), filters.shape[1] if filters.dim() > 1 else 1, -1)
        expected = filters.abs().sum((1, 2)) / filters.shape[1]
        got = importance[start : start + len(filters)].double()
        rtol = 6.1e-8 if weight.dtype == torch.float64 else 2e-6
        torch.testing.assert_close(
            got, expected, rtol=rtol, atol=1e-45, msg=lambda m, w=weight: f"{w.dtype} {w.shape}: {m}"
        )
        start += len(filters)
    assert start == len(importance)
