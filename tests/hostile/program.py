"""A random program: a model, surgery on it and calls, with the promises checked after each."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator

import torch
from calls import CALLS, MAKERS, OPTIMIZERS, World, copy_all, look, save, train
from invariants import Violation, bits, check_error, globals_now, is_finite, require_equal
from networks import network, operate, wrapped

READS_ONLY = (look, save)


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
    world = World(model, rng.choice(OPTIMIZERS)(list(model.parameters()) or [torch.nn.Parameter(torch.zeros(1))]))
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        log(f"default dtype {dtype}, {type(world.optimizer).__name__}, {model}")
        for _ in range(calls):
            if rng.random() < 0.4:
                log(f"surgery {operate(rng, world.model)}")
            call = rng.choice(CALLS) if world.methods and rng.random() < 0.75 else rng.choice(MAKERS)
            log(f"call {call.__name__}")
            yield _checked(call, rng, world)
    finally:
        torch.set_default_dtype(usual)


def _checked(call: Callable[[random.Random, World], None], rng: random.Random, world: World) -> bool:
    before, process, finite = bits(world.model), globals_now(), is_finite(world.model)
    model, methods = world.model, len(world.methods)
    returned = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(rng, world)
        except Violation:
            raise
        except Exception as error:
            returned = False
            check_error(error, call.__name__)
    trains = call is train or any(type(m).__name__ == "AsynchronousUpdate" for m in world.methods)
    after = globals_now()
    if call is train or trains:
        process.pop("random state")  # gradients are drawn
        after.pop("random state")
    require_equal(process, after, call.__name__)
    if call is copy_all:
        return returned
    if call in READS_ONLY or call in MAKERS or (not returned and not trains):
        require_equal(before, bits(model), f"{call.__name__}, which {'returned' if returned else 'raised'}")
    if call in MAKERS and not returned and len(world.methods) != methods:
        raise Violation(f"{call.__name__} raised and left an object")
    if returned and not trains and finite and not is_finite(model):
        raise Violation(f"{call.__name__} made a weight NaN or infinite")
    return returned
