"""What the stages run on a machine with a GPU, with stand-ins for its tools."""

import time

import pytest

from benchmarks import stages
from benchmarks.journal import Journal
from benchmarks.phases import Runner


def tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """In a folder of its own, where nvcc, cmake and compute-sanitizer only note how they are called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "we_kernels").mkdir()
    note = f'echo "$0 $* $CUDAARCHS $PYTORCH_NO_CUDA_MEMORY_CACHING" >> {tmp_path}/calls'
    tool(tmp_path / "bin", "nvcc", "")
    tool(tmp_path / "bin", "cmake", f"{note}; mkdir -p build/gpu; echo new > build/gpu/_native.here.so")
    tool(tmp_path / "bin", "compute-sanitizer", f"{note}; echo '========= ERROR SUMMARY: 0 errors'")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    runner = Runner(Journal(tmp_path / "results.jsonl"), tmp_path / "log", tmp_path, time.time() + 60)
    return stages.Stage(runner, runner.journal.path, tmp_path / "tests.log", "cuda", "90", time.time(), dry=False)


def test_the_extension_is_built_for_this_gpu_and_replaced_in_one_move(stage, tmp_path):
    (tmp_path / "we_kernels/_native.here.so").write_text("old")
    assert stage.runner.run(stage.build()).outcome == "passed"
    assert (tmp_path / "we_kernels/_native.here.so").read_text() == "new\n"
    assert [path.name for path in (tmp_path / "we_kernels").iterdir()] == ["_native.here.so"]
    configure, build = (tmp_path / "calls").read_text().splitlines()
    assert "-DWE_KERNELS_CUDA=on" in configure
    assert configure.split()[-1] == build.split()[-1] == "90-real"


def test_a_build_that_fails_leaves_the_extension(stage, tmp_path):
    tool(tmp_path / "bin", "cmake", "echo broken; exit 1")
    (tmp_path / "we_kernels/_native.here.so").write_text("old")
    ending = stage.runner.run(stage.build())
    assert (ending.outcome, ending.tail) == ("failed", ["broken"])
    assert (tmp_path / "we_kernels/_native.here.so").read_text() == "old"


def test_sanitizers(stage, tmp_path):
    for name in ("memcheck", "racecheck", "initcheck"):
        ending = stage.runner.run(stage.sanitizer(name, 20))
        assert (ending.outcome, ending.detail) == ("passed", "========= ERROR SUMMARY: 0 errors")
    memcheck, racecheck, _ = (tmp_path / "calls").read_text().splitlines()
    assert "--report-api-errors no" in memcheck
    assert "report-api-errors" not in racecheck
    assert memcheck.split()[-3:] == ["-m", "tests.triton.sanitized", "1"]


def test_without_the_tools_it_says_so(stage, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "nvcc is not on the PATH" in stage.runner.run(stage.build()).detail
    assert "compute-sanitizer is not on the PATH" in stage.runner.run(stage.sanitizer("memcheck", 20)).detail


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_stage_runs_everything_and_measures_when_no_test_runs(stage, monkeypatch, name):
    events = []

    def run(phase, until=None):
        events.append((phase.name, "begins"))
        if phase.needs:
            phase.needs()
        time.sleep(0.05 if "-" in phase.name else 0.0)
        events.append((phase.name, "ends"))

    monkeypatch.setattr(stage.runner, "run", run)
    getattr(stage, name)()
    order = [event for event in events if event[0] != "build"]
    measured = [place for place, (phase, _) in enumerate(order) if phase in ("kernels", "operations", "norms")]
    tested = [place for place, (phase, _) in enumerate(order) if phase.startswith(("triton-", "native-"))]
    assert tested
    assert max(tested) < min(measured)
    names = [phase for phase, what in events if what == "begins"]
    assert len(names) == len(set(names))
    of_units = {f"triton-methods-{name}" for name in ("activity", "adamw", "dormant", "reactivation")}
    of_units.add("unit operators")
    wanted = {
        "first": {"build", "triton-methods-overlap", "native-graphs", "triton-compiled", "memcheck", *of_units},
        "second": {"build", *of_units, "racecheck", "initcheck", "native-crossover", *stages.METHODS, "baselines"},
    }
    assert wanted[name] <= set(names)
    assert names[-1] == {"first": "memcheck", "second": "baselines"}[name]
