"""The authors' released program, timed on the same weights. Its code is loaded from a clone at run time."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.baselines import Backend
from benchmarks.case import LOCAL_RATIO, NORM_RATE, Case
from benchmarks.verify import WrongResultError

REPOSITORY = "https://github.com/BZQLin/Weight-evolution"
PROGRAM = Path("WE/WE_cifar/we.py")
FUNCTIONS = ("sigmoid", "valid_num", "evolution")

TOLERANCE = 1e-6
"""Of a filter's elements, relative to the tensor's largest magnitude."""
MAY_DIFFER = 1e-3
"""Share of the filters: its norms are summed in another order, by which nearly equal filters swap places."""


class NotAReleaseError(ValueError):
    """The path given is no clone of the authors' repository."""


def compile_functions(path: Path, program: Path, functions: Sequence[str], repository: str) -> CodeType:
    """The definitions of these functions in the file ``program`` of a clone; the rest of it, which trains, is left out.

    Raises:
        NotAReleaseError: ``path`` holds no such program.
    """
    file = path / program
    if not file.is_file():
        raise NotAReleaseError(f"--released {path}: no {program} there; give a clone of {repository}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name in functions]
    if missing := set(functions) - {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}:
        names = ", ".join(sorted(missing))
        raise NotAReleaseError(f"--released {path}: {program} defines no {names}; give a clone of {repository}")
    return compile(tree, program.name, "exec")


class ReleasedProgram:
    """Global thresholds and evolution of the CIFAR program, which also takes ResNet-50's layers.

    The script trains when it is imported, so only its three functions are compiled, and its globals are provided.

    Raises:
        NotAReleaseError: ``path`` holds no such program.
    """

    def __init__(self, path: Path) -> None:
        self._code = compile_functions(path, PROGRAM, FUNCTIONS, REPOSITORY)

    def step(self, case: Case) -> Callable[[], None]:
        """A function that evolves ``case`` (made with norms and the released rule), as the program's epoch loop does.

        The program's rate in epoch 0 is half its base rate, so it gets twice the rate of the case.
        """
        model = _model(case)
        rate = 2 * case.rates[0]
        program: dict[str, Any] = {
            "torch": torch,
            "nn": nn,
            "np": np,
            "args": SimpleNamespace(radio_conv=rate, radio_bn=2 * NORM_RATE, radio_bias=2 * NORM_RATE, lab=LOCAL_RATIO),
            "ln_per": case.starvation_limit,
            "low_cut_count": 0,
            "low_cut_count_bn": 0,
            "low_cut_count_bias": 0,
        }
        exec(self._code, program)

        def evolve() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                program["valid_num"](model, 0)
                program["evolution"](model)

        return evolve


def _model(case: Case) -> nn.Sequential:
    """Convolutions and BatchNorms over the case's own memory."""
    model = nn.Sequential()
    for conv, weight, scale, shift in zip(case.convs, *case.parameters, strict=True):
        inputs = conv.channels * conv.groups
        layer = nn.Conv2d(inputs, conv.filters, conv.kernel, groups=conv.groups, bias=False, device="meta")
        norm = nn.BatchNorm2d(conv.filters, device="meta")
        layer.weight, norm.weight, norm.bias = map(nn.Parameter, (weight, scale, shift))
        model.extend([layer, norm])
    return model


def verify(case: Case) -> None:
    """``case``, as the released program left it, against the reference on the same weights; leaves it restored.

    Raises:
        WrongResultError: more filters differ than swaps of nearly equal ones explain.
    """
    results = [weight.clone() for weight in case.weights]
    case.restore()
    reference = Backend("torch")
    with reference.active():
        reference.step(case)
    different = 0
    for weight, result in zip(case.weights, results, strict=True):
        allowed = TOLERANCE * weight.abs().amax()
        different += int(((result - weight).abs().reshape(len(weight), -1) > allowed).any(1).sum())
    case.restore()
    if different > MAY_DIFFER * case.bank.num_filters:
        raise WrongResultError(f"released program: {different} of {case.bank.num_filters} filters differ")
