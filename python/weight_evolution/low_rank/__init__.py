"""Low-rank projection with energy transfer: train towards low rank, hand over a compact network."""

from .compact import compact_like
from .costs import count_macs, count_parameters, measure_latency
from .projection import LowRankProjection
from .ranks import PUBLISHED_PRUNE_RATIO
from .report import CompactReport, LayerCost, ProjectionReport

__all__ = [
    "PUBLISHED_PRUNE_RATIO",
    "CompactReport",
    "LayerCost",
    "LowRankProjection",
    "ProjectionReport",
    "compact_like",
    "count_macs",
    "count_parameters",
    "measure_latency",
]
