"""What a network costs: multiply-accumulates, parameters, latency."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from we_kernels.checks import is_integer

from ..model.example_inputs import inputs_beside
from ..model.modes import evaluating


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(
    model: nn.Module, inputs: tuple[Tensor, ...], modules: Sequence[nn.Module] = ()
) -> tuple[int, list[int]]:
    """Multiply-accumulates of one forward in eval mode, of the whole network and of each of these modules.

    Half of what `torch.utils.flop_counter` counts: convolutions, matrix products and attention.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where it is installed

    counter = FlopCounterMode(display=False)
    flops = [0] * len(modules)
    handles = []
    for index, module in enumerate(modules):

        def before(_module: nn.Module, _args: object, index: int = index) -> None:
            flops[index] -= counter.get_total_flops()

        def after(_module: nn.Module, _args: object, _output: object, index: int = index) -> None:
            flops[index] += counter.get_total_flops()

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with evaluating(model), counter:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return counter.get_total_flops() // 2, [count // 2 for count in flops]


def measure_latency(model: nn.Module, inputs: tuple[Tensor, ...], *, min_run_time: float = 0.5) -> float:
    """Median seconds of one forward in eval mode, with the threads that torch uses now; waits for the device."""
    # Here, because it imports PyTorch's tools for C++ extensions, which look for CUDA and may print what they find.
    from torch.utils.benchmark import Timer

    with evaluating(model):
        timer = Timer("model(*inputs)", globals={"model": model, "inputs": inputs}, num_threads=torch.get_num_threads())
        timer.timeit(1)
        median: float = timer.blocked_autorange(min_run_time=min_run_time).median
    return median


def make_inputs(
    model: nn.Module, input_size: Sequence[int] | None, example_inputs: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """``example_inputs``, or zeros of ``input_size``, with or without the batch dimension (then a batch of one), on the
    model's device and of its dtype.

    Raises:
        ValueError: neither is given, or the size is not a list of positive integers.
    """
    if input_size is None:
        if example_inputs is None:
            raise ValueError("counting MACs needs input_size, such as (3, 32, 32), or example_inputs")
        return inputs_beside(model, example_inputs)
    size = [*input_size] if isinstance(input_size, Sequence) else []
    if not size or not all(is_integer(n) and n > 0 for n in size):
        raise ValueError(f"input_size must be a list of positive integers, such as (3, 32, 32), got {input_size!r}")
    if len(size) == _unbatched_dims(model):
        size = [1, *size]
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    return (torch.zeros(size, device=parameter.device, dtype=parameter.dtype),)


def _unbatched_dims(model: nn.Module) -> int:
    dims = [1 + len(module.kernel_size) for module in model.modules() if isinstance(module, _ConvNd)]
    return max(dims, default=1)
