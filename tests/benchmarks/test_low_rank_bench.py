"""The low-rank benchmark runs, verifies before it times, and writes what it found."""

import json

import torch

from benchmarks import low_rank


def test_rows_and_json(tmp_path, capsys):
    output = tmp_path / "result.json"
    assert low_rank.main(["--models", "resnet20", "--repeats", "2", "--device", "cpu", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert result["prune_ratio"] == 0.6
    assert [(row["model"], row["op"], row["layers"], row["repeats"]) for row in result["rows"]] == [
        ("resnet20", op, 19, 2) for op in ("svd", "cold", "warm")
    ]
    assert result["rows"][0]["ratio_svd"]["median"] == 1
    assert all(0 < row["seconds"]["p20"] <= row["seconds"]["p80"] for row in result["rows"])
    assert "| resnet20 | warm | 19 |" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed(tmp_path, monkeypatch, capsys):
    find = low_rank.wk.project_low_rank_

    def worse(weights, ranks, *, bases=None, **options):
        return find(weights, [max(1, r - (bases is not None)) for r in ranks], **options)

    monkeypatch.setattr(low_rank.wk, "project_low_rank_", worse)
    output = tmp_path / "result.json"
    assert low_rank.main(["--models", "resnet20", "--device", "cpu", "--output", str(output)]) == 1
    assert "a result is wrong" in capsys.readouterr().err
    assert not output.exists()


def test_missed_bars_are_named():
    times = low_rank.Spread(1.0, 1.0, 1.0)
    rows = [low_rank.Row("resnet50", op, 53, 3, times, low_rank.Spread(7.0, 7.0, 7.0)) for op in ("cold", "warm")]
    missed = low_rank.missed_bars(rows, torch.device("cpu"))
    assert missed == ["missed: resnet50, warm: 7.0 times faster than svd, bar 10"]
