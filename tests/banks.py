"""Random banks for tests: every dtype, memory format and rank, with guard elements around each tensor."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = ("contiguous", "channels_last", "sliced", "transposed", "shifted")
GUARD = -777.0


@dataclass
class Case:
    """A tensor to put into a bank; `buffer` is the memory it lies in, guards included."""

    weight: torch.Tensor
    filter_dim: int
    buffer: torch.Tensor

    def guards_intact(self) -> bool:
        """Nothing outside the weight was written."""
        marked = self.buffer.clone()
        view = marked.as_strided(self.weight.shape, self.weight.stride(), self.weight.storage_offset())
        view.fill_(GUARD)
        return bool((marked == GUARD).all())


def place(values: torch.Tensor, memory_format: str, filter_dim: int = 0) -> Case:
    """Copy `values` into fresh memory of that format, with guard elements before, after and in the gaps."""
    shape = tuple(values.shape)
    dims = len(shape)
    if memory_format == "contiguous":
        order, pad, shift = list(range(dims)), 0, 0
    elif memory_format == "channels_last":
        order, pad, shift = ([0, *range(2, dims), 1] if dims > 2 else list(range(dims))), 0, 0
    elif memory_format == "sliced":
        order, pad, shift = list(range(dims)), 2, 3
    elif memory_format == "transposed":
        order, pad, shift = list(reversed(range(dims))), 0, 0
    else:  # shifted by one element: unaligned for every vector load
        order, pad, shift = list(range(dims)), 0, 1
    strides, step = [0] * dims, 1
    for dim in reversed(order):
        strides[dim] = step
        step *= shape[dim] + pad
    guard = 16
    buffer = torch.full((step + 2 * guard + shift,), GUARD, dtype=values.dtype)
    weight = buffer.as_strided(shape, strides, guard + shift)
    weight.copy_(values)
    return Case(weight, filter_dim, buffer)


def random_values(shape, dtype, seed, flavour="normal"):
    """Values with a spread between filters; flavours hold the awkward numbers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = 10.0 ** (-3 * torch.rand(shape[:1], generator=generator, dtype=torch.float64))
    values = values * scale.view(-1, *[1] * (len(shape) - 1))
    if flavour == "ties":
        values = (values * 4).round() / 4
    elif flavour == "zeros":
        values = values * (torch.rand(shape, generator=generator) < 0.5)
    elif flavour == "tiny":
        values = values * float(torch.finfo(dtype).smallest_normal) * 4
    return values.to(dtype)


shapes = st.one_of(
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 24), st.integers(1, 40)),
    st.tuples(st.integers(1, 20), st.integers(1, 18), st.integers(1, 7)),
    st.tuples(st.integers(1, 20), st.integers(1, 18), st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
)


@st.composite
def cases(draw):
    """One placed tensor."""
    shape = draw(shapes)
    flavour = draw(st.sampled_from(("normal", "ties", "zeros", "tiny")))
    values = random_values(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**16)), flavour)
    dim = draw(st.sampled_from((0, 1))) if len(shape) > 1 else 0
    return place(values, draw(st.sampled_from(FORMATS)), dim)
