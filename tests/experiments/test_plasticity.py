"""The plasticity experiment: schedule, budget, journal, company of a run, tables."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from experiments import plasticity, plasticity_training, rivals
from experiments.continual import load_images
from experiments.journal import Journal
from experiments.plasticity_settings import SETTINGS, Run
from experiments.plasticity_tables import tables
from experiments.plasticity_training import train
from weight_evolution import UnitAdamW

IMAGES = load_images("digits")
RECIPE = replace(plasticity._QUICK, images=60, tasks=2, iterations=12, batch_size=20)
BRIEF = ["--quick", "--setting", "mlp", "--tasks", "2", "--iterations", "11", "--images", "40", "--threads", "1"]


def runs_of(setting, lr=3e-3, own_age=False):
    arms = SETTINGS[setting].arms
    return [Run(setting, arm, lr, seed) for arm in arms if arms[arm].own_age == own_age for seed in (0, 1)]


def test_all_of_it(tmp_path, capsys):
    output = tmp_path / "there" / "mlp.jsonl"
    arguments = [*BRIEF, "--output", str(output)]
    assert plasticity.main(arguments) == 0
    head, *lines = map(json.loads, output.read_text().splitlines())
    assert head["recipe"]["tasks"] == 2
    arms = [arm for arm in rivals.ARMS if arm != rivals.RELEASED]
    tuning = {(arm, lr, seed) for arm in arms for lr in (1e-3, 1e-2) for seed in (100, 101)}
    assert {(line["arm"], line["lr"], line["seed"]) for line in lines if line["seed"] >= 100} == tuning
    assert sorted((line["arm"], line["seed"]) for line in lines if line["seed"] < 100) == sorted(
        (arm, seed) for arm in arms for seed in (0, 1)
    )
    assert len(lines) == 54
    printed = capsys.readouterr().out
    assert all(f"| {arm} |" in printed for arm in arms)

    # Nothing is trained again; what was cut off is.
    text = output.read_text()
    assert plasticity.main(arguments) == 0
    assert output.read_text() == text
    output.write_text(text[:-30])
    assert plasticity.main([*arguments, "--table"]) == 0
    assert output.read_text() == text[:-30]  # another process may be writing
    assert plasticity.main(arguments) == 0
    again = output.read_text()
    assert again.splitlines()[:-1] == text.splitlines()[:-1]
    assert len(again.splitlines()) == 55
    capsys.readouterr()

    assert plasticity.main([*arguments, "--images", "30"]) == 2
    assert "images is 40 there and 30 here" in capsys.readouterr().err
    assert plasticity.main([*arguments, "--table"]) == 0
    assert "| baseline |" in capsys.readouterr().out
    output.write_text("[1]\n")
    assert plasticity.main(arguments) == 2
    assert "not a file of this experiment" in capsys.readouterr().err


def test_time_budget(tmp_path, capsys, monkeypatch):
    output = tmp_path / "mlp.jsonl"
    arguments = [*BRIEF, "--output", str(output), "--stack", "8"]
    assert plasticity.main([*arguments, "--minutes", "0.00001"]) == 0
    assert not output.exists()
    assert "the time is over within mlp" in capsys.readouterr().out
    # A clock that goes on by a second whenever it is read: some 25 times for a stack, two tasks of 11 iterations.
    clock = iter(range(10_000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert plasticity.main([*arguments, "--minutes", "1.2"]) == 0
    written = len(output.read_text().splitlines()) - 1
    assert 16 <= written < 28  # two whole stacks, and a smaller one
    assert "the time is over within mlp" in capsys.readouterr().out
    monkeypatch.undo()
    before = output.read_text()
    assert plasticity.main(arguments) == 0
    assert output.read_text().startswith(before)
    assert len(output.read_text().splitlines()) == 55


@pytest.mark.parametrize("setting", ["mlp", "batchnorm", "sgd", "noise", "pairs"])
def test_every_setting_and_method(setting):
    for own_age in (False, True):
        runs = runs_of(setting, own_age=own_age)
        results = train(runs, RECIPE, IMAGES) if runs else []
        for run, result in zip(runs, results, strict=True):
            assert len(result["online"]) == len(result["held_out"]) == 2
            assert all(0 <= value <= 1 for value in result["online"])
            assert [value is not None for value in result["held_out"]] == [False, setting == "noise"]
            assert 0 <= result["dead"] <= 1
            revives = any(word in run.arm for word in ("reactivation", "ReDo", "continual"))
            assert revives or result["revived"] == 0


def test_a_run_does_not_depend_on_its_company():
    runs = runs_of("mlp")
    together = train(runs, RECIPE, IMAGES)
    for number in (0, runs.index(Run("mlp", "reactivation", 3e-3, 1))):
        (alone,) = train(runs[number : number + 1], RECIPE, IMAGES)
        for key in ("online", "dead"):
            assert alone[key] == pytest.approx(together[number][key], abs=0.02)
        assert alone["revived"] == together[number]["revived"]


def test_methods_differ_and_learning_rates_count():
    names = ("baseline", "L2-init", "ReDo", "reactivation", "WeightEvolution, paper rule")
    recipe = replace(RECIPE, iterations=60)
    runs = [Run("mlp", arm, 1e-2, 0) for arm in names] + [Run("mlp", "baseline", 1e-4, 0)]
    results = train(runs, recipe, IMAGES)
    assert len({str(result["online"]) for result in results}) == len(runs)


def test_dead_units(monkeypatch):
    network = plasticity_training._network

    def sick(*arguments):
        model = network(*arguments)
        with torch.no_grad():
            model[1].weight[:16].zero_()
            model[1].bias[:16] = -1
        return model

    monkeypatch.setattr(plasticity_training, "_network", sick)
    baseline, revived = train([Run("mlp", arm, 1e-4, 0) for arm in ("baseline", "reactivation")], RECIPE, IMAGES)
    assert baseline["dead"] >= 16 / 128
    assert baseline["revived"] == 0
    assert baseline["dead"] - revived["dead"] >= 15 / 128
    assert revived["revived"] >= 16


def test_a_fresh_network_is_as_one_trained_alone():
    """Adam's bias correction starts anew, too."""
    shape, draws = torch.Size((1, 8, 8)), torch.Generator().manual_seed(0)
    networks = [plasticity_training._network("conv-norm", shape, 10).double() for _ in range(2)]
    optimizer = UnitAdamW(networks[0].parameters(), 1e-2, weight_decay=0.0)
    for task in range(2):
        if task:
            rivals.start_anew(networks[0], optimizer, networks[1])
            other = torch.optim.Adam(networks[1].parameters(), 1e-2)
        for _ in range(12):
            images = torch.randn(8, 1, 8, 8, generator=draws, dtype=torch.float64)
            for network, own in ((networks[0], optimizer), *([(networks[1], other)] if task else [])):
                own.zero_grad()
                cross_entropy(network(images), torch.arange(8)).backward()
                own.step()
    for mine, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def results_of(setting, recipe, scores):
    """Runs of all arms; ``scores``: (arm, lr, seed) -> the accuracy of the second half."""
    found = {}
    for arm in SETTINGS[setting].arms:
        for lr in recipe.grid(SETTINGS[setting]):
            for seed in (*recipe.tuning_seeds, *recipe.seeds):
                late = scores(arm, lr, seed)
                key = SETTINGS[setting].score
                found[Run(setting, arm, lr, seed)] = {key: [0.9, late], "dead": 0.25, "revived": 3}
    return found


def test_table():
    recipe = replace(plasticity._RECIPE, tasks=2)

    def scores(arm, lr, seed):
        own = {"baseline": 0.2, "reactivation, own age": 0.5 + 0.01 * (seed % 3)}.get(arm, 0.3)
        best = 3e-4 if arm == "ReDo" else 3e-3
        # The seeds that are reported would have another rate.
        return own + (0.05 if lr == best else 0.0) * (seed >= 100) + (0.05 if lr == 1e-2 and seed < 100 else 0.0)

    results = results_of("conv", recipe, scores)
    (table,) = tables(["conv"], recipe, results)
    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in table.splitlines() if "|" in line}
    assert rows["baseline"][1:6] == ["0.003", "20.0 +- 0.0", "25", "3", "-"]
    assert rows["ReDo"][1] == "0.0003 (edge)"
    assert rows["ReDo"][5] == "+10.0 +- 0.0 (p < 0.001)"
    claim = rows["reactivation, own age"]
    assert claim[2] == "51.0 +- 0.9"
    assert claim[5] == "+31.0 +- 0.9 (p < 0.001)"
    assert claim[6] == "- |"
    assert rows["L2-init"][6] == "+21.0 +- 0.9 (p < 0.001) |"
    assert "17 of them" in table
    assert list(tables(["conv"], recipe, {})) == ["conv: nothing to report yet"]
    missing = {run: result for run, result in results.items() if (run.arm, run.seed) != ("ReDo", 100)}
    (table,) = tables(["conv"], recipe, missing)
    assert "| ReDo | - |" in table


def test_reported_runs_have_the_tuned_rate_and_seeds_of_their_own():
    recipe = replace(plasticity._RECIPE, tasks=2)
    results = results_of("sgd", recipe, lambda arm, lr, seed: 0.3 - abs(lr - 1e-2))
    tuning = {run: result for run, result in results.items() if run.seed >= 100}
    assert not set(recipe.seeds) & set(recipe.tuning_seeds)
    missing = plasticity.missing_runs("sgd", recipe, tuning)
    assert {run.lr for run in missing} == {1e-2}
    assert {run.seed for run in missing} == set(recipe.seeds)
    assert not any("own age" in run.arm for run in missing)
    assert plasticity.missing_runs("sgd", recipe, results) == []
    del tuning[Run("sgd", "ReDo", 0.1, 101)]
    assert plasticity.missing_runs("sgd", recipe, tuning) == [Run("sgd", "ReDo", 0.1, 101)]


def test_a_longer_setting_takes_the_rates_of_another():
    recipe = replace(plasticity._RECIPE, tasks=2)
    results = results_of("conv", recipe, lambda arm, lr, seed: 0.3 - abs(lr - 1e-3))
    assert {(run.setting, run.lr) for run in plasticity.missing_runs("long", recipe, results)} == {("long", 1e-3)}
    assert {run.setting for run in plasticity.missing_runs("long", recipe, {})} == {"conv"}
    assert [recipe.length(SETTINGS[name]) for name in ("conv", "long", "noise")] == [2, 5, 2]


def test_bad_arguments(tmp_path, capsys):
    for arguments, message in (
        (["--seeds", "3", "101"], "--seeds must not hold 101"),
        (["--output", "a", "b"], "several files only with --table"),
        (["--data", "npz:missing.npz", "--output", str(tmp_path / "x")], "must be an npz file"),
        (["--data", "mnist", "--output", str(tmp_path / "x")], "--data must be digits"),
    ):
        assert plasticity.main([*BRIEF, *arguments]) == 2
        assert message in capsys.readouterr().err


def test_journals_of_two_processes(tmp_path):
    recipe = plasticity._QUICK
    for number in range(2):
        Journal(tmp_path / f"{number}", recipe, Run).write(Run("mlp", "ReDo", 1e-3, number), {"online": [0.5]})
    for number in range(2):
        assert list(Journal(tmp_path / f"{number}", recipe, Run).results) == [Run("mlp", "ReDo", 1e-3, number)]
