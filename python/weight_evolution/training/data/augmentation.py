"""Random crops of the padded image, and flips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Pad by ``padding`` zeros, crop to the old size at random, mirror left-right half of the images if ``flip``."""

    padding: int = 0
    flip: bool = False

    @classmethod
    def of_size(cls, size: Sequence[int]) -> Augmentation:
        """For any images [H, W]: flips, and crops with CIFAR's share of padding, an eighth."""
        return cls(padding=min(size) // 8, flip=True)

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Images [B, C, H, W]; the random numbers come from the CPU generator ``draws``, on every device the same."""
        count, _, height, width = images.shape
        device = images.device
        if self.padding:
            offsets = _sent(torch.randint(2 * self.padding + 1, (2, count, 1), generator=draws), device)
            rows = offsets[0] + torch.arange(height, device=device)
            columns = offsets[1] + torch.arange(width, device=device)
            padded = functional.pad(images, [self.padding] * 4)
            which = torch.arange(count, device=device)[:, None, None]
            images = padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.flip:
            mirrored = _sent(torch.rand(count, generator=draws), device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images


def _sent(drawn: Tensor, device: torch.device) -> Tensor:
    """On the device, which is not waited for: this is done for each batch."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn
