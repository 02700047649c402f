"""Filter grafting: entropies of weights, and blends of networks."""

from .api import MAX_BINS, blend_, blend_ring_, weight_entropy, weight_l1

__all__ = ["MAX_BINS", "blend_", "blend_ring_", "weight_entropy", "weight_l1"]
