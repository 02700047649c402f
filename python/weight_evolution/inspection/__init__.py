"""``weight-evolution inspect``: the filter health of any network, from a file or by name."""

from .sources import Source, load_network

__all__ = ["Source", "load_network"]
