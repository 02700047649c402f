"""The stages of a campaign without a GPU: a dry run, one that is killed, and the way they are asked for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.journal import Journal

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
TIMED = ("kernels", "operations", "unit operators")
FIRST = {"versions", "build", "triton-importance", "native-importance", *TIMED, "memcheck"}
METHODS = {"grafting", "asynchronous", "low_rank", "reactivation", "adamw", "activity"}
UNIT_OPERATORS = {"reactivate_", "dormant_units", "unit_adamw_", "add_channel_activity_"}


def start(folder, *more):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "benchmarks.gpu", *more, "--output", str(folder), "--commit", "abc123"]
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".txt").open("wb") as output:
        return subprocess.Popen(command, cwd=gpu.ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


def finished(process, folder):
    """What it printed."""
    process.wait(timeout=900)
    return folder.with_suffix(".txt").read_text()


@pytest.mark.slow  # two minutes
def test_dry_run_of_the_first_stage(tmp_path):
    process = start(tmp_path / "out", "first", "--dry-run")
    output = finished(process, tmp_path / "out")
    assert process.returncode == 0, output
    journal = Journal(tmp_path / "out/first.jsonl")
    outcomes = {line["phase"]: line["outcome"] for line in journal.read("phase ends")}
    assert set(outcomes) == FIRST
    assert {outcomes[name] for name in ("triton-importance", *TIMED)} == {"passed"}
    assert {row["op"] for row in journal.read("row of a method")} == UNIT_OPERATORS
    (versions,) = journal.read("versions")
    assert versions["commit"] == "abc123"
    assert versions["versions"]["torch"] == torch.__version__
    assert {"importance", "match", "crossover", "step"} <= {row["op"] for row in journal.read("row")}
    assert "resnet20" in output
    assert len(list((tmp_path / "out").iterdir())) <= 4
    for line in (tmp_path / "out/first.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.slow  # two minutes
def test_dry_run_of_the_second_stage(tmp_path):
    process = start(tmp_path / "out", "second", "--dry-run")
    output = finished(process, tmp_path / "out")
    assert process.returncode == 0, output
    journal = Journal(tmp_path / "out/second.jsonl")
    outcomes = {line["phase"]: line["outcome"] for line in journal.read("phase ends")}
    ours = ("triton-importance", *TIMED, "norms", *METHODS, "baselines")
    assert {outcomes[name] for name in ours} == {"passed"}
    assert set(outcomes) == {"versions", "build", "native-importance", "memcheck", "racecheck", "initcheck", *ours}
    assert {row["backend"] for row in journal.read("row")} >= {"per_layer", "torch"}
    assert {row["method"] for row in journal.read("row of a method")} == {*METHODS, "unit operators"}


def test_a_missed_bar_is_a_failure_when_they_are_checked(tmp_path):
    process = start(tmp_path / "out", "second", "--dry-run", "--check", "--budget", "1")
    assert "by every backend: MISSED  resnet50" in finished(process, tmp_path / "out")
    assert process.returncode == 1


def test_what_was_found_before_it_was_killed_stays(tmp_path):
    process = start(tmp_path / "out", "first", "--dry-run")
    journal = Journal(tmp_path / "out/first.jsonl")
    deadline = time.time() + 100
    while not journal.read("tests found") and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [line["phase"] for line in journal.read("phase ends")][:2] == ["versions", "build"]
    assert journal.read("versions")
    assert journal.read("tests found")


def test_a_terminated_campaign_leaves_no_process_behind(tmp_path):
    process = start(tmp_path / "out", "first", "--dry-run")
    deadline = time.time() + 60
    while not Journal(tmp_path / "out/first.jsonl").read("phase begins") and time.time() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    time.sleep(0.3)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(path)]
    assert not left


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@no_gpu
def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "environment_of_children", dict)  # these two would outlast the test
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    assert gpu.main(["first", "--output", str(tmp_path / "out")]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_results_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "first.jsonl").write_text("")
    with pytest.raises(SystemExit):
        gpu.main(["first", "--output", str(tmp_path)])
    assert "first.jsonl is there already; name another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "stage"), [("gpu-first", ["first"]), ("gpu", ["second", "--check"])])
def test_make_hands_its_variables_on(tmp_path, target, stage):
    command = ["make", "--no-print-directory", "-n", target, "PYTHON=python3", f"OUTPUT={tmp_path}", "COMMIT=abc"]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, check=True)
    wanted = ["python3", "-m", "benchmarks.gpu", *stage, "--output", f'"{tmp_path}"', "--commit", '"abc"']
    assert done.stdout.split() == wanted
