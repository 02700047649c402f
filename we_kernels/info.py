"""What is available here and why; also ``python -m we_kernels``."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .runtime import backends
from .version import __version__


def info() -> dict[str, Any]:
    """Backends (for each device "available" or the reason why not), versions, where this package is loaded from and how
    its extension was built.

    Creates no CUDA context.
    """
    from .runtime import native

    return {
        "weight-evolution": __version__,
        "loaded from": str(Path(__file__).parent),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch built for CUDA": torch.version.cuda or "no",
        "triton": _version("triton"),
        "native extension": native.build_info(),
        "forced backend": os.environ.get(backends.ENVIRONMENT) or "none",
        "backends": {
            name: {device: backends.unavailable(name, device) or "available" for device in ("cpu", "cuda")}
            for name in backends.BACKENDS
        },
    }


def format_info(values: dict[str, Any]) -> str:
    """`info` as aligned text, one line per entry."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {line}" for line in format_info(value).splitlines()]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
