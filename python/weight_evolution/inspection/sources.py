"""Networks from files and by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..training.checkpoint import check_checkpoint, heading, is_checkpoint, restored_model
from ..training.compacting import is_compact, load_compact
from ..training.errors import UserError
from ..training.models import make_model
from ..training.trainer import headline_accuracy
from .folders import weights_file
from .libraries import LIBRARIES, library_model
from .skeleton import skeleton
from .state_files import is_torch_file, read_torch, read_weights, saved_of


@dataclass(frozen=True)
class Source:
    """A network and where it comes from."""

    model: nn.Module
    title: str
    """One line that says what it is."""
    notes: tuple[str, ...] = ()
    """What of the file is not in the model, and the like."""
    runs: bool = True
    """Whether it has a forward."""
    run: dict[str, Any] | None = None
    """The checkpoint, where it is one of ``weight-evolution train``."""


def load_network(
    source: str,
    model: str | None = None,
    *,
    options: dict[str, int] | None = None,
    random: bool = False,
    trust_pickle: bool = False,
    key: str | None = None,
) -> Source:
    """The network that ``source`` names, on the CPU.

    Args:
        source: a file (`read_weights`) or folder (`weights_file`), a checkpoint of ``weight-evolution train`` or
            ``compact``, ``timm:NAME`` or ``torchvision:NAME`` (with their published weights), or ``module:factory``.
        model: the architecture of a state dict: ``timm:NAME``, ``torchvision:NAME``, ``module:factory`` or a name that
            ``weight-evolution train --model`` takes. Without it the weights alone are measured.
        options: ``in_channels`` and ``num_classes`` for the architecture, where it should not have its own.
        random: freshly initialised instead of published weights.
        trust_pickle: also load files that run code of their own while they are read.
        key: the entry of a file of torch.save that has the weights, dotted in nested dicts; of a checkpoint of
            ``weight-evolution train``, too, which is then read as any other file.

    Raises:
        UserError: says what is missing or wrong.
    """
    options = options or {}
    path = Path(source)
    if not path.exists():
        if ":" not in source:
            raise UserError(
                f"{source}: no such file; a network by name is timm:NAME, torchvision:NAME or module:factory"
            )
        for flag, given in (("--model", model), ("--key", key)):
            if given is not None:
                raise UserError(f"{flag} is for files of weights, {source} names a network")
        if random and source.partition(":")[0] not in LIBRARIES:
            raise UserError(f"--random is for timm:NAME and torchvision:NAME; got {source}")
        return Source(architecture(source, options, pretrained=not random, said=source), source)
    if random:
        raise UserError(f"--random is for timm:NAME and torchvision:NAME, {source} holds weights")
    if options and model is None:
        raise UserError("--num-classes and --in-channels are of an architecture: say which by --model")
    file = weights_file(path)
    if is_torch_file(file) and key is None:
        content = read_torch(file, trust_pickle)
        if (own := _own(file, content)) is not None:
            return _without_model(own, source, model)
        saved = saved_of(file, content)
    else:
        saved = read_weights(file, trust_pickle, key)
    title = f"{source}: {saved.kind}" + (f", {file.relative_to(path)}" if file != path else "")
    if isinstance(saved.content, nn.Module):
        return _without_model(Source(saved.content, title, saved.notes), source, model)
    title = f"{title}, {len(saved.content)} tensors"
    if model is None:
        notes = (*saved.notes, "no --model: known by the weights alone")
        return Source(_skeleton(source, saved.content), title, notes, runs=False)
    network = architecture(model, options, pretrained=False, said=f"--model {model}")
    notes = (*saved.notes, *_load(network, saved.content, source))
    return Source(network, f"{title}, as {model}", notes)


def architecture(name: str, options: dict[str, int], *, pretrained: bool, said: str) -> nn.Module:
    """A network by name.

    Raises:
        UserError: there is none, or its weights cannot be had; ``said`` is where the name comes from.
    """
    library, _, own = name.partition(":")
    if library in LIBRARIES:
        return library_model(library, own, options, pretrained)
    return make_model(name, options.get("in_channels", 3), options.get("num_classes", 10), said=said)


def _without_model(found: Source, source: str, model: str | None) -> Source:
    if model is not None:
        raise UserError(f"--model is for files of weights, {source} holds the network itself; leave it out")
    return found


def _own(path: Path, state: Any) -> Source | None:
    """A checkpoint of this program, or None; ``state`` is what the file holds."""
    if is_compact(state):
        return Source(load_compact(path), f"{path}: a compact network of weight-evolution")
    if not is_checkpoint(state):
        return None
    check_checkpoint(path, state)
    accuracy = f", test accuracy {headline_accuracy(state['history'][-1]):.2f}%" if state["history"] else ""
    return Source(restored_model(state), heading(path, state) + accuracy, run=state)


def _skeleton(source: str, state: dict[str, Tensor]) -> nn.Module:
    made = skeleton(state)
    if next(made.parameters(), None) is None:
        raise UserError(f"{source} holds no weight of a convolution or Linear among {len(state)} tensors")
    return made


def _load(network: nn.Module, state: dict[str, Tensor], source: str) -> tuple[str, ...]:
    """Copies what fits; what is missing or left over is said, what has another shape is refused."""
    wanted = network.state_dict()
    state = _renamed(state, wanted)
    for name, value in wanted.items():
        if name in state and state[name].shape != value.shape:
            raise UserError(
                f"{source}: {name} has shape {tuple(state[name].shape)}, the model's {tuple(value.shape)}; is it "
                "another model, or does it need --num-classes or --in-channels?"
            )
    missing, unexpected = [n for n in wanted if n not in state], [n for n in state if n not in wanted]
    if len(missing) == len(wanted):
        raise UserError(f"{source} holds none of the model's parameters: {unexpected[:3]} against {missing[:3]}")
    with torch.no_grad():
        network.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    notes = []
    if missing:
        notes.append(
            f"{len(missing)} of {len(wanted)} tensors are not in the file, so random: {', '.join(missing[:3])}"
        )
    if unexpected:
        notes.append(f"{len(unexpected)} tensors of the file are not the model's: {', '.join(unexpected[:3])}")
    return tuple(notes)


def _renamed(state: dict[str, Tensor], wanted: dict[str, Any]) -> dict[str, Tensor]:
    """Without the name that a Lightning module or another holder has for the network, such as ``model.``."""
    if any(name in wanted for name in state):
        return state
    prefixes = {name.split(".", 1)[0] + "." for name in state if "." in name}
    for prefix in sorted(prefixes):
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if any(name in wanted for name in inner):
            return inner
    return state
