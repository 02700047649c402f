"""Unit reactivation: which units are dormant, and fresh weights for those that are to start anew."""

from .api import dormant_units, reactivate_
from .plan import UnitPlan, UnitTensor

__all__ = ["UnitPlan", "UnitTensor", "dormant_units", "reactivate_"]
