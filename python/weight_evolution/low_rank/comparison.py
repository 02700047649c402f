"""Costs of a network beside those of its compact form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..model.copies import copy_model
from ..model.tracing import restored
from .compact import compact_like
from .costs import count_macs, count_parameters, measure_latency
from .report import CompactReport, LayerCost


def compare(
    model: nn.Module,
    ranks: Mapping[str, int],
    names: Sequence[str],
    kept: Mapping[str, str],
    inputs: tuple[Tensor, ...],
    *,
    min_run_time: float | None,
) -> CompactReport:
    """Run copies of the model and of its compact form, since forward may change what it runs on.

    Args:
        model: without wrappers.
        ranks: of the layers that become two.
        names: of all layers to list.
        kept: why the others stay.
        inputs: of forward.
        min_run_time: seconds for which each is timed; None: neither is.
    """
    with restored():
        plain, compact = copy_model(model), compact_like(model, ranks)
        own, own_compact = dict(plain.named_modules()), dict(compact.named_modules())
        before, macs_before = count_macs(plain, inputs, [own[name] for name in names])
        after, macs_after = count_macs(compact, inputs, [own_compact[name] for name in names])
        latencies: list[float | None] = [None, None]
        if min_run_time is not None:
            latencies = [measure_latency(network, inputs, min_run_time=min_run_time) for network in (plain, compact)]
    costs = {
        name: LayerCost(name, tuple(_weight_shape(own[name])), ranks.get(name), b, a, kept.get(name, ""))
        for name, b, a in zip(names, macs_before, macs_after, strict=True)
    }
    return CompactReport(
        input_size=tuple(inputs[0].shape),
        parameters_before=count_parameters(plain),
        parameters_after=count_parameters(compact),
        macs_before=before,
        macs_after=after,
        layers=[costs[name] for name in own if name in costs],
        latency_before=latencies[0],
        latency_after=latencies[1],
    )


def _weight_shape(module: nn.Module) -> torch.Size:
    assert isinstance(module, (_ConvNd, nn.Linear))
    weight = module.weight
    return weight.shape
