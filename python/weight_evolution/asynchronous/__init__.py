"""Weight asynchronous update: in every iteration only a random subset of each convolution's filters moves."""

from .sgd import AsynchronousSGD
from .subsets import PUBLISHED_RATE
from .update import AsynchronousUpdate

__all__ = ["PUBLISHED_RATE", "AsynchronousSGD", "AsynchronousUpdate"]
