"""Asynchronous updates on a GPU: selection, snapshot, SGD."""

from .launches import asynchronous_sgd_, copy_unselected, select_filters

__all__ = ["asynchronous_sgd_", "copy_unselected", "select_filters"]
