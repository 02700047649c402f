"""The demo of the command line."""

from .command import DemoOptions, run_demo
from .random_labels import RandomLabels
from .stationary import Stationary

__all__ = ["DemoOptions", "RandomLabels", "Stationary", "run_demo"]
