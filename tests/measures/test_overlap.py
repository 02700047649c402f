import math

import pytest
import torch
from torch import nn

from tests.asynchronous.twins import make_net
from weight_evolution import filter_overlap, measure_overlap


def cosines(filters):
    rows = nn.functional.normalize(filters.detach().double().flatten(1), dim=1)
    return (rows @ rows.T).abs().fill_diagonal_(0)


def test_mean_and_maxima_of_every_convolution():
    model = make_net()
    model.stem.weight.requires_grad_(False)
    report = measure_overlap(model)
    assert filter_overlap(model) == report.mean
    assert list(report.mean) == ["stem.weight", "depthwise.weight", "grouped.weight", "up.weight"]
    expected = {
        "stem.weight": cosines(model.stem.weight),
        "depthwise.weight": cosines(model.depthwise.weight),
        "grouped.weight": cosines(model.grouped.weight),
        "up.weight": cosines(model.up.weight.transpose(0, 1)),
    }
    for name, matrix in expected.items():
        count = len(matrix)
        assert report.mean[name] == pytest.approx(float(matrix.sum()) / (count * (count - 1)), abs=1e-6)
        torch.testing.assert_close(report.maximum[name].double(), matrix.amax(1), rtol=0, atol=1e-6)
    assert report.model_mean == pytest.approx(sum(report.mean.values()) / 4)
    assert report.model_maximum == pytest.approx(float(torch.cat([*report.maximum.values()]).mean()), abs=1e-6)
    assert f"model                  26  {report.model_mean:.4f}" in report.table()


def test_transposed_groups_shared_and_computed_weights():
    first, second = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)
    second.weight = first.weight
    up = nn.ConvTranspose2d(4, 6, 2, groups=2)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 4, 3))
    found = measure_overlap(nn.Sequential(first, second, up, normed))
    assert list(found.mean) == ["0.weight", "2.weight", "3.weight"]
    filters = torch.cat([up.weight[:2].transpose(0, 1), up.weight[2:].transpose(0, 1)])
    torch.testing.assert_close(found.maximum["2.weight"].double(), cosines(filters).amax(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.maximum["3.weight"].double(), cosines(normed.weight).amax(1), rtol=0, atol=1e-6)


def test_layers_of_one_filter_do_not_count_in_the_model():
    one, two = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 2, 1)
    report = measure_overlap(nn.Sequential(one, two))
    assert report.mean["0.weight"] == 0.0
    assert report.model_mean == report.mean["1.weight"] == pytest.approx(1.0)
    assert math.isnan(measure_overlap(one).model_mean)
    assert measure_overlap(nn.Linear(2, 2)).mean == {}


def test_include_exclude_and_errors():
    model = make_net()
    assert list(filter_overlap(model, exclude=["up", "stem"])) == ["depthwise.weight", "grouped.weight"]
    assert list(filter_overlap(model, include=["*ed"])) == ["grouped.weight"]
    with pytest.raises(ValueError, match="include: 'x' matches no module"):
        measure_overlap(model, include=["x"])
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        filter_overlap(model.stem.weight)
    with pytest.raises(TypeError, match="weight is not initialized yet"):
        filter_overlap(nn.Sequential(nn.LazyConv2d(3, 3)))
