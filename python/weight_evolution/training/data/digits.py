"""scikit-learn's embedded digits: 1,797 grey images 8 x 8 of handwritten digits (UCI optdigits, test part)."""

from __future__ import annotations

import torch

from ...extras import install
from ..errors import UserError
from ..randomness import generator
from .augmentation import Augmentation
from .dataset import Dataset

TEST_IMAGES = 899
"""Half, as in scikit-learn's own example of digits; the split is drawn once, by a fixed seed that no option changes."""


def load_digits() -> Dataset:
    """Needs scikit-learn (the extra ``train``), no file and no network."""
    try:
        from sklearn.datasets import load_digits as sklearn_digits
    except ImportError:
        raise UserError(f"the digits data set needs scikit-learn: {install('train')}") from None
    digits = sklearn_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=generator("digits split"))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Dataset("digits", images[train], labels[train], images[test], labels[test], 10, Augmentation(padding=1))
