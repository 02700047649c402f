"""The recorded cases, through the public API."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from weight_evolution import FilterGrafting

CASES = sorted((Path(__file__).parents[1] / "data" / "filter_grafting").glob("*.json"))


def test_there_are_cases():
    assert {path.stem for path in CASES} == {"two_networks", "three_networks"}


def network(state):
    model = nn.Sequential()
    convs = sum(name.startswith("conv") for name in state)
    for i in range(convs):
        out, into, *kernel = state[f"conv{i}.weight"].shape
        model.add_module(f"conv{i}", nn.Conv2d(into, out, kernel, bias=False))
        model.add_module(f"bn{i}", nn.BatchNorm2d(out))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_recorded_case(path, backend):
    case = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    before, after = (
        [
            {key.removeprefix(f"{when}/{i}/"): value for key, value in arrays.items() if key.startswith(f"{when}/{i}/")}
            for i in range(case["networks"])
        ]
        for when in ("before", "after")
    )
    models = [network(state) for state in before]

    report = FilterGrafting(
        models, strength=case["a"], sharpness=case["c"], bins=case["bins"], round_coefficient=True
    ).step()

    for i, model in enumerate(models):
        assert report.entropies[i] == pytest.approx(case["entropy"][i], rel=1e-6)
        assert report.coefficients[i] == pytest.approx(case["coefficient"][i], rel=1e-7)
        for name, expected in after[i].items():
            largest = float(expected.abs().max())
            torch.testing.assert_close(model.state_dict()[name], expected, rtol=0, atol=1e-6 * largest)
