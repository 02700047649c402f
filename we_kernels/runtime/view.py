"""`BankView`: what an operator gets of a bank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .layout import Layout, forms_of, layout_of
from .transfer import Place, upload


class BankArguments(NamedTuple):
    """A bank in an operator's schema: ``Tensor[] weights, int[] filter_dims, int[] groups``."""

    weights: Sequence[Tensor]
    filter_dims: Sequence[int]
    groups: Sequence[int]


class BankView(BankArguments):
    """The weights of one call, and how and where they lie during that call; read from them when first asked."""

    @cached_property
    def layout(self) -> Layout:
        """Sizes and strides."""
        return layout_of(forms_of(self.weights), tuple(self.filter_dims), tuple(self.groups))

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Of the first element of each tensor."""
        return tuple(map(Tensor.data_ptr, self.weights))

    @cached_property
    def place(self) -> Place:
        """Device and stream."""
        return Place.current(self.weights[0].device)

    @property
    def device(self) -> torch.device:
        """Where all of the weights are."""
        return self.place.device

    @cached_property
    def addresses_on_device(self) -> Tensor:
        """int64 [L]: `addresses`, for the kernels."""
        return upload(self.addresses, torch.int64, self.place)

    def like(self, others: Sequence[Tensor]) -> BankView:
        """Other tensors, with the same filter dimensions."""
        return BankView(others, self.filter_dims, self.groups)

    def known(self, layout: Layout, addresses: tuple[int, ...]) -> BankView:
        """Itself, with what the caller has read already."""
        self.__dict__.update(layout=layout, addresses=addresses)
        return self
