"""Unit reactivation on a GPU: dormant units, fresh weights."""

from .launches import dormant_units, reactivate_

__all__ = ["dormant_units", "reactivate_"]
