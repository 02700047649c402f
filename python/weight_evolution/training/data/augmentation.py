"""Random crops of the padded image, and flips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_ALL = slice(None)


@dataclass(frozen=True)
class Augmentation:
    """Pad by ``padding`` zeros, crop to the old size at random, mirror left-right half of the images if ``flip``."""

    padding: int = 0
    flip: bool = False

    @classmethod
    def of_size(cls, size: Sequence[int]) -> Augmentation:
        """For any images [H, W]: flips, and crops with CIFAR's share of padding, an eighth."""
        return cls(padding=min(size) // 8, flip=True)

    def __call__(self, images: Tensor, draws: torch.Generator, batch: int | None = None, part: slice = _ALL) -> Tensor:
        """Images changed at random, each as it would be in the whole batch.

        Args:
            images: [B, C, H, W].
            draws: a CPU generator of the random numbers, on every device the same.
            batch: images of the whole batch; B when left out.
            part: where the images are in it.
        """
        count, _, height, width = images.shape
        batch = count if batch is None else batch
        device = images.device
        if self.padding:
            offsets = _sent(torch.randint(2 * self.padding + 1, (2, batch, 1), generator=draws)[:, part], device)
            rows = offsets[0] + torch.arange(height, device=device)
            columns = offsets[1] + torch.arange(width, device=device)
            padded = functional.pad(images, [self.padding] * 4)
            which = torch.arange(count, device=device)[:, None, None]
            images = padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.flip:
            mirrored = _sent(torch.rand(batch, generator=draws)[part], device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images


def _sent(drawn: Tensor, device: torch.device) -> Tensor:
    """On the device, which is not waited for: this is done for each batch."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn
