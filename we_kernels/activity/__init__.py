"""Activity: sums and means of absolute activations by channel."""

from .api import add_channel_activity_, channel_activity

__all__ = ["add_channel_activity_", "channel_activity"]
