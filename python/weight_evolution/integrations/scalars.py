"""Reports as flat numbers, for loggers."""

from __future__ import annotations

import math
from functools import singledispatch
from statistics import fmean

from weight_evolution import EvolutionReport, ProjectionReport, ReactivationReport


@singledispatch
def scalars(report: object) -> dict[str, float]:
    """Name -> number; may wait for the device."""
    raise NotImplementedError(type(report).__name__)


@scalars.register
def _of_evolution(report: EvolutionReport) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind, rate in report.rates.items():
        names = [name for name, of in report.kinds.items() if of == kind]
        found[f"evolution/rate_{kind}"] = rate
        found[f"evolution/threshold_{kind}"] = report.thresholds[kind]
        found[f"evolution/inferior_{kind}"] = float(sum(report.inferior[name] for name in names))
    return found


@scalars.register
def _of_reactivation(report: ReactivationReport) -> dict[str, float]:
    return {"reactivation/revived": float(report.total), "reactivation/units": float(sum(report.units.values()))}


@scalars.register
def _of_projection(report: ProjectionReport) -> dict[str, float]:
    kept = [share for share in report.energy_kept.values() if not math.isnan(share)]
    return {"low_rank/energy_kept_mean": fmean(kept), "low_rank/energy_kept_min": min(kept)} if kept else {}
