"""Low-rank projection of weights, with the energy that they had."""

from .api import LowRankBases, LowRankResult, project_low_rank_

__all__ = ["LowRankBases", "LowRankResult", "project_low_rank_"]
