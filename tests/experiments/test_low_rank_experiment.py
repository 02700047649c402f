import json

from experiments import common, low_rank
from weight_evolution.training.trainer import Trainer


def test_the_experiment(tmp_path, capsys, monkeypatch):
    """Every row of the table, from one seed of a quick run; a second call trains nothing."""
    arguments = ["--quick", "--device", "cpu", "--output", str(tmp_path / "out"), "--threads", "1"]
    epochs, images = [], set()
    run_epoch = Trainer.run_epoch

    def noted(self):
        epochs.append(self.config.method)
        images.add(len(self.dataset.train_images))
        return run_epoch(self)

    monkeypatch.setattr(Trainer, "run_epoch", noted)
    assert low_rank.main(arguments) == 0
    # Equal budgets: two epochs for the baseline, two in all for the fine-tuned one, two for each variant.
    assert epochs == ["baseline"] * 4 + ["low-rank"] * 6
    assert images == {96}
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "the first 96 training images" in table
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert list(rows) == list(low_rank.ROWS)
    runs = [run for row in rows.values() for run in row]
    assert [run["seed"] for run in runs] == [0] * len(rows)
    assert len({run["parameters"] for run in runs[1:]}) == 1  # one rank per layer, however it was reached
    assert runs[1]["parameters"] < runs[0]["parameters"]
    for row, run in zip(rows, runs, strict=True):
        assert f"| {row} | {run['test_accuracy']:.2f} |" in table

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    assert low_rank.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert len(epochs) == 10
    assert low_rank.main([*arguments, "--prune-ratio", "0.5"]) == 2
    assert "prune_ratio is 0.6 there and 0.5 here" in capsys.readouterr().err


def test_rows_over_seeds():
    """Mean and sample deviation of several seeds, none of one."""
    runs = [{"test_accuracy": value} for value in (90.0, 91.0, 95.0)]
    assert common.mean_and_deviation(runs, "test_accuracy") == "92.00 +- 2.65"
    assert common.mean_and_deviation(runs[:1], "test_accuracy") == "90.00"
    assert common.markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
