"""Units that have stopped firing, made anew: an optimizer in which what is new has its own age."""

from .unit_adamw import UnitAdamW, UnitResets

__all__ = ["UnitAdamW", "UnitResets"]
