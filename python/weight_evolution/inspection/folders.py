"""The file of weights in a folder: of Hugging Face, Lightning, or a run of ``weight-evolution train``."""

from __future__ import annotations

import re
from pathlib import Path

from ..training.errors import UserError

_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "checkpoint.pt",
)


def weights_file(path: Path) -> Path:
    """A file itself; in a folder the first of the usual names, then of Lightning's ``*.ckpt`` the newest, then what is
    in the ``checkpoint-N`` of the largest number, or in the only ``seed-N`` or ``network-N``.

    Raises:
        UserError: there is none, or there are several runs.
    """
    if not path.is_dir():
        return path
    if found := next((file for name in _NAMES if (file := path / name).is_file()), None):
        return found
    if checkpoints := [*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")]:
        return max(checkpoints, key=lambda file: (file.stat().st_mtime, file))
    if steps := _numbered(path, "checkpoint"):
        return weights_file(steps[-1])
    runs = _numbered(path, "seed") or _numbered(path, "network")
    if len(runs) == 1:
        return weights_file(runs[0])
    if runs:
        raise UserError(f"{path} holds {', '.join(run.name for run in runs)}; name one: {runs[0]}")
    inside = sorted(entry.name for entry in path.iterdir())
    holds = ", ".join(inside[:8]) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
    raise UserError(
        f"{path} {f'holds {holds}' if inside else 'is empty'}: none of {', '.join(_NAMES)}, *.ckpt, checkpoint-N or "
        "seed-N; name a file"
    )


def _numbered(path: Path, name: str) -> list[Path]:
    """Folders ``NAME-N``, by number."""
    pattern = re.compile(rf"{name}-(\d+)")
    found = {
        folder: match for folder in path.iterdir() if (match := pattern.fullmatch(folder.name)) and folder.is_dir()
    }
    return sorted(found, key=lambda folder: int(found[folder][1]))
