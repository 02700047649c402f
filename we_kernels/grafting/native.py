"""Counts of bins, and blends of networks: one call for all tensors, on torch's number of threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.native import module
from ..runtime.view import BankView


def count_bins(bank: BankView, bins: int, per_filter: bool) -> Tensor:
    """int64 [F, bins] or [L, bins]: elements of every filter or tensor in each bin; -1: one is not finite."""
    rows = bank.layout.num_filters if per_filter else len(bank.weights)
    counts = torch.empty((rows, bins), dtype=torch.int64, device="cpu")
    module.count_bins(
        list(bank.addresses),
        bank.layout.table.data_ptr(),
        len(bank.addresses),
        bins,
        per_filter,
        counts.data_ptr(),
        rows,
        torch.get_num_threads(),
    )
    return counts


def blend_(networks: Sequence[BankView], coefficients: Tensor, per_filter: bool) -> None:
    """W_k <- c_k W_k + (1 - c_k) W_(k-1), in place, for the first ``len(c)`` networks; c is
    float32 [written, F or L]."""
    written, columns = coefficients.shape
    module.blend(
        [address for network in networks for address in network.addresses],
        [network.layout.table.data_ptr() for network in networks],
        len(networks[0].weights),
        coefficients.data_ptr(),
        written,
        columns,
        per_filter,
        torch.get_num_threads(),
    )
