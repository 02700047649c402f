"""The extension we_kernels._native, if it is installed, and what it was built for."""

from __future__ import annotations

import warnings
from importlib import metadata
from pathlib import Path

__all__ = ["build_info", "module", "unavailable"]

_import_error = ""
try:
    import we_kernels._native as module
except ImportError as error:
    module = None
    _import_error = str(error)

_package = Path(__file__).parents[1]
_note = _package / "_native_reason.txt"  # what setup.py could not build, and why
_reason = _note.read_text(encoding="utf-8", errors="replace").strip() if _note.exists() else ""
if module is None and _reason:
    _import_error = f"{_import_error}; {_reason}"


def _installed_with_extension() -> Path | None:
    """The installed package, where that is another one than this and has the extension."""
    for distribution in metadata.distributions(name="weight-evolution"):
        installed = Path(str(distribution.locate_file("we_kernels"))).resolve()
        if installed != _package.resolve() and any(installed.glob("_native.*")):
            return installed
    return None


if module is None and (_installed := _installed_with_extension()):
    _import_error = f"{_import_error}; the package installed in {_installed} has it, but this one is loaded instead"
    warnings.warn(
        f"we_kernels is loaded from {_package}, where its native extension was not built, though the package installed "
        f"in {_installed} has it: the slower reference runs. Start Python in another folder, or install this one "
        "(pip install -e .)",
        RuntimeWarning,
        stacklevel=2,
    )


def unavailable(device_type: str) -> str | None:
    """Why the extension cannot work on tensors of such a device; None when it can."""
    if module is None:
        return f"the native extension is not installed in {_package} ({_import_error})"
    if device_type == "cpu":
        return None
    if device_type != "cuda":
        return f"it has no kernels for {device_type}"
    if not hasattr(module, "cuda_status"):
        return f"the native extension was {_reason or 'built without CUDA'}"
    reason: str | None = module.cuda_status()
    return reason and f"the native extension cannot use CUDA: {reason}"


def build_info() -> str:
    """Compiler, instruction set in use and CUDA architectures of the extension, or why there is none."""
    if module is None:
        return f"not installed in {_package} ({_import_error})"
    cuda = (
        f"CUDA for {module.cuda_architectures()}"
        if hasattr(module, "cuda_architectures")
        else _reason or "built without CUDA"
    )
    return f"{module.compiler()}, {module.simd()}, {cuda}"
