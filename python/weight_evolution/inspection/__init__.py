"""``weight-evolution inspect``: the filter health of any network, from a file or by name."""

from .command import InspectOptions, inspect
from .folders import weights_file
from .selection import SelectionOptions
from .sources import Source, load_network

__all__ = ["InspectOptions", "SelectionOptions", "Source", "inspect", "load_network", "weights_file"]
