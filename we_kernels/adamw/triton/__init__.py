"""AdamW with an age per row and column on a GPU."""

from .launches import unit_adamw_

__all__ = ["unit_adamw_"]
