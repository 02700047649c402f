"""Training methods that bring inferior convolution filters back to life instead of pruning them.

`WeightEvolution` is one line in a training loop; the kernels behind it are the package ``we_kernels``.
Its names come from `weight_evolution.api`, which is imported with PyTorch when one is first used: the command's help
needs neither.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import *  # noqa: F403
else:

    def __getattr__(name: str) -> object:
        api = import_module(".api", __name__)
        globals().update({each: getattr(api, each) for each in ("__all__", *api.__all__)})
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module(".api", __name__).__all__})
