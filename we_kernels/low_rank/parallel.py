"""Many pieces of linear algebra at a time on a CPU."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

WORTH_THREADS = 2**28
"""Multiplications, about 3 ms of one thread, from which threads are worth starting: ResNet-56's 2^26 took 10 ms without
and 20 with two, ResNet-50's 2^33 are done in 54% of the time."""

_setting = threading.Lock()

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(
    function: Callable[[Item], Result], items: Sequence[Item], work: Sequence[int], device: torch.device
) -> list[Result]:
    """``function`` of every item, whose ``work`` is in multiplications.

    The libraries make little of a second thread for matrices of a few hundred rows, so on a CPU each thread takes items
    of its own, the largest first. An item that is more than one thread's share of the work gets all threads.
    """
    count = threads(sum(work), device)
    if count == 1:
        return [function(item) for item in items]
    order = sorted(range(len(items)), key=lambda i: -work[i])
    done = dict[int, Result]()
    left = sum(work)
    while order and work[order[0]] * count > left:
        done[order[0]] = function(items[order[0]])
        left -= work[order.pop(0)]
    if order:
        _share(function, items, order, done, count - 1)
    return [done[i] for i in range(len(items))]


def _share(
    function: Callable[[Item], Result], items: Sequence[Item], order: list[int], done: dict[int, Result], helpers: int
) -> None:
    """Fill ``done``, in this thread and in helpers, or in those of them that can be had."""
    inference = torch.is_inference_mode_enabled()  # of this thread only, as is the mode without gradients
    queue, failures = deque(order), list[BaseException]()

    def work_off() -> None:
        with torch.inference_mode(inference), torch.no_grad():
            while queue:
                try:
                    i = queue.popleft()
                except IndexError:  # another thread was faster
                    return
                done[i] = function(items[i])

    def help_out() -> None:
        torch.set_num_threads(1)
        try:
            work_off()
        except BaseException as error:
            failures.append(error)

    with _one_thread_each():
        started = list(_start(help_out, helpers))
        try:
            work_off()
        finally:
            for helper in started:
                helper.join()
    if failures:
        raise failures[0]


def _start(target: Callable[[], None], count: int) -> Iterator[threading.Thread]:
    """Running threads: fewer than ``count``, even none, if the system or an interpreter that shuts down refuses."""
    for _ in range(count):
        thread = threading.Thread(target=target)
        try:
            thread.start()
        except RuntimeError:
            return
        yield thread


def threads(work: int, device: torch.device) -> int:
    """Threads that are worth using for so many multiplications."""
    return torch.get_num_threads() if device.type == "cpu" and work >= WORTH_THREADS else 1


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Torch's number of threads is partly the process's own, so only one call at a time may change it."""
    with _setting:
        former = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(former)


def _start_anew() -> None:
    """A child process has no other thread that could release the lock."""
    global _setting
    _setting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
