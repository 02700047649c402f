"""`Rectification`: what the BatchNorm behind each layer multiplies its rows by."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arguments import check_flag
from ..model.batch_norm_pairs import BatchNormPairs, find_batch_norms
from ..model.wrappers import named_modules
from .layers import Layer, Layers, changed
from .replicas import Replicas, count_other_ranks


class Rectification:
    """The BatchNorm behind each layer of a model, and its scales as they are now.

    Args:
        model: without wrappers.
        layers: those of the model that take part.
        replicas: the ranks that train it, if there are several; the first one's scales count then.
        rectify, given, example_inputs: ``rectify_batch_norm``, ``batch_norm_pairs`` and ``example_inputs`` of
            `LowRankProjection`.

    Raises:
        TypeError, ValueError: name the argument and what cannot be paired.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        replicas: Replicas | None,
        *,
        rectify: bool,
        given: Mapping[str, str | None] | None,
        example_inputs: tuple[Tensor, ...] | None,
    ) -> None:
        check_flag(rectify, "rectify_batch_norm")
        if given is not None and not rectify:
            raise ValueError("batch_norm_pairs has no effect with rectify_batch_norm=False; leave one of them out")
        self._model, self._replicas = model, replicas
        modules = {layer.name: layer.module for layer in layers}
        if rectify:
            self.pairs = find_batch_norms(model, modules, given=given, example_inputs=example_inputs)
            self._warn_of_untraced()
            if replicas is None and not layers.distributed:
                self._warn_of_other_ranks()
        else:
            reasons = dict.fromkeys(modules, "rectify_batch_norm=False")
            self.pairs = BatchNormPairs(dict.fromkeys(modules), reasons, "off")

    def scales(self, layers: Sequence[Layer], *, of_first_rank: bool = False) -> list[Tensor | None]:
        """For each layer [N], what the BatchNorm behind it multiplies each row by; None without one.

        ``of_first_rank``: those of the first replica, where there are several; collective.

        Raises:
            ValueError: a BatchNorm is not what it was.
        """
        scales = [
            None if norm is None else row_scale(layer, norm.running_var, norm.eps, norm.weight)
            for layer, norm in self.pairs_of(layers)
        ]
        if of_first_rank and self._replicas is not None:
            self._replicas.take_([scale for scale in scales if scale is not None])
        return scales

    def pairs_of(self, layers: Sequence[Layer]) -> list[tuple[Layer, _BatchNorm | None]]:
        """Each layer with the BatchNorm behind it, as they are now.

        Raises:
            ValueError: a BatchNorm is not what it was.
        """
        modules = dict(named_modules(self._model))
        return [(layer, self._norm(layer, modules)) for layer in layers]

    def _norm(self, layer: Layer, modules: Mapping[str, nn.Module]) -> _BatchNorm | None:
        norm_name = self.pairs.names.get(layer.name)
        if norm_name is None:
            return None
        norm = modules.get(norm_name)
        if not isinstance(norm, _BatchNorm):
            raise changed(norm_name, f"behind {layer.name} there was a BatchNorm, not {type(norm).__name__}")
        if norm.running_var is None or len(norm.running_var) != layer.rows:
            raise changed(norm_name, f"it has no running variance of the {layer.rows} outputs of {layer.name}")
        return norm

    def _warn_of_untraced(self) -> None:
        has_norm = any(isinstance(module, _BatchNorm) for module in self._model.modules())
        if self.pairs.source == "not traced" and has_norm:
            convs = [name for name, reason in self.pairs.reasons.items() if "traced" in reason]
            warnings.warn(
                f"the model could not be traced ({'; '.join(self.pairs.errors)}), so these are projected without the "
                f"BatchNorm that may follow: {', '.join(convs)}. Pass example_inputs, or name the BatchNorms in "
                "batch_norm_pairs (None for a conv without)",
                stacklevel=4,
            )

    def _warn_of_other_ranks(self) -> None:
        modules = dict(named_modules(self._model))
        own_statistics = [
            norm for norm in self.pairs.names.values() if not isinstance(modules.get(norm or ""), nn.SyncBatchNorm)
        ]
        if any(own_statistics) and (others := count_other_ranks()):
            warnings.warn(
                f"torch.distributed has {others} other ranks, but the model is not in DistributedDataParallel. If they "
                "train replicas of one network, pass the wrapped model: otherwise each rank rectifies with the running "
                "variances of its own BatchNorms, and the replicas drift apart",
                stacklevel=4,
            )


def row_scale(layer: Layer, variance: Tensor | None, eps: float, gamma: Tensor | None) -> Tensor:
    """[N], float32 (float64 for a float64 weight): what a BatchNorm of these values multiplies each row by."""
    assert variance is not None
    dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
    scale = (variance.to(dtype) + eps).rsqrt()
    return scale if gamma is None else scale * gamma.detach().to(dtype)
