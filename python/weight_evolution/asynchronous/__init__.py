"""Weight asynchronous update: in every iteration only a random subset of each convolution's filters moves."""

from .sgd import AsynchronousSGD
from .update import AsynchronousUpdate

__all__ = ["AsynchronousSGD", "AsynchronousUpdate"]
