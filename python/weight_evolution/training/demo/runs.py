"""The demo's runs: what each gives, and how they are spread over processes."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Run:
    """One trained network."""

    method: str
    """The row of the table."""
    seed: int
    history: list[dict[str, float]]
    """Rows of the log: one per task, or per epoch."""

    def last(self, column: str) -> float:
        """A value of the last row."""
        return self.history[-1][column]

    def last_half(self, column: str) -> float:
        """The mean over the second half of the rows; the middle one of an odd number is not in it."""
        return statistics.fmean(row[column] for row in self.history[(len(self.history) + 1) // 2 :] or self.history)

    def total(self, column: str) -> float:
        """The sum over the rows that have it."""
        return sum(row.get(column, 0) for row in self.history)


def run_all(jobs: Sequence[Callable[[], Run]], processes: int, tick: Callable[[], object]) -> list[Run]:
    """What the jobs return, in their order; they run one after the other, or in so many other processes.

    A run does not depend on the process that it is in. Each has as many threads as this one. ``tick`` is called after
    each job. Jobs must be picklable, if there are other processes.
    """
    if processes == 1:
        runs = []
        for job in jobs:
            runs.append(job())
            tick()
        return runs
    # A forked process can hang on a lock of a thread of torch's.
    context = multiprocessing.get_context("spawn")
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(threads,)) as pool:
        futures = [pool.submit(job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                tick()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is interrupted, too, and ends the others
