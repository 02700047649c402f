"""Tests of the GPU by group, and a group's process: its journal, and what survives a test that kills it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_report, groups, stages
from benchmarks.journal import Journal
from benchmarks.phases import Runner

ROOT = Path(__file__).parents[2]
FAKE = """
import os, time, pytest
def test_importance_is_good(): print("said")
@pytest.mark.parametrize("value", [1, 2])
def test_importance_is_bad(value):
    deep(80) if value == 2 else None
def deep(n):
    assert n, "a long\\nmessage"
    deep(n - 1)
def test_importance_crashes(): os.kill(os.getpid(), 11)
@pytest.mark.skip(reason="no reason")
def test_importance_is_skipped(): pass
def test_importance_hangs(): time.sleep(30)
@pytest.fixture
def broken(): raise ValueError("in the fixture")
def test_importance_cannot_begin(broken): pass
def test_importance_comes_last(): pass
def test_matching(): raise AssertionError("another group's")
"""


one_run = pytest.mark.xdist_group("group-of-tests")  # one process runs it


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The group "triton-importance" of the fake file, with a limit of two seconds for a test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run_group(tmp_path_factory.mktemp("group"), monkeypatch)


def run_group(tmp_path, monkeypatch):
    path = tmp_path / "tests/triton/test_gpu.py"
    path.parent.mkdir(parents=True)
    path.write_text(FAKE)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--no-such-option"\n')
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(stages, "TEST_LIMIT", 2.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the plugin's place
    for name, value in stages.environment_of_children().items():
        monkeypatch.setenv(name, value)
    runner = Runner(Journal(tmp_path / "results.jsonl"), tmp_path / "log", tmp_path, time.time() + 60)
    stage = stages.Stage(runner, runner.journal.path, tmp_path / "tests.log", "cuda", "90", time.time(), dry=False)
    phases = {phase.name: phase for phase in stage.tests("triton")}
    assert list(phases) == ["triton-importance", "triton-matching"]
    return runner, runner.run(phases["triton-importance"]), tmp_path


@one_run
def test_a_group_survives_its_tests(ended):
    runner, ending, _ = ended
    assert (ending.outcome, ending.starts) == ("failed", 3)
    lines = runner.journal.read()
    results = {test.split("::")[1]: what for (_, test), what in gpu_report.results_of_tests(lines).items()}
    assert {name: outcome for name, (outcome, _) in results.items()} == {
        "test_importance_is_good": "passed",
        "test_importance_is_bad[1]": "passed",
        "test_importance_is_bad[2]": "failed",
        "test_importance_is_skipped": "skipped",
        "test_importance_cannot_begin": "failed",
        "test_importance_comes_last": "passed",
    }
    assert results["test_importance_is_bad[2]"][1] == "AssertionError: a long"
    assert "no reason" in results["test_importance_is_skipped"][1]
    during = [line["during"].split("::")[1] for line in runner.journal.read("process died")]
    assert during == ["test_importance_crashes", "test_importance_hangs"]
    assert gpu_report.test_counts(lines) == [("triton-importance", 3, 2, 1, 2)]
    assert gpu_report.is_red(runner.journal)


@one_run
def test_tracebacks_are_kept_and_shortened(ended):
    log = (ended[2] / "tests.log").read_text()
    assert "lines left out" in log
    assert "ValueError: in the fixture" in log
    assert all(len(part.splitlines()) < 70 for part in log.split("====="))
    output = (ended[2] / "log").read_text()
    assert "[triton-importance] said" in output
    assert "Timeout (0:00:02)" in output


def test_every_test_of_the_real_files_is_in_one_group_that_runs(tmp_path):
    """Collected as on a machine with a GPU and an extension built for CUDA."""
    pretend = tmp_path / "pretend_there_is_one.py"
    pretend.write_text(
        "import torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "torch.cuda.current_device = lambda: 0\n"
        "import we_kernels._native as native\n"
        "if not hasattr(native, 'cuda_status'): native.cuda_status = lambda: None\n"
    )
    environment = os.environ | stages.environment_of_children() | stages.ONLY_OURS
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    files = [path for pattern in groups.FILES.values() for path in sorted(ROOT.glob(pattern))]
    options = ["-o", "addopts=", "-p", "pretend_there_is_one", "-p", "no:cacheprovider", "--collect-only", "-q"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    collected = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(collected) > 100
    planned = {name: files for backend in groups.FILES for name, files in groups.groups(ROOT, backend).items()}
    for node in collected:
        path, function = ROOT / node.split("::")[0], node.split("::")[-1].split("[")[0]
        assert path in planned[groups.group_of(path, function)], node
    assert {f"{backend}-{name}" for backend in groups.FILES for name, _ in groups.RULES[1:]} - {"native-steps"} <= set(
        planned
    )


@pytest.mark.parametrize(
    ("path", "function", "group"),
    [
        ("test_gpu.py", "test_importance_of_zeros_and_subnormals", "triton-importance"),
        ("test_gpu.py", "test_thresholds_of_large_groups", "triton-matching"),
        ("test_gpu.py", "test_whole_step_in_a_graph_is_that_without", "triton-steps"),
        ("test_gpu.py", "test_something_new", "triton-rest"),
        ("test_gpu_methods.py", "test_overlap_of_many_filters", "triton-methods-overlap"),
        ("test_native_cuda.py", "test_crossover", "native-crossover"),
        ("test_native_more.py", "test_crossover", "native-more-crossover"),
    ],
)
def test_group_of(path, function, group):
    assert groups.group_of(Path("tests") / path, function) == group
