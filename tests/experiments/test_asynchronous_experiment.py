import json

from experiments import asynchronous
from weight_evolution.training.trainer import Trainer


def test_the_experiment(tmp_path, capsys, monkeypatch):
    """Every row of the table, from one seed of a quick run; a second call trains nothing."""
    arguments = [
        "--quick",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "out"),
        "--threads",
        "1",
        "--train-images",
        "64",
    ]
    arguments += ["--epochs", "1", "--batch-size", "16"]
    trained = []
    run_epoch = Trainer.run_epoch

    def noted(self):
        row = run_epoch(self)
        trained.append((self.config.lr, self.config.method_options["asynchronous"], row["train_loss"]))
        return row

    monkeypatch.setattr(Trainer, "run_epoch", noted)
    assert asynchronous.main(arguments) == 0
    assert [lr for lr, *_ in trained] == [0.1, 0.025, 0.05, 0.1 * 0.75] + [0.1] * 7
    assert [options["rate"] for _, options, _ in trained] == [1.0] * 4 + [0.25, 0.5, 0.75] * 2 + [0.5]
    released = [options["replacement"] and options["select"] == "input_channels" for _, options, _ in trained]
    assert released == [False] * 7 + [True] * 3 + [False]
    assert [options["rescale"] for _, options, _ in trained] == [False] * 10 + [True]
    assert len({loss for *_, loss in trained}) == 11
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert list(rows) == list(asynchronous.ROWS)
    for row, (run,) in rows.items():
        assert f"| {row} | {run['test_accuracy']:.2f} | {run['train_loss']:.4f} | {run['overlap_mean']:.4f} |" in table
        assert run["overlap_0"] == run["overlap_mean"]
    assert "0.40 at rate 0.5" in table
    assert (tmp_path / "out" / "overlap.png").read_bytes().startswith(b"\x89PNG")

    assert asynchronous.main(arguments) == 0
    assert len(trained) == 11
    assert asynchronous.main([*arguments, "--lr", "0.2"]) == 2
    assert "lr is 0.1 there and 0.2 here" in capsys.readouterr().err
