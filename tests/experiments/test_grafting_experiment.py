import json

from experiments import grafting
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
        "--teacher-model",
        "resnet14",
    ]
    epochs = []
    run_epoch = Trainer.run_epoch

    def noted(self):
        row = run_epoch(self)
        epochs.append((self.config.method, self.config.model, self.seed, row["train_loss"]))
        return row

    monkeypatch.setattr(Trainer, "run_epoch", noted)
    assert grafting.main(arguments) == 0
    # Two epochs of each network.
    methods = {"baseline": 4, "grafting": 8, "distillation": 2, "grafting+distillation": 4}
    assert {name: sum(method == name for method, *_ in epochs) for name in methods} == methods
    assert [model for _, model, *_ in epochs[:2]] == ["resnet14"] * 2
    # The first network starts alike in all rows, and with seed 0.
    first = {loss for method, model, seed, loss in epochs[2::2] if model == "resnet8" and seed == 0}
    assert epochs[2][3] in first
    grafted = [(seed, loss) for method, _, seed, loss in epochs if method == "grafting"]
    assert grafted[0] == (0, epochs[2][3]) == grafted[4]
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert list(rows) == list(grafting.ROWS)
    for row, runs in rows.items():
        best = runs[0].get("best_network_test_accuracy")
        assert (best is None) == (row in ("teacher", "baseline", "distillation"))
        assert best is None or best >= runs[0]["test_accuracy"]
        name = "teacher (resnet14)" if row == "teacher" else row
        assert f"| {name} | {runs[0]['test_accuracy']:.2f} | {'-' if best is None else f'{best:.2f}'} |" in table
    # Averaging is not grafting: their second epochs differ.
    assert grafted[2][1] != grafted[6][1]

    assert grafting.main(arguments) == 0
    assert len(epochs) == sum(methods.values())
    assert grafting.main([*arguments, "--networks", "3"]) == 2
    assert "networks is 2 there and 3 here" in capsys.readouterr().err
    (tmp_path / "out" / "teacher-seed-0.pt").unlink()
    (tmp_path / "out" / "runs" / "distillation-seed-0.json").unlink()
    assert grafting.main(arguments) == 2
    assert "remove the teacher's run" in capsys.readouterr().err
