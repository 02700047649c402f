"""A step of AdamW as launches: one per dtype, one more for tensors with gaps, and one for ages of rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ...runtime.layout import DTYPES, Layer, Layout, forms_of, layout_of
from ...runtime.transfer import Place, keep_for_graph, refuse_capture, table_to_device, to_device, upload
from ...runtime.triton import tables
from ...runtime.triton.launch import launch
from ...runtime.triton.values import TRITON_DTYPES
from ..rule import AdamwRule, AdamwTensors, correction_at
from . import adamw
from .adamw import FIELDS, KINDS, adamw_kernel, correction_kernel

MAX_ELEMENTS = 2**31 - 1


def unit_adamw_(tensors: AdamwTensors, rule: AdamwRule) -> None:
    """In place; rounds as PyTorch's foreach kernels do on CUDA."""
    place, count = Place.current(tensors.params[0].device), len(tensors.params)
    maxima = tensors.max_exp_avg_sqs or tensors.exp_avg_sqs  # without amsgrad they are not touched
    lists = tensors.params, tensors.grads, tensors.exp_avgs, tensors.exp_avg_sqs, maxima
    layouts = tuple(layout_of(forms_of(each), (0,) * count) for each in lists)
    resets = [tuple(map(Tensor.data_ptr, each)) or (0,) * count for each in (tensors.row_resets, tensors.column_resets)]
    aged = tuple(bool(row or column) for row, column in zip(*resets, strict=True))
    on_device = bool(tensors.device_steps) or rule.device_lr is not None
    static = _adamw_tables(layouts, tuple(tensors.groups), aged, on_device, place.device)
    keep_for_graph(static, place)
    addresses = [upload(tuple(map(Tensor.data_ptr, each)), torch.int64, place) for each in lists]
    layers = [tables.layers(layout, place) for layout in layouts]
    lr = _lr(rule, place)
    known = _known(tensors, rule, place, on_device)
    counters = upload(tuple(map(Tensor.data_ptr, tensors.device_steps)) or (0,), torch.int64, place)
    numbers = (1 - rule.beta1, rule.beta2, 1 - rule.beta2, rule.eps, rule.weight_decay)
    scalars = upload(numbers, torch.float64, place)
    logarithms = upload((_log(rule.beta1), _log(rule.beta2)), torch.float64, place)
    for part in static.parts:
        acc = torch.float64 if DTYPES[part.dtype] == torch.float64 else torch.float32
        corrections = torch.empty(2 * part.entries * acc.itemsize, dtype=torch.uint8, device=place.device)
        launch(
            correction_kernel,
            len(part.correction_tiles),
            place,
            part.correction_tiles,
            static.fields,
            *(upload(each, torch.int64, place) for each in resets),
            counters,
            known,
            int(bool(tensors.device_steps)),
            int(on_device),
            lr,
            logarithms,
            corrections,
            part.entries,
            ACC=TRITON_DTYPES[DTYPES.index(acc)],
            ENTRIES=adamw.ENTRIES,
        )
        for dense, tiles in ((True, part.dense), (False, part.strided)):
            launch(
                adamw_kernel,
                len(tiles),
                place,
                *addresses,
                *layers,
                static.fields,
                tiles,
                known,
                corrections,
                part.entries,
                lr,
                scalars,
                int(rule.weight_decay != 0) * (1 if rule.decoupled else 2),
                int(bool(tensors.max_exp_avg_sqs)),
                int(rule.maximize),
                num_warps=adamw.WARPS,
                maxnreg=adamw.DENSE_REGISTERS if dense else None,
                DTYPE=TRITON_DTYPES[part.dtype],
                BLOCK=adamw.BLOCK,
                STRIP=adamw.STRIP,
                DENSE=dense,
            )


def _lr(rule: AdamwRule, place: Place) -> Tensor:
    """float64 [1] on the device."""
    if rule.device_lr is None:
        return upload((rule.lr,), torch.float64, place)
    return rule.device_lr.double().reshape(1)


def _known(tensors: AdamwTensors, rule: AdamwRule, place: Place, on_device: bool) -> Tensor:
    """float64 [3 * L] of what the host knows: steps, and corrections where it knows the learning rate, too."""
    if tensors.device_steps:
        return upload((0.0,), torch.float64, place)
    refuse_capture(place)
    lr = 0.0 if on_device else rule.lr
    corrections = {step: correction_at(step, lr, rule) for step in set(tensors.steps)}
    return to_device(
        tuple(x for step in tensors.steps for x in (step, *corrections[step])), torch.float64, place.device
    )


def _log(beta: float) -> float:
    return math.log(beta) if beta else -math.inf


class _Part(NamedTuple):
    """The parameters of one dtype."""

    dtype: int
    dense: Tensor
    """int32 [T, 2], tensor and block: of those that lie alike and without gaps."""
    strided: Tensor
    """The same of the others."""
    entries: int
    """Corrections of all of them."""
    correction_tiles: Tensor
    """int32 [T, 2]: tensor and first entry."""


class _AdamwTables(NamedTuple):
    fields: Tensor
    """int64 [L, ...]: `adamw.FIELDS`."""
    parts: tuple[_Part, ...]


@lru_cache(maxsize=64)
def _adamw_tables(
    layouts: tuple[Layout, ...], groups: tuple[int, ...], aged: tuple[bool, ...], on_device: bool, device: torch.device
) -> _AdamwTables:
    refuse_capture(Place.current(device))
    rows, parts = [], []
    entries = [0] * len(DTYPES)
    counts = []
    for layers, count, is_aged in zip(
        zip(*(layout.layers for layout in layouts), strict=True), groups, aged, strict=True
    ):
        kind = "aged" if is_aged else "counted" if on_device else "known"
        dtype = layers[0].dtype
        row = _fields(layers, count, entries[dtype], kind)
        rows.append([row[name] for name in FIELDS])
        counts.append({"aged": 1 + row["filters"] + row["columns"], "counted": 1, "known": 0}[kind])
        entries[dtype] += counts[-1]
    for dtype in range(len(DTYPES)):
        own = [i for i, layer in enumerate(layouts[0].layers) if layer.dtype == dtype]
        if own:
            pieces = tables.tiles(own, [counts[i] for i in own], adamw.ENTRIES)
            dense, strided = (
                table_to_device(_blocks([i for i in own if rows[i][1] == is_dense], rows), device)
                for is_dense in (True, False)
            )
            parts.append(_Part(dtype, dense, strided, entries[dtype], table_to_device(pieces, device)))
    return _AdamwTables(table_to_device(torch.tensor(rows, dtype=torch.int64, device="cpu"), device), tuple(parts))


def _blocks(tensors: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor:
    return tables.tiles(tensors, [-(-rows[i][0] // adamw.BLOCK) for i in tensors], 1)


def _fields(layers: Sequence[Layer], groups: int, first: int, kind: str) -> dict[str, int]:
    """`adamw.FIELDS` by name."""
    layer = layers[0]
    total = layer.filters * layer.channels * layer.kernel
    if total > MAX_ELEMENTS:
        raise ValueError(f"a parameter has {total} elements, more than the {MAX_ELEMENTS} of one launch")
    dense = all(other[:10] == layer[:10] for other in layers) and tables.is_run(layer)
    row, column = layer.channels * layer.kernel, layer.kernel
    if dense:  # of a dimension of size 1 the stride is 0
        row, column = layer.filter_stride or total, layer.channel_stride or total
    values = (total, int(dense), layer.filters, layer.channels, groups * layer.channels, first, KINDS.index(kind))
    divisors = (row, layer.filters, column, layer.channels, layer.filters // groups)  # `DIVISORS`
    dividers = chain.from_iterable(adamw.divider(max(divisor, 1)) for divisor in divisors)
    return dict(zip(FIELDS, (*values, *dividers), strict=True))
