"""The benchmark of unit reactivation runs, verifies before it times, and writes what it found."""

import json

import pytest
import torch

from benchmarks import reactivation

SMALL = ["--models", "narrow_resnet18", "--pixels", "32", "--device", "cpu"]
OPS = ("native", "torch", "native reset", "loop", "redo loop", "iteration")


@pytest.fixture
def bench(monkeypatch):
    """Little of everything, with `SMALL`."""
    monkeypatch.setattr(reactivation, "BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setattr(reactivation, "BATCH", 2)
    monkeypatch.setattr(reactivation, "ITERATIONS", 1)
    return reactivation


def test_the_network_is_resnet18():
    model = reactivation.resnet18()
    assert sum(param.numel() for param in model.parameters()) == 11_689_512
    network = reactivation.Network("resnet18", torch.device("cpu"))
    assert len(network.revived) == 2 * (64 + 128 + 256 + 512)


def test_rows_and_json(bench, tmp_path, capsys):
    output = tmp_path / "result.json"
    assert bench.main([*SMALL, "--repeats", "2", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["share"] == 0.05
    assert [(row["model"], row["op"]) for row in result["rows"]] == [("narrow_resnet18", op) for op in OPS]
    assert result["rows"][3]["ratio_loop"]["median"] == result["rows"][4]["ratio_loop"]["median"] == 1
    assert all(0 < row["seconds"]["p20"] <= row["seconds"]["p80"] for row in result["rows"])
    assert "| narrow_resnet18 | native reset | 14 |" in capsys.readouterr().out


def test_the_floor_is_counted_in_cache_lines():
    elements = torch.zeros(3, 9, dtype=torch.bool)
    elements[0, 1:7] = elements[1, 7] = True  # 27 floats: elements 1 to 6 and 16
    assert reactivation._lines(elements, 4).tolist() == [True, True]
    assert reactivation._lines(elements, 8).tolist() == [True, False, True, False]


def test_floors_of_a_column_of_rows_and_of_means(bench):
    steps = bench.Steps("narrow_resnet18", torch.device("cpu"))
    plan = bench.Kernel(steps.networks["native"], None, False).plan
    reads, writes = steps.least_bytes("native")
    held = sum(-(-item.tensor.nbytes // bench.LINE) * bench.LINE for item in plan.items)
    assert 0 < writes < reads < reads + writes < held
    assert steps.least_bytes("native reset") == (0, writes)
    assert steps.least_bytes("loop") == steps.least_bytes("torch") == (reads, writes)
    network, layer = steps.networks["native"], steps.networks["native"].layers[-1]
    (reader,) = layer.outgoing
    revived = int(network.masks[-1].sum())
    columns = revived * len(reader.module.weight)
    rows = revived * layer.module.weight[0].numel() * 4
    assert 3 * rows + 3 * columns * bench.LINE < writes  # of one layer alone


def test_a_wrong_result_is_not_timed(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "fill_moments", lambda network, param, place: network.moments(param)[1][place].zero_())
    output = tmp_path / "result.json"
    assert bench.main([*SMALL, "--output", str(output)]) == 1
    assert "a result is wrong, so nothing is reported: loop" in capsys.readouterr().err
    assert not output.exists()


def test_missed_bars_are_named(bench):
    def row(op, share, faster):
        times = bench.Spread(1.0, 1.0, 1.0)
        return bench.Row("resnet18", op, 96, 3, times, share, bench.Spread(faster, faster, faster), 9.0, 0.5, 30.0)

    rows = [row("native", 0.031, 19.0), row("torch", 0.5, 2.0), row("native reset", 0.2, 21.0)]
    assert bench.missed_bars(rows) == [
        "missed: resnet18, native: 3.1% of an iteration, bar 3%",
        "missed: resnet18, native: 19.0 times faster than the loop, bar 20",
    ]
    assert bench.missed_bars([row("native", 0.029, 21.0), row("native reset", 0.1, 20.0)]) == []
