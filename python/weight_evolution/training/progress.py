"""The progress of an epoch, for somebody who waits: a bar with images per second and the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator

from torch import Tensor

Batches = Generator[tuple[Tensor, Tensor], None, None]
"""Of images and labels."""
Watch = Callable[[Batches, int], Batches]
"""What hands on the batches of an epoch (from 0) as they are taken."""


def unwatched(batches: Batches, epoch: int) -> Batches:
    """The batches themselves."""
    return batches


def is_watched() -> bool:
    """Whether a bar would be seen: stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def bar(name: str, epochs: int, images: int, ranks: int = 1) -> Watch:
    """A bar on stderr for each epoch, which goes when the epoch is over; none without tqdm (the extra ``train``).

    Args:
        name: what trains.
        epochs: of the run.
        images: of an epoch.
        ranks: that see a part of them each; shown are those of all, taken to be as many as this rank's.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return unwatched

    def watched(batches: Batches, epoch: int) -> Batches:
        title = f"{name}  epoch {epoch + 1}/{epochs}"
        options = {"unit": " images", "unit_scale": ranks > 1 and ranks, "leave": False, "dynamic_ncols": True}
        with tqdm(total=-(-images // ranks), desc=title, **options) as shown:
            for batch in batches:
                yield batch
                shown.update(len(batch[1]))

    return watched
