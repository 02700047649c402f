"""`GraphedSteps`: training steps of a `Stack` replayed as a CUDA graph, with hooks only where there are any."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from experiments.stacked import Stack

_WARM_UP = 3


class GraphedSteps:
    """Steps of a stack on batches of one shape.

    On a GPU, passes, gradients and the optimizers' update are one CUDA graph. An iteration in which a module has
    forward hooks, which a replay would not call, runs without it; where an optimizer has step hooks, its update does.
    If the graph cannot be captured, all runs without it, and standard error says why. On a CPU there is none.

    Args:
        stack: one whose optimizers it steps, not one with ``own_steps``.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._images: Tensor | None = None
        self._labels: Tensor | None = None
        self._graphs: dict[bool, torch.cuda.CUDAGraph] = {}
        self._eager = 0
        self._fails = False

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """One step; images [R, N, ...], labels [R, N]. Waits for nothing but the capture."""
        if images.device.type != "cuda" or self._fails or self._stack.watched or self._eager < _WARM_UP:
            self._run(images, labels)
            self._eager += 1
            return
        with_update = not self._stack.stepped
        if with_update not in self._graphs and not self._capture(images, labels, with_update):
            self._run(images, labels)
            return
        assert self._images is not None
        assert self._labels is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        if with_update:
            self._stack.read_rates()
            self._graphs[True].replay()
        else:
            self._graphs[False].replay()
            self._stack.step()

    def _run(self, images: Tensor, labels: Tensor) -> None:
        self._stack.backward(images, labels)
        self._stack.step()

    def _capture(self, images: Tensor, labels: Tensor, with_update: bool) -> bool:
        """Record without running: nothing is trained by it."""
        try:
            if self._images is None or self._labels is None:
                self._images, self._labels = images.clone(), labels.clone()
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self._stack.backward(self._images, self._labels)
                if with_update:
                    self._stack.update()
        except Exception as error:
            print(f"no CUDA graph, so every step is launched anew: {error!r}", file=sys.stderr, flush=True)
            self._fails = True
            self._graphs.clear()
            torch.cuda.synchronize()
            return False
        self._graphs[with_update] = graph
        return True
