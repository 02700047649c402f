"""The recorded cases, through the public API, on every backend."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from weight_evolution import StagedSigmoid, WeightEvolution

CASES = sorted((Path(__file__).parents[1] / "data" / "weight_evolution").glob("*.json"))


def build_model(layers, arrays):
    model = nn.Sequential()
    for layer in layers:
        name, shape = layer["name"], layer["weight_shape"]
        if layer["type"] == "BatchNorm2d":
            module = nn.BatchNorm2d(shape[0])
        else:
            bias = f"before/{name}.bias" in arrays
            module = nn.Conv2d(shape[1] * layer["groups"], shape[0], shape[2:], groups=layer["groups"], bias=bias)
        model.add_module(name, module)
    state = {key.removeprefix("before/"): arrays[key] for key in arrays if key.startswith("before/")}
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    return model


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_recorded_case(path, backend):
    case = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as file:
        arrays = dict(file)
    model = build_model(case["layers"], arrays)
    hyper = {key: value for key, value in case["hyper"].items() if key != "schedule"}
    evolution = WeightEvolution(model, **hyper, schedule=StagedSigmoid.cifar(), crossover=case["crossover"])

    for i, epoch in enumerate(case["epochs"]):
        report = evolution.step(epoch=epoch)
        prefix = f"step{i}/donor/"
        donors = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        assert donors.keys() == report.donors.keys()
        for name, donor in donors.items():
            assert report.donors[name].tolist() == donor.tolist(), name
        assert {kind: report.counters[kind] for kind in case["counters"][i]} == case["counters"][i]
        assert sum(report.inferior.values()) == case["inferior"][i]
        if "thresholds" in case:
            for kind, threshold in case["thresholds"][i].items():
                assert report.thresholds[kind] == pytest.approx(threshold, rel=1e-6)
        for key, tensor in model.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            expected = torch.from_numpy(arrays[f"step{i}/after/{key}"])
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6 * float(expected.abs().max()), msg=key)


def test_there_are_cases():
    assert len(CASES) == 8
