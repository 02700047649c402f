"""Unit reactivation as launches: one for dormant units, one more for parents; two per dtype for new weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...runtime.layout import segments_of
from ...runtime.transfer import Place, keep_for_graph, per_stream, table_of, table_to_device, upload
from ...runtime.triton import tables
from ...runtime.triton.launch import launch
from ...runtime.triton.values import TRITON_DTYPES
from ..rule import DrawRule, UnitTensors
from . import dormant, sums, write
from .dormant import dormant_kernel, dormant_parents_kernel
from .sums import unit_sums_kernel
from .tables import plan_tables
from .write import write_units_kernel


def dormant_units(activity: Tensor, sizes: Sequence[int], parents: Tensor, threshold: float) -> Tensor:
    """bool [U]."""
    place = Place.current(activity.device)
    segments = segments_of(tuple(sizes), (0,) * len(sizes))
    found = torch.empty(len(activity), dtype=torch.bool, device=place.device)
    launch(
        dormant_kernel,
        len(sizes),
        place,
        activity,
        table_of(segments, "segments", place, lambda: table_to_device(segments.table, place.device)),
        upload((threshold, 1e-9), torch.float64, place),
        found.view(torch.uint8),
        BLOCK=dormant.BLOCK,
    )
    if len(parents):
        programs = -(-len(activity) // dormant.BLOCK)
        launch(
            dormant_parents_kernel,
            programs,
            place,
            parents,
            found.view(torch.uint8),
            len(activity),
            BLOCK=dormant.BLOCK,
        )
    return found


def reactivate_(tensors: UnitTensors, revived: Tensor, given: Tensor, rule: DrawRule) -> None:
    """In place. Means and norms are of the tensors as they were: they are summed before anything is written."""
    place = Place.current(revived.device)
    plan = plan_tables(tensors.layout, *map(tuple, tensors[2:]), place.device)
    scratch = per_stream(plan, "scratch", place, lambda: plan.scratch(place, len(tensors.units)))
    for owner in (plan, tensors.units):
        keep_for_graph(owner, place)
    scaling = write.AS_DRAWN
    if rule.scaled:
        scaling = write.TO_LIVING if rule.targets is None else write.TO_TARGETS
    pointers = upload(tensors.addresses, torch.int64, place)
    seed = upload((rule.seed,), torch.int64, place)
    layers, mask = tables.layers(tensors.layout, place), revived.view(torch.uint8)
    for tiles in plan.tiles:
        launch(
            unit_sums_kernel,
            tiles.prefixes[scaling.value],
            place,
            pointers,
            layers,
            plan.plans,
            tiles.sums,
            tensors.units,
            mask,
            rule.step,
            seed,
            *scratch,
            DTYPE=TRITON_DTYPES[tiles.dtype],
            BLOCK=sums.BLOCK,
            SCAN=sums.SCAN,
        )
    for tiles in plan.tiles:
        launch(
            write_units_kernel,
            len(tiles.writes),
            place,
            pointers,
            layers,
            plan.plans,
            plan.bounds,
            tiles.writes,
            tensors.units,
            mask,
            given,
            given if rule.targets is None else rule.targets,
            scaling.value,
            rule.step,
            seed,
            *scratch,
            DTYPE=TRITON_DTYPES[tiles.dtype],
            BLOCK=write.BLOCK,
            PARTS=sums.MOST_PARTS,
        )
