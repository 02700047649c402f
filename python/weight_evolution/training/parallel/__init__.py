"""Several processes that train one network (``--parallel``; docs/training.md)."""

from .ranks import ALONE, Ranks
from .started import PARALLEL, parallel_ranks

__all__ = ["ALONE", "PARALLEL", "Ranks", "parallel_ranks"]
