import pytest
import torch
from torch import nn

from weight_evolution import count_invalid_filters


def test_the_norm_is_the_sum_of_magnitudes():
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.fill_(0.25)  # 12 elements: norm 3
        model[0].weight[1] *= -0.5  # 1.5
        model[2].weight.fill_(0.5)  # 2 inputs a group x 3: norm 3
        model[2].weight[2:, 1] = 0.125  # filter 4, of the second group: 0.75
    assert count_invalid_filters(model, 3.0) == (2, 10)
    assert count_invalid_filters(model, 3.125) == (10, 10)
    assert count_invalid_filters(model, 1.0) == (1, 10)
    assert count_invalid_filters(model) == (0, 10)


def test_default_threshold_and_published_count_of_filters():
    from weight_evolution.training.models import make_model

    model = make_model("resnet32", 3, 10)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        convs[5].weight[:3] = 0.09 / convs[5].weight[0].numel()
        convs[6].weight[:2] = 0.11 / convs[6].weight[0].numel()
    assert count_invalid_filters(model) == (3, 1136)
    assert count_invalid_filters(model, 0.01) == (0, 1136)


def test_half_precision_sums_in_float32():
    conv = nn.Conv2d(64, 1, 8, bias=False).bfloat16()
    nn.init.constant_(conv.weight, 0.5)  # 4096 elements: 2048
    assert count_invalid_filters(conv, 2048.0) == (0, 1)
    assert count_invalid_filters(conv, 2048.5) == (1, 1)


def test_a_shared_weight_counts_once_and_nan_is_not_under_a_threshold():
    model = nn.ModuleList([nn.Conv1d(2, 3, 1), nn.Conv1d(2, 3, 1)])
    model[1].weight = model[0].weight
    assert count_invalid_filters(model, 1e9) == (3, 3)
    nn.init.constant_(model[0].weight, torch.nan)
    assert count_invalid_filters(model, 1e9) == (0, 3)


def test_without_convolutions_there_is_nothing_to_count():
    assert count_invalid_filters(nn.Linear(2, 3)) == (0, 0)


@pytest.mark.parametrize(
    ("threshold", "error"),
    [(-0.1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("0.1", TypeError), (True, TypeError)],
)
def test_bad_threshold(threshold, error):
    with pytest.raises(error, match="threshold must be a"):
        count_invalid_filters(nn.Conv1d(1, 1, 1), threshold)


def test_bad_model():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        count_invalid_filters({})
