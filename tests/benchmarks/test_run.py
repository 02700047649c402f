import getpass
import json
import os
import platform
from pathlib import Path

import pytest

from benchmarks import plot, run
from benchmarks.verify import WrongResultError
from tests.processes import run_module

SPREAD = {"median", "p20", "p80"}
ROW = {
    "model",
    "op",
    "rate",
    "backend",
    "repeats",
    "seconds",
    "ratio_per_layer",
    "ratio_torch",
    "bytes_moved",
    "gb_per_s",
    "read_floor_share",
    "floor_share",
    "dtype",
    "graph",
    "host",
}
TOP = {
    "schema",
    "date",
    "commit",
    "device",
    "cpu",
    "cores",
    "threads",
    "load_average",
    "last_level_cache_bytes",
    "versions",
    "quick",
    "not_timed",
    "models",
    "rows",
}


one_run = pytest.mark.xdist_group("benchmark-run")  # one process runs it


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The script as a user starts it, and the file it wrote."""
    output = tmp_path_factory.mktemp("bench") / "new" / "result.json"
    arguments = ["--quick", "--models", "resnet20", "--repeats", "2", "--output", str(output)]
    done = run_module("benchmarks.run", *arguments)
    assert done.returncode == 0, done.stderr
    return done, output


@one_run
def test_table(finished):
    done, _ = finished
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert "x per_layer" in lines[0]
    assert sum("| step " in line for line in lines) >= 4, "two backends or more, two rates"
    assert "replaced at rate 0.2" in done.stderr


@one_run
def test_json(finished):
    _, output = finished
    text = output.read_text()
    result = json.loads(text)
    assert set(result) == TOP
    assert result["device"] == "cpu"
    assert set(result["models"]) == {"resnet20"}
    model = result["models"]["resnet20"]
    assert model["convs"] == 19
    assert model["fits_in_cache"]
    assert 0.1 < model["replaced_share"]["0.2"] < 0.2
    per_layer = []
    for row in result["rows"]:
        assert set(row) == ROW
        assert set(row["seconds"]) == SPREAD
        assert row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert row["gb_per_s"] == pytest.approx(row["bytes_moved"] / row["seconds"]["median"] / 1e9)
        if row["op"] == "importance":
            assert row["read_floor_share"] <= 1.0001, "a backend that reads faster sets the floor"
        if row["backend"] == "per_layer":
            assert row["ratio_per_layer"]["median"] == 1
            per_layer.append((row["op"], row["rate"]))
    assert per_layer == [
        ("importance", None),
        ("match", 0.2),
        ("crossover", 0.2),
        ("step", 0.2),
        ("step", 0.02),
        ("step+norm", 0.2),
    ]
    assert {row["op"] for row in result["rows"]} >= {"read", "memcpy"}
    for secret in (platform.node(), str(Path.home()), str(output.parent), os.sep + getpass.getuser() + os.sep):
        assert secret not in text


@one_run
def test_plot(finished, tmp_path, monkeypatch):
    _, output = finished
    picture = tmp_path / "picture.png"
    monkeypatch.setattr("sys.argv", ["plot", str(output), "--output", str(picture)])
    plot.main()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_result_voids_the_run(monkeypatch, tmp_path, capsys):
    def wrong(implementation, case):
        raise WrongResultError("native: match: 3 differ")

    monkeypatch.setattr("benchmarks.bench.verify", wrong)
    output = tmp_path / "result.json"
    arguments = ["--quick", "--models", "resnet20", "--repeats", "1", "--output", str(output)]
    assert run.main(arguments) == 1
    printed = capsys.readouterr()
    assert "native: match: 3 differ" in printed.err
    assert printed.out == ""
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quick", "--check"], "--check"),
        (["--repeats", "0"], "--repeats must be positive"),
        (["--threads", "-1"], "--threads must be positive"),
        (["--released", "nowhere"], "give a clone of"),
        (["--models", "alexnet"], "alexnet"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        run.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
