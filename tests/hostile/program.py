"""A random program: a model, surgery on it and calls, with the promises checked after each."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch

from tests.hostile.calls import (
    CALLS,
    CONTEXTS,
    MAKERS,
    OPTIMIZERS,
    World,
    copy_all,
    in_thread,
    kernels,
    load,
    look,
    save,
)
from tests.hostile.invariants import (
    Violation,
    bits,
    check_error,
    counters,
    frozen,
    globals_now,
    is_finite,
    optimizer_bits,
    require_equal,
)
from tests.hostile.networks import network, operate, wrapped

READS_ONLY = (look, save, load)
Call = Callable[[random.Random, World], None]


def run(seed: int, calls: int, log: Callable[[str], None]) -> Iterator[bool]:
    """Makes ``calls`` calls, yields after each whether it returned (False: it was refused).

    Raises:
        Violation: a promise was broken; the log tells what led there.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    dtype = rng.choice([torch.float32] * 6 + [torch.float64, torch.bfloat16, torch.float16])
    model = network(rng)
    model.to(rng.choice([torch.float32] * 4 + [torch.float64, torch.bfloat16, torch.float16]))
    model = wrapped(rng, model)
    world = World(model, _optimizer(rng, model), log=log)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        log(f"default dtype {dtype}, {type(world.optimizer).__name__}, {model}")
        for _ in range(calls):
            if rng.random() < 0.4:
                log(f"surgery {operate(rng, world.model)}")
            call = rng.choice(CALLS) if world.methods and rng.random() < 0.75 else rng.choice(MAKERS)
            context, threaded = rng.choice(CONTEXTS), rng.random() < 0.05
            log(f"call {call.__name__} {_words(context, threaded)}")
            with context():
                yield _checked(call, threaded, rng, world)
    finally:
        torch.set_default_dtype(usual)


def _words(context: Callable[[], object], threaded: bool) -> str:
    return f"({context.__name__ if context is not nullcontext else ''}{' in a thread' if threaded else ''})"


def _optimizer(rng: random.Random, model: torch.nn.Module) -> torch.optim.Optimizer:
    try:
        return rng.choice(OPTIMIZERS)(model)
    except Exception as error:
        check_error(error, "optimizer")
        return OPTIMIZERS[-1](model)


def _checked(call: Call, threaded: bool, rng: random.Random, world: World) -> bool:
    """Makes the call and checks the promises; whether it returned."""
    world.trained = False
    models, methods, optimizer = [world.model, *world.others], list(world.methods), world.optimizer
    before, state, fixed = bits(models), optimizer_bits(optimizer), frozen(models)
    process, counted, finite = globals_now(), counters(methods), all(map(is_finite, models))
    returned = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if threaded:
                in_thread(call, rng, world)
            else:
                call(rng, world)
        except Violation:
            raise
        except Exception as error:
            returned = False
            world.log(f"  raised {error!r}"[:300])
            check_error(error, call.__name__)
    name = f"{call.__name__}, which {'returned' if returned else 'raised'}"
    require_equal(process, globals_now(), name)
    if world.trained:
        return returned  # what the optimizer does to weights is its own matter
    if call in READS_ONLY or call in MAKERS or call is copy_all or not returned:
        require_equal(before, bits(models), name)
        require_equal(state, optimizer_bits(optimizer), f"{name}: state of the optimizer")
    elif call is not kernels:
        require_equal(fixed, frozen(models), f"{name}: frozen")
    if not returned:
        require_equal(counted, counters(methods), name)
        if len(world.methods) != len(methods):
            raise Violation(f"{name}: left an object")
    if returned and finite and not all(map(is_finite, models)):
        raise Violation(f"{name}: made a weight NaN or infinite")
    return returned
