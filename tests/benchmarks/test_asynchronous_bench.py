"""The benchmark of asynchronous updates runs, verifies before it times, and writes what it found."""

import json

import pytest
import torch

from benchmarks import asynchronous, optimizer_steps
from benchmarks.timing import Spread


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(optimizer_steps, "BANDWIDTH_BYTES", 1 << 20)
    return asynchronous


def test_rows_and_json(bench, tmp_path, capsys):
    output = tmp_path / "result.json"
    assert bench.main(["--models", "resnet20", "--repeats", "2", "--device", "cpu", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["rate"] == 0.5
    assert [(row["model"], row["op"], row["repeats"]) for row in result["rows"]] == [
        ("resnet20", op, 2) for op in ("plain", "sgd", "hook", "loop")
    ]
    assert result["rows"][0]["ratio_plain"]["median"] == 1
    assert result["rows"][3]["ratio_loop"]["median"] == 1
    assert all(0 < row["seconds"]["p20"] <= row["seconds"]["p80"] for row in result["rows"])
    assert "| resnet20 | hook | 334" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed(bench, tmp_path, monkeypatch, capsys):
    def move_all(self):
        for param in self.params:
            param.data.add_(param.grad, alpha=-1.0)

    monkeypatch.setattr(bench.MaskLoop, "step", move_all)
    output = tmp_path / "result.json"
    assert bench.main(["--models", "resnet20", "--device", "cpu", "--output", str(output)]) == 1
    assert "a result is wrong, so nothing is reported: loop" in capsys.readouterr().err
    assert not output.exists()


def test_filters_that_must_stay_are_checked(bench, monkeypatch):
    steps = bench.Steps("resnet20", torch.device("cpu"))
    step = steps.calls["sgd"]

    def moves_too_much():
        step()
        next(steps.models["sgd"].parameters()).data.add_(1)

    steps.calls["sgd"] = moves_too_much
    with pytest.raises(bench.WrongResultError, match=r"sgd, 0\.weight"):
        steps.verify()


def test_missed_bars_are_named(bench):
    def row(op, plain, loop):
        seconds, over_plain, over_loop = (Spread(value, value, value) for value in (1.0, plain, loop))
        return bench.LoopRow("mobilenetv2", op, 1, 1, seconds, over_plain, 0.5, over_loop)

    rows = [row("plain", 1.0, 2.0), row("sgd", 1.2, 4.0), row("hook", 1.5, 2.0), row("loop", 1.5, 1.0)]
    assert bench.missed_bars(rows) == [
        "missed: mobilenetv2, sgd: 1.20 times plain, bar 1.05",
        "missed: mobilenetv2, sgd: costs +0.20 over plain, the loop +0.50, bar 5 times less",
    ]
    rows[1] = row("sgd", 0.8, 4.0)
    assert bench.missed_bars(rows) == []
