"""Random calls of the public interface, with arguments that are mostly right."""

from __future__ import annotations

import copy
import io
import pickle
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import we_kernels as wk
import weight_evolution as we
from tests.hostile.invariants import flat, require_equal

OPTIMIZERS: tuple[Callable[[nn.Module], torch.optim.Optimizer], ...] = (
    lambda m: we.AsynchronousSGD(_parameters(m), model=m, lr=0.01, momentum=0.9),
    lambda m: torch.optim.SGD(_parameters(m), lr=0.01),
    lambda m: torch.optim.SGD(_parameters(m), lr=0.01, momentum=0.9, nesterov=True),
    lambda m: torch.optim.AdamW(_parameters(m), lr=1e-3),
    lambda m: torch.optim.Adam(_parameters(m), lr=1e-3, amsgrad=True),
    lambda m: torch.optim.RMSprop(_parameters(m), lr=1e-3, momentum=0.5),
    lambda m: torch.optim.Adadelta(_parameters(m)),
    lambda m: torch.optim.NAdam(_parameters(m), lr=1e-3),
)


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def meta_by_default() -> AbstractContextManager[Any]:
    return torch.device("meta")


CONTEXTS: tuple[Callable[[], AbstractContextManager[Any]], ...] = (
    *[nullcontext] * 14,
    torch.no_grad,
    torch.enable_grad,
    torch.inference_mode,
    autocast,
    meta_by_default,
)


def _parameters(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters()) or [nn.Parameter(torch.zeros(1))]


@dataclass
class World:
    """What the calls of one program act on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    others: list[nn.Module] = field(default_factory=list)
    """Networks that the model is grafted with."""
    methods: list[Any] = field(default_factory=list)
    """Objects of the four methods, made so far."""
    states: list[dict[str, Any]] = field(default_factory=list)
    log: Callable[[str], None] = print
    trained: bool = False
    """Whether the call at hand reached a step of the optimizer."""


def odd(rng: random.Random, usual: Any) -> Any:
    """``usual``, now and then as NumPy's number or tensor, or what does not belong there."""
    way = rng.random()
    if way < 0.85:
        return usual
    if way < 0.93:
        return rng.choice([np.float32, np.float64, np.int64, np.array])(usual)
    return rng.choice(
        [-1, 0, 1, 2, 0.5, 1.5, float("nan"), float("inf"), True, "0.5", None, [], torch.tensor(0.5), 2**70]
    )


def make_evolution(rng: random.Random, world: World) -> None:
    options: dict[str, Any] = {"conv_rate": odd(rng, rng.random()), "linear_rate": odd(rng, rng.choice([0.0, 0.5]))}
    options["local_ratio"] = odd(rng, rng.choice([0.1, 0.5, 1.0]))
    options["starvation_divisor"] = odd(rng, 2.0)
    options["crossover"] = rng.choice(["paper", "released"])
    options["norm_shift_rate"] = odd(rng, rng.choice([0.0, 0.05, 0.5, "inferior"]))
    options["check_finite"] = rng.random() < 0.8
    if rng.random() < 0.3:
        options |= {"optimizer": world.optimizer, "optimizer_state": rng.choice(["keep", "fill", "reset"])}
    if rng.random() < 0.2:
        options["epochs"] = odd(rng, rng.choice([1, 5, 300]))
    options |= _filters(rng, world.model)
    world.methods.append(we.WeightEvolution(world.model, schedule=_base_rate, **options))


def _base_rate(rate: float, epoch: int) -> float:
    return rate


def make_projection(rng: random.Random, world: World) -> None:
    options: dict[str, Any] = {"prune_ratio": odd(rng, rng.random()), "linear": rng.random() < 0.5}
    options["rectify_batch_norm"] = rng.random() < 0.7
    options["energy_transfer"] = rng.random() < 0.8
    if rng.random() < 0.3:
        options["example_inputs"] = _normal(rng, torch.empty(2, 3, 9, 9, device="cpu"))
    if rng.random() < 0.2:
        options |= {"prune_ratio": None, "budget": odd(rng, rng.random()), "input_size": (3, 9, 9)}
    if rng.random() < 0.3:
        options |= {"optimizer": world.optimizer, "optimizer_state": rng.choice(["keep", "fill", "reset"])}
    options |= _filters(rng, world.model)
    world.methods.append(we.LowRankProjection(world.model, **options))


def make_grafting(rng: random.Random, world: World) -> None:
    others = [copy.deepcopy(world.model) for _ in range(rng.randint(1, 2))]
    for other in others:
        with torch.no_grad():
            for parameter in other.parameters():
                if parameter.is_floating_point():
                    parameter.mul_(0.5)
    options = {"strength": odd(rng, 0.4), "bins": odd(rng, 10), "level": rng.choice(["layer", "filter"])}
    options["criterion"] = rng.choice(["entropy", "filter-entropy", "l1"])
    options |= _filters(rng, world.model)
    world.methods.append(we.FilterGrafting([world.model, *others], **options))
    world.others += others


def make_update(rng: random.Random, world: World) -> None:
    options = {"rate": odd(rng, 0.5), "seed": odd(rng, rng.randrange(100)), "rescale": rng.random() < 0.3}
    options |= {"select": rng.choice(["filters", "input_channels"]), "replacement": rng.random() < 0.3}
    options |= _filters(rng, world.model)
    update = we.AsynchronousUpdate(world.optimizer, world.model, **options)
    world.methods.append(update)


def _filters(rng: random.Random, model: nn.Module) -> dict[str, Any]:
    if rng.random() < 0.8:
        return {}
    names = [name for name, _ in model.named_modules() if name]
    chosen = rng.sample(names, min(len(names), rng.randint(1, 2)))
    return {rng.choice(["include", "exclude"]): rng.choice([chosen, [nn.Conv2d], ["*conv*"], ["nothing"]])}


def _normal(rng: random.Random, like: Tensor) -> Tensor:
    """Values of its own generator, as the global one must stay as it is."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return torch.randn(like.shape, generator=generator, dtype=torch.float32, device="cpu").to(like)


def step(rng: random.Random, world: World) -> None:
    method = rng.choice(world.methods)
    world.log(f"  {type(method).__name__}")
    if isinstance(method, we.AsynchronousUpdate):
        train(rng, world)  # which is a step of it
    elif isinstance(method, we.WeightEvolution):
        report = method.step(*([odd(rng, rng.randrange(300))] if rng.random() < 0.2 else []))
        str(report)
    else:
        str(method.step())


def train(rng: random.Random, world: World) -> None:
    """One step of the optimizer with made-up gradients."""
    for parameter in world.model.parameters():
        if parameter.requires_grad and parameter.is_leaf:
            parameter.grad = None if rng.random() < 0.1 else _normal(rng, parameter.detach()) * 0.01
    world.trained = True
    world.optimizer.step()


def look(rng: random.Random, world: World) -> None:
    """Calls that change nothing."""
    method = rng.choice(world.methods) if world.methods else None
    ways: dict[str, Callable[[], object]] = {
        "filter_overlap": lambda: we.filter_overlap(world.model),
        "count_invalid_filters": lambda: we.count_invalid_filters(world.model, odd(rng, 0.1)),
        "skipped": lambda: str(getattr(method, "skipped", None)),
        "repr": lambda: repr(method),
    }
    if isinstance(method, we.WeightEvolution):
        ways |= {"preview": lambda: str(method.preview())}
    if isinstance(method, we.LowRankProjection):
        ways |= {"compact": method.compact, "ranks": lambda: (method.ranks, method.layers)}
        ways |= {"report": lambda: str(method.report((3, 9, 9)))}
    if isinstance(method, we.AsynchronousUpdate):
        ways |= {"selection": method.selection, "step_count": lambda: method.step_count}
    way = rng.choice(list(ways))
    world.log(f"  {type(method).__name__}: {way}")
    ways[way]()


def save(rng: random.Random, world: World) -> None:
    method = rng.choice(world.methods)
    if hasattr(method, "state_dict"):
        buffer = io.BytesIO()
        torch.save(method.state_dict(), buffer)
        buffer.seek(0)
        world.states.append(torch.load(buffer, weights_only=True))


def load(rng: random.Random, world: World) -> None:
    """Any state into any method, now and then damaged."""
    method = rng.choice(world.methods)
    if hasattr(method, "load_state_dict") and world.states:
        before = method.state_dict()
        state = copy.deepcopy(rng.choice(world.states))
        if rng.random() < 0.3 and state:
            key = rng.choice(list(state))
            state[key] = rng.choice([None, -1, "x", [], {}, {"a": 1}])
        try:
            method.load_state_dict(state)
        except Exception:
            require_equal(flat(before), flat(method.state_dict()), "a state that was refused")
            raise


def copy_all(rng: random.Random, world: World) -> None:
    """Go on with a copy of everything."""
    everything = (world.model, world.optimizer, world.others, world.methods)
    if rng.random() < 0.5:
        copied = copy.deepcopy(everything)
    else:
        copied = pickle.loads(pickle.dumps(everything))
    world.model, world.optimizer, world.others, world.methods = copied


def kernels(rng: random.Random, world: World) -> None:
    """The operators themselves, on the model's parameters."""
    weights = [p for p in world.model.parameters() if rng.random() < 0.8]
    bank = wk.FilterBank(weights, rng.choice([0, 0, 0, 1]))
    ways: dict[str, Callable[[], object]] = {
        "filter_importance": lambda: wk.filter_importance(bank),
        "weight_entropy": lambda: wk.weight_entropy(bank, odd(rng, 10)),
        "weight_l1": lambda: wk.weight_l1(bank),
        "filter_overlap": lambda: wk.filter_overlap(bank),
        "evolve_": lambda: wk.evolve_(bank, rate=odd(rng, rng.random()), local_ratio=odd(rng, 0.5)),
        "match_filters": lambda: wk.match_filters(bank, wk.filter_importance(bank), rate=odd(rng, 0.3)),
        "blend_": lambda: wk.blend_(bank, bank, torch.full((len(weights),), 0.5)),
        "project_low_rank_": lambda: wk.project_low_rank_(weights, [odd(rng, 1)] * len(weights)),
    }
    way = rng.choice(list(ways))
    world.log(f"  {way}")
    ways[way]()


MAKERS = (make_evolution, make_projection, make_grafting, make_update)
CALLS = (step, step, step, train, look, look, save, load, copy_all, kernels)


def in_thread(call: Callable[[random.Random, World], None], rng: random.Random, world: World) -> None:
    """The call in a thread of its own, whose error is raised here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call(rng, world)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
