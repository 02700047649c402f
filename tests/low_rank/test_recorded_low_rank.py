"""The recorded cases, through the public API."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from weight_evolution import LowRankProjection

CASES = sorted((Path(__file__).parents[1] / "data" / "low_rank").glob("*.json"))


def test_there_are_cases():
    assert {path.stem for path in CASES} == {"plain_keep30", "plain_keep30_rectified"}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize("by_ratio", [True, False])
def test_recorded_case(path, by_ratio):
    case = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file}
    model = nn.Sequential()
    for i, name in enumerate(case["layers"]):
        out, into, *kernel = arrays[f"before/{name}.weight"].shape
        model.add_module(name, nn.Conv2d(into, out, kernel, bias=False))
        model.add_module(f"bn{i}", nn.BatchNorm2d(out, eps=case["epsilon"]))
    state = {key.removeprefix("before/"): value for key, value in arrays.items() if key.startswith("before/")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    ranks = dict(zip(case["layers"], case["ranks"], strict=True))
    projection = LowRankProjection(
        model,
        **({"prune_ratio": 0.7} if by_ratio else {"ranks": ranks}),
        rectify_batch_norm=case["batch_norm_rectification"],
    )
    assert projection.ranks == ranks

    projection.step()

    for name in case["layers"]:
        weight, expected = model.get_submodule(name).weight.detach(), arrays[f"after/{name}.weight"]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
        values = torch.linalg.svdvals(weight.double().flatten(1))
        expected_values = arrays[f"singular_values_after/{name}"]
        torch.testing.assert_close(values, expected_values, rtol=0, atol=1e-4 * float(expected_values.max()))
