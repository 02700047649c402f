"""Unit reactivation: units that no longer fire start anew."""

from .method import UnitReactivation
from .report import ReactivationReport
from .unit_adamw import UnitAdamW, UnitResets

__all__ = ["ReactivationReport", "UnitAdamW", "UnitReactivation", "UnitResets"]
