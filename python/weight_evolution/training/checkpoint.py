"""Reading and writing checkpoints: plain tensors and numbers, replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .errors import UserError
from .models import make_model
from .torch_files import load_file

FORMAT = 1
_ENTRIES: dict[str, type] = {
    "format": int,
    "config": dict,
    "seed": int,
    "in_channels": int,
    "num_classes": int,
    "epoch": int,
    "model": dict,
    "optimizer": dict,
    "methods": dict,
    "history": list,
}


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``; a crash leaves the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU; loads tensors and plain values only.

    What loads it copies it to where it belongs. Read to a GPU, the optimizers' step counters would stay there, and
    each step would wait for every one of them.

    Raises:
        UserError: there is no such file, or it is not a checkpoint of this program.
    """
    return check_checkpoint(path, load_file(path, "a checkpoint"))


def is_checkpoint(state: object) -> bool:
    """Whether what a file holds is meant to be a checkpoint of this program."""
    return isinstance(state, dict) and state.keys() >= _ENTRIES.keys()


def check_checkpoint(path: Path, state: Any) -> dict[str, Any]:
    """The state itself.

    Raises:
        UserError: it is not a checkpoint of this program.
    """
    if not is_checkpoint(state):
        raise UserError(f"{path} is not a checkpoint of weight-evolution train")
    for name, wanted in _ENTRIES.items():
        if not isinstance(state[name], wanted):
            _refuse(path, name, state[name])
    if state["format"] != FORMAT:
        raise UserError(f"{path} has format {state['format']}, this version reads {FORMAT}")
    for name, tensor in state["model"].items():
        if not isinstance(tensor, torch.Tensor):
            _refuse(path, f"model[{name!r}]", tensor)
    for i, row in enumerate(state["history"]):
        if not isinstance(row, dict) or not isinstance(row.get("test_accuracy"), float):
            _refuse(path, f"history[{i}]", row)
    checked: dict[str, Any] = state
    return checked


def heading(path: Path, state: Mapping[str, Any]) -> str:
    """What a checkpoint is of, for the first line of what is printed about it."""
    config = state["config"]
    return (
        f"{path}: {config['model']} on {config['data']}, method {config['method']}, seed {state['seed']}, "
        f"{state['epoch']} of {config['epochs']} epochs"
    )


def restored_model(state: Mapping[str, Any], device: torch.device | str = "cpu") -> nn.Module:
    """The network of a checkpoint.

    Raises:
        UserError: it cannot be made, or its weights are of another model.
    """
    model = make_model(state["config"]["model"], state["in_channels"], state["num_classes"]).to(device)
    load_weights(model, state["model"])
    return model


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises what `check_model_state` raises."""
    check_model_state(weights, model)
    model.load_state_dict(weights)


def check_model_state(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises UserError, naming the first entry, if the state's names or shapes are not the model's."""
    own = model.state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own:
            raise UserError(
                f"the checkpoint is of another model: {name} is only in {'it' if name in state else 'ours'}"
            )
        if own[name].shape != state[name].shape:
            raise UserError(
                f"the checkpoint is of another model: {name} has shape {tuple(state[name].shape)} there and "
                f"{tuple(own[name].shape)} here"
            )


def _refuse(path: Path, entry: str, value: object) -> NoReturn:
    raise UserError(f"{path} is not a checkpoint of weight-evolution train: {entry} is {value!r:.60}")
