"""Sums of absolute activations by channel on a GPU."""

from .launches import add_channel_activity_

__all__ = ["add_channel_activity_"]
