"""The benchmark of measuring activity runs, verifies before it times, and writes what it found."""

import json

import pytest

from benchmarks import activity


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(activity, "BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setattr(activity, "BATCH", 2)
    monkeypatch.setattr(activity, "CLASSES", 3)
    return activity


SMALL = ["--size", "32", "--device", "cpu"]


def test_rows_and_json(bench, tmp_path, capsys):
    output = tmp_path / "result.json"
    assert bench.main([*SMALL, "--models", "channels_last", "--repeats", "1", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert (result["model"], result["batch"], result["size"]) == ("resnet18", 2, 32)
    assert [(row["memory_format"], row["op"], row["repeats"]) for row in result["rows"]] == [
        ("channels_last", op, 1) for op in ("plain", "measured", "kernels", "torch")
    ]
    shares = [row["share"]["median"] for row in result["rows"]]
    assert shares[0] == 0
    assert min(shares[2:]) > 0
    assert "| channels_last | kernels |" in capsys.readouterr().out


def test_the_model_is_resnet18():
    model = activity.ResNet18()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512  # torchvision's


def test_a_wrong_result_is_not_timed(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.wk, "add_channel_activity_", lambda sums, values, *_, **__: sums.fill_(1))
    output = tmp_path / "result.json"
    assert bench.main([*SMALL, "--models", "contiguous", "--output", str(output)]) == 1
    assert "blocks.0.conv1: not the mean absolute activation" in capsys.readouterr().err
    assert not output.exists()


def test_missed_bars_are_named(bench):
    def row(op, share):
        return bench.Row("contiguous", op, 1.0, 1, bench.Spread(1, 1, 1), bench.Spread(share, share, share), 0.5)

    rows = [row("plain", 0.0), row("measured", 0.03), row("kernels", 0.01), row("torch", 0.5)]
    assert bench.missed_bars(rows) == ["missed: contiguous, measured: 3.0% of an iteration, bar 2%"]
    assert bench.missed_bars([row("kernels", 0.021)]) == ["missed: contiguous, kernels: 2.1% of an iteration, bar 2%"]
    assert bench.missed_bars([row("measured", 0.02)]) == []
