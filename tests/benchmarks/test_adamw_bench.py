"""The benchmark of UnitAdamW runs, verifies before it times, and writes what it found."""

import json

import pytest
import torch

from benchmarks import adamw, optimizer_steps
from benchmarks.timing import Spread


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(optimizer_steps, "BANDWIDTH_BYTES", 1 << 20)
    return adamw


def test_rows_and_json(bench, tmp_path, capsys):
    output = tmp_path / "result.json"
    assert bench.main(["--models", "resnet56", "--repeats", "2", "--device", "cpu", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["reset"] == 0.1
    assert [(row["model"], row["op"], row["repeats"]) for row in result["rows"]] == [
        ("resnet56", op, 2) for op in ("plain", "unit", "aged")
    ]
    assert result["rows"][0]["ratio_plain"]["median"] == 1
    assert "| resnet56 | aged | 91" in capsys.readouterr().out


@pytest.mark.parametrize("op", ["unit", "aged"])
def test_a_wrong_result_is_found(bench, op):
    steps = bench.Steps("resnet56", torch.device("cpu"))
    step = steps.calls[op]

    def moves_too_much():
        step()
        next(steps.models[op].parameters()).data.add_(1)

    steps.calls[op] = moves_too_much
    with pytest.raises(bench.WrongResultError, match=rf"{op}, 0\.weight"):
        steps.verify()


def test_missed_bars_are_named(bench):
    def row(op, plain):
        return bench.Row("resnet18", op, 1, 1, *[Spread(value, value, value) for value in (1.0, plain)], 0.5)

    rows = [row("plain", 1.0), row("unit", 1.2), row("aged", 1.05)]
    assert bench.missed_bars(rows) == ["missed: resnet18, unit: 1.20 times plain, bar 1.05"]
