"""Which elements share memory, within a tensor and among tensors."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def strides_are_disjoint(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Each dimension steps over all that the smaller-stride dimensions reach (any view made without as_strided)."""
    reach = 0
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1:
            if step <= reach:
                return False
            reach += step * (size - 1)
    return True


def check_overlap(weights: Sequence[Tensor], names: Sequence[str]) -> None:
    """Distinct tensors must not share elements: an update through one would change the other unseen.

    Raises:
        ValueError: names two that do.
    """
    if pair := find_overlap(weights):
        first, second = (names[i] for i in pair)
        raise ValueError(f"{second} overlaps {first} in memory without being the same tensor")


def find_overlap(weights: Sequence[Tensor]) -> tuple[int, int] | None:
    """Two tensors that share an element, by their positions in ascending order; None if there are none."""
    by_storage = defaultdict(list)
    for i, weight in enumerate(weights):
        if weight.numel():
            by_storage[weight.device, weight.untyped_storage().data_ptr()].append(i)
    for sharing in by_storage.values():
        for cluster in _clusters(weights, sharing) if len(sharing) > 1 else ():
            if pair := _find_in_cluster([weights[i] for i in cluster]):
                return cluster[pair[0]], cluster[pair[1]]
    return None


def _clusters(weights: Sequence[Tensor], indices: list[int]) -> Iterator[list[int]]:
    """Those, in ascending order, whose ranges of bytes overlap directly or through others."""
    spans = sorted((*_byte_range(weights[i]), i) for i in indices)
    cluster, end = [spans[0][2]], spans[0][1]
    for low, high, i in spans[1:]:
        if low >= end:
            yield sorted(cluster)
            cluster = []
        cluster.append(i)
        end = max(end, high)
    yield sorted(cluster)


def _find_in_cluster(weights: list[Tensor]) -> tuple[int, int] | None:
    """The first two that share an element: each is looked up in a map of the memory, then marked there."""
    if len(weights) == 1:
        return None
    ranges = list(map(_byte_range, weights))
    low = min(start for start, _ in ranges)
    unit = math.gcd(*(start - low for start, _ in ranges), *map(Tensor.element_size, weights))
    marks = torch.zeros((max(end for _, end in ranges) - low) // unit, dtype=torch.bool, device="cpu")

    def places(weight: Tensor) -> Tensor:
        units = weight.element_size() // unit
        strides = [step * units for step in weight.stride()]
        return marks.as_strided((*weight.shape, units), (*strides, 1), (weight.data_ptr() - low) // unit)

    for second, weight in enumerate(weights):
        if bool(places(weight).any()):
            marks.zero_()
            places(weight).fill_(True)
            return next(i for i in range(second) if bool(places(weights[i]).any())), second
        places(weight).fill_(True)
    return None


def _byte_range(weight: Tensor) -> tuple[int, int]:
    last = sum(step * (size - 1) for step, size in zip(weight.stride(), weight.shape, strict=True))
    return weight.data_ptr(), weight.data_ptr() + (last + 1) * weight.element_size()
