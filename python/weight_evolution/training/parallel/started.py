"""The ranks that torchrun started, and what becomes of those that are left when one is lost."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from weight_evolution import ExchangeError

from ..errors import UserError
from ..launch import process_group, started_processes
from .ranks import ALONE, Ranks
from .replicas import Replicas

PARALLEL = ("ddp", "fsdp")
_OF_GLOO = ("/gloo/", "Application timeout caused pair closure")


@contextmanager
def parallel_ranks(mode: str | None, device: torch.device, seconds: float) -> Iterator[Ranks]:
    """Those of ``--parallel`` in a process group of all that torchrun started; `ALONE` without it.

    Args:
        mode: one of `PARALLEL`, or None.
        device: of this process.
        seconds: after which a rank that waits for another gives up.

    Raises:
        UserError: torchrun did not start this process; or what was raised within by this rank, with its number, or
            because another one was lost.
    """
    if mode is None:
        yield ALONE
        return
    if started_processes() is None:
        raise UserError(
            f"--parallel {mode} is for processes that torchrun starts: torchrun --nproc-per-node 2 -m weight_evolution "
            f"train --parallel {mode} ..."
        )
    with rank_errors(mode, seconds), process_group(device, seconds), warnings.catch_warnings():
        # Of DistributedDataParallel, about the first convolution of grey images.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        if mode == "ddp":
            yield Replicas()
        else:
            from .shards import Shards  # imports FSDP2, which takes seconds

            yield Shards(device)


@contextmanager
def rank_errors(mode: str, seconds: float) -> Iterator[None]:
    """Says what an error means to a rank among others; the arguments are for the message."""
    rank = f"rank {os.environ['RANK']}"
    try:
        yield
    except UserError as error:
        raise UserError(f"{rank}: {error}") from None
    except ExchangeError:
        raise
    except RuntimeError as error:
        if "Expected to have finished reduction" in str(error):
            raise UserError(
                f"--parallel {mode}: the network has parameters that the loss does not depend on, for which "
                "DistributedDataParallel would wait; freeze them (requires_grad_(False)), or leave them out"
            ) from error
        if (reason := _of_communication(error)) is None:
            raise
        raise UserError(
            f"{rank}: another rank ended or hangs (its own output says why): {reason}. Checkpoints are whole: "
            f"start again with --resume. Ranks wait {seconds:g} s for each other (--parallel-timeout)"
        ) from error


def _of_communication(error: RuntimeError) -> str | None:
    """What went wrong between the ranks, if that is what the error is about: gloo's have no class of their own."""
    text = str(error)
    if not isinstance(error, dist.DistError) and not any(mark in text for mark in _OF_GLOO):
        return None
    return re.sub(r"^\[\S*\]\s*", "", text).partition(". ")[0].partition("\n")[0]
