"""Asynchronous updates on a GPU: selection, snapshot, SGD."""

from .launches import asynchronous_sgd_, restore_unselected_, save_unselected_, select_filters

__all__ = ["asynchronous_sgd_", "restore_unselected_", "save_unselected_", "select_filters"]
