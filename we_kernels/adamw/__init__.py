"""Adam and AdamW in which rows and columns of a tensor may be younger than the rest."""

from .api import unit_adamw_

__all__ = ["unit_adamw_"]
