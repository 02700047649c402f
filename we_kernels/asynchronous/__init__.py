"""Asynchronous updates: random subsets of filters, the snapshot of the others, SGD that moves only the subset."""

from .api import asynchronous_sgd_, restore_unselected_, save_unselected_, select_filters, unselected_buffer

__all__ = ["asynchronous_sgd_", "restore_unselected_", "save_unselected_", "select_filters", "unselected_buffer"]
