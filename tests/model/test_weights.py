"""Weights that are not what their module says, and models that show no layers."""

import pytest
import torch
from torch import nn

from weight_evolution.model.weights import check_weight, reason_without_layers

WHOLE = [
    nn.Conv1d(4, 6, 3),
    nn.Conv2d(4, 6, (1, 3), groups=2),
    nn.Conv3d(4, 6, 1),
    nn.ConvTranspose2d(4, 6, 3, groups=2),
    nn.BatchNorm2d(6),
    nn.SyncBatchNorm(6),
    nn.Linear(4, 6),
]


@pytest.mark.parametrize("module", WHOLE, ids=lambda module: type(module).__name__)
def test_the_weight_of_a_module_is_whole(module):
    check_weight("weight", module, module.weight)
    with pytest.raises(ValueError, match=rf"a.weight has shape \(0,\), but its {type(module).__name__} says \["):
        check_weight("a.weight", module, torch.empty(0))  # ZeRO-3
    if module.weight.dim() > 1:
        with pytest.raises(ValueError, match="sharded"):
            check_weight("a.weight", module, module.weight.flatten())  # FSDP with use_orig_params
    with pytest.raises(ValueError, match="sharded"):
        check_weight("a.weight", module, module.weight[1:])
    with pytest.raises(ValueError, match="set the module's sizes"):
        check_weight("a.weight", module, torch.cat([module.weight] * 2))


def test_channels_of_each_group_count_and_kernels_do_not():
    grouped = nn.Conv2d(4, 6, 3, groups=2)
    with pytest.raises(ValueError, match=r"\(6, 4, 3, 3\), but its Conv2d says \[6, 2, \*, \*\]"):
        check_weight("weight", grouped, torch.empty(6, 4, 3, 3))
    check_weight("weight", grouped, torch.empty(6, 2, 5, 5))
    check_weight("weight", nn.LayerNorm(3), torch.empty(0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_why_a_model_shows_no_layers():
    model, example = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (torch.ones(1, 3, 5, 5),)
    assert "scripted or traced" in reason_without_layers(torch.jit.script(model))
    assert "scripted or traced" in reason_without_layers(torch.jit.trace(model, example))
    assert "exported" in reason_without_layers(torch.export.export(model, example).module())
    quantized = torch.ao.nn.quantized.Conv2d(3, 4, 3)
    assert reason_without_layers(nn.Sequential(quantized)).startswith("its layers are quantized (QuantizedConv2d)")
    assert reason_without_layers(nn.Linear(2, 2)) == "the model has none"
