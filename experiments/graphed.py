"""`GraphedSteps`: training steps of a `Stack`, replayed as a CUDA graph where no hook is to be called."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from experiments.stacked import Stack

_WARM_UP = 3
"""Steps before the first capture, in which libraries set themselves up."""

Replay = Callable[[], None]


def captured(work: Callable[[], None]) -> Replay:
    """Records what ``work`` launches on the GPU, without doing it; returns what does it."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class GraphedSteps:
    """Steps of a stack on batches of one shape.

    Passes, gradients and the optimizers' update are one graph. An iteration in which a module has forward hooks, which
    a replay would not call, runs without it; where an optimizer has step hooks, its update does. If a capture fails,
    all runs without, and standard error says why.

    Args:
        stack: one that steps for its optimizers, not one with ``own_steps``.
        capture: `captured`, or None: without graphs, as on a CPU.
    """

    def __init__(self, stack: Stack, capture: Callable[[Callable[[], None]], Replay] | None) -> None:
        self._stack, self._capture = stack, capture
        self._batch: tuple[Tensor, Tensor] | None = None
        self._replays: dict[bool, Replay] = {}
        self._steps = 0

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """One step; images [R, N, ...], labels [R, N]."""
        self._steps += 1
        replay = None
        if self._capture is not None and self._steps > _WARM_UP and not self._stack.watched:
            replay = self._replay(images, labels, with_update=not self._stack.stepped)
        if replay is None:
            self._stack.backward(images, labels)
            self._stack.step()
            return
        assert self._batch is not None
        for kept, given in zip(self._batch, (images, labels), strict=True):
            kept.copy_(given)
        if self._stack.stepped:
            replay()
            self._stack.step()
        else:
            self._stack.read_rates()
            replay()

    def _replay(self, images: Tensor, labels: Tensor, with_update: bool) -> Replay | None:
        if with_update in self._replays:
            return self._replays[with_update]
        if self._batch is None:
            self._batch = images.clone(), labels.clone()
        kept_images, kept_labels = self._batch

        def work() -> None:
            self._stack.backward(kept_images, kept_labels)
            if with_update:
                self._stack.update()

        assert self._capture is not None
        try:
            self._replays[with_update] = self._capture(work)
        except Exception as error:
            print(f"no CUDA graph, so every step is launched anew: {error!r}", file=sys.stderr, flush=True)
            self._capture = None
            return None
        return self._replays[with_update]
