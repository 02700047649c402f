"""Offsets past 2**31 elements, in memory that is reserved but, except for a few pages, never there."""

import copy
import mmap

import pytest
import torch

import we_kernels as wk

STEP = 2**31 + 24
"""Elements; as a filter, channel or kernel stride it takes an offset past 32 bits to reach a second one."""

SHAPES = {
    "filters": ((3, 5, 3, 3), (STEP, 9, 3, 1)),
    "channels": ((4, 2, 3, 3), (9, STEP, 3, 1)),
    "kernels": ((4, 3, 2, 3), (9, 3, STEP, 1)),
    "rows": ((3, 7), (STEP, 1)),
    "vector": ((3,), (STEP,)),
}


def reserve(elements, dtype):
    """Zeros that take no memory before they are touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        memory = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
    except (OSError, OverflowError) as error:
        pytest.skip(f"cannot reserve {elements * dtype.itemsize >> 30} GiB of addresses: {error}")
    return torch.frombuffer(memory, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_strides_past_2_31(backend, shape, dtype):
    sizes, strides = SHAPES[shape]
    last = sum((size - 1) * step for size, step in zip(sizes, strides, strict=True))
    weight = reserve(last + 1, dtype).as_strided(sizes, strides)
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([1.0, 0.01, 0.4, 0.02])[: sizes[0]].view(-1, *[1] * (len(sizes) - 1))
    weight.copy_(scale * torch.randn(sizes, generator=generator))
    small = copy.deepcopy(weight.contiguous())
    found = [wk.evolve_(wk.FilterBank([w]), rate=0.6, local_ratio=None) for w in (weight, small)]
    torch.testing.assert_close(found[0].importance, found[1].importance)
    assert found[0].donor.tolist() == found[1].donor.tolist()
    assert int((found[0].donor >= 0).sum()) > 0
    torch.testing.assert_close(weight.contiguous(), small)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2**30 + 1,), "1073741825 filters, more than"), ((1, 1, 2**30 + 1), "kernels of more than 1073741824 elements")],
    ids=["filters", "kernel"],
)
def test_what_is_counted_in_32_bits_is_limited(shape, message):
    weight = reserve(2**30 + 1, torch.float16).view(shape)
    with pytest.raises(ValueError, match=message):
        wk.FilterBank([weight])
    wk.FilterBank([weight.view(-1)[:-1].view(*shape[:-1], 2**30)])
