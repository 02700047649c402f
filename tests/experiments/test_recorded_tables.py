"""The tables of the documentation are those of the recorded runs, row by row."""

from pathlib import Path

import pytest

from experiments import minatar, plasticity, study

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"


@pytest.mark.parametrize(
    ("page", "experiment", "arguments", "tables"),
    [
        ("reactivation.md", plasticity, ["--output", RESULTS / "plasticity_digits_2026-11-27.jsonl"], 8),
        (
            "reactivation.md",
            minatar,
            ["--game", "breakout", "--steps", "10000", "--output", RESULTS / "minatar_breakout_2026-11-28.jsonl"],
            1,
        ),
        (
            "evidence.md",
            study,
            [
                *("--data", "npz:cifar10-16.npz", "--tuned", "baselines", "--tuning-seeds", "100"),
                *("--output", RESULTS / "study_cifar10_h200_2026-11-27.jsonl"),
            ],
            9,
        ),
        (
            "evidence-cpu.md",
            study,
            [
                *("--data", "npz:cifar10-16.npz", "--main", "--tuned", "baselines", "--tuning-seeds", "100"),
                *("--weight-decays", "0.002", "--epochs", "24"),
                *("--output", RESULTS / "study_cifar10_two_cores_2026-11-28.jsonl"),
            ],
            9,
        ),
        (
            "evidence-cpu.md",
            study,
            [
                *("--data", "npz:cifar10-16.npz", "--tuning-seeds", "100", "--main", "--tables", "healthy"),
                *("--output", RESULTS / "study_cifar10_cpu_2026-11-28.jsonl"),
            ],
            1,
        ),
    ],
)
def test_tables(page, experiment, arguments, tables, capsys):
    assert experiment.main(["--table", *map(str, arguments)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert sum(line.startswith("| ---") for line in rows) == tables
    shown = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row not in shown] == []
