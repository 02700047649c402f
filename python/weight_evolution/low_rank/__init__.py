"""Low-rank projection with energy transfer: train towards low rank, hand over a compact network."""

from .compact import compact_like
from .costs import count_macs, measure_latency
from .projection import LowRankProjection
from .report import CompactReport, LayerCost, ProjectionReport

__all__ = [
    "CompactReport",
    "LayerCost",
    "LowRankProjection",
    "ProjectionReport",
    "compact_like",
    "count_macs",
    "measure_latency",
]
