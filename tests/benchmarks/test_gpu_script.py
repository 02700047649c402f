"""``make gpu`` as far as it goes without a GPU: phases, voided timings, the result and its figure."""

import json
import subprocess
import sys
import time

import gpu
import phases
import plot_gpu
import pytest
import results
import torch
from phases import Phase

FIELDS = set(results.Row.__dataclass_fields__)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def command(code):
    return [sys.executable, "-c", code]


def outcomes(planned, folder, budget=60.0):
    return {ending.name: ending.outcome for ending in phases.run(planned, budget, folder)}


def test_phases_run_in_order_and_leave_their_logs(tmp_path, capfd):
    first = Phase(
        "first", command("import os; print(os.environ['COLOUR']); print('done')"), 20, environment={"COLOUR": "x"}
    )
    endings = phases.run([first, Phase("second", command("print('3 passed')"), 20)], 60, tmp_path)
    assert [(ending.name, ending.outcome, ending.detail) for ending in endings] == [
        ("first", "passed", "done"),
        ("second", "passed", "3 passed"),
    ]
    assert (tmp_path / phases.LOGS / "first.log").read_text() == "x\ndone\n"
    assert "first" in capfd.readouterr().err


def test_a_red_phase_voids_the_timings(tmp_path, capfd):
    planned = [
        Phase("tests", command("print('1 failed'); raise SystemExit(3)"), 20),
        Phase("more tests", command("pass"), 20),
        Phase("times", command("pass"), 20, timing=True),
    ]
    assert outcomes(planned, tmp_path) == {"tests": "failed", "more tests": "passed", "times": "skipped"}
    assert "1 failed" in capfd.readouterr().err
    planned[0] = Phase("tests", [], 20, skip="no tool")
    assert outcomes(planned, tmp_path) == {"tests": "skipped", "more tests": "passed", "times": "passed"}


def test_a_phase_that_takes_too_long_is_ended_with_its_children(tmp_path):
    child = tmp_path / "child"
    slow = Phase("slow", ["sh", "-c", f"(sleep 4; touch {child}) & wait"], 1.5)
    start = time.monotonic()
    assert outcomes([slow, Phase("times", command("pass"), 9, timing=True)], tmp_path) == {
        "slow": "timed out",
        "times": "skipped",
    }
    assert time.monotonic() - start < 4
    slow.may_time_out = True
    times = Phase("times", command("pass"), 9, timing=True)
    assert outcomes([slow, times], tmp_path)["times"] == "passed"
    time.sleep(max(0.0, 5 - (time.monotonic() - start)))
    assert not child.exists()


def test_nothing_starts_when_the_budget_is_spent(tmp_path):
    planned = [Phase("long", command("import time; time.sleep(9)"), 9), Phase("late", command("pass"), 9)]
    assert outcomes(planned, tmp_path, budget=1.5) == {"long": "timed out", "late": "skipped"}


def test_the_plan_fits_the_budget_and_names_what_it_leaves_out(tmp_path):
    planned = gpu.plan("cuda", tmp_path, None, dry=False)
    names = [phase.name for phase in planned]
    assert names[:6] == ["build", "tests", "graphs-and-streams", "memcheck", "racecheck", "initcheck"]
    assert names[6:10] == ["steps-small", "steps-large", "compiled", "low_rank"]
    assert all(phase.timing == (phase.name in (*gpu.STEPS, *gpu.OTHERS)) for phase in planned)
    assert gpu.BUDGET < 540
    for phase in planned:
        assert phase.skip or phase.command
        if phase.name.endswith("check") and phase.skip:
            assert "compute-sanitizer is not on the PATH" in phase.skip
    for path in ("tests/triton/sanitized.py", "tests/triton/test_gpu.py", "tests/cuda/test_native_cuda.py"):
        assert (gpu.ROOT / path).exists()


@no_gpu
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--only", "nonsense"])
    assert "no phase nonsense" in capsys.readouterr().err
    assert gpu.main(["--list"]) == 0
    assert "--suite gpu" in capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A dry run as a user starts it."""
    output = tmp_path_factory.mktemp("gpu") / "results"
    start = [sys.executable, gpu.__file__, "--dry-run", "--only", "build", "steps-small", "--output", str(output)]
    done = subprocess.run(start, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = output.glob("*.json")
    return done, path, json.loads(path.read_text())


def test_result(finished):
    _, path, result = finished
    assert path.name.endswith(f"_{result['date']}.json")
    assert {"date", "commit", "device", "versions", "phases", "others", "models", "rows", "suite"} <= set(result)
    assert {phase["name"]: phase["outcome"] for phase in result["phases"]} == {
        "build": "skipped",
        "steps-small": "passed",
    }
    assert {row["op"] for row in result["rows"]} == {"importance", "step", "step+norm", "optimizer step"}
    assert {results.ADAMW, results.SGD, "copy", "per_layer", "torch"} <= {row["backend"] for row in result["rows"]}
    for row in result["rows"]:
        assert set(row) == FIELDS
        assert row["dtype"] == "float32"
        assert row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert row["op"] == "optimizer step" or row["floor_share"] > 0
        assert row["backend"] != "copy" or row["floor_share"] == pytest.approx(1)
        assert results.Row.from_json(row).as_json() == row
    (output,) = {path.parent}
    assert not list(output.glob("_*")), "the parts are joined"


def test_figure_and_table(finished):
    done, path, result = finished
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("build ")
    assert lines[-1].startswith("steps-small ")
    assert any(line.startswith("model") and "graph us" in line for line in lines)
    assert "not measured, bar at most 1.5" in done.stdout
    assert plot_gpu.draw_gpu(result).axes


def test_parts_are_joined(finished):
    result = finished[2]
    other = result["rows"][0] | {"model": "resnet56"}
    found = gpu.joined([result, result | {"models": {"resnet56": {}}, "rows": [*result["rows"][:2], other]}])
    assert set(found["models"]) == {"resnet20", "resnet56"}
    assert found["rows"] == [*result["rows"], other]


def _row(model, backend, graph, op="step", dtype="float32", share=None, host=None, eager=1.0):
    spread = [None if x is None else results.Spread(x, x, x) for x in (eager, graph, host)]
    return results.Row(
        *(model, op, 0.2, backend, 3, spread[0], None, None, 10, 1.0, None, share, dtype, spread[1], spread[2])
    )


def test_bars():
    rows = [
        _row("resnet50", "triton", 60e-6, share=0.7, host=99e-6),
        _row("resnet50", "triton", 50e-6, dtype="bfloat16", share=0.4),
        _row("resnet50", "native", 1e-6, share=9.0, host=1e-6),
        _row("resnet50", "per_layer", None, eager=2.9e-3),
        _row("resnet50", results.ADAMW, 130e-6, op="optimizer step"),
        _row("stack_1b", "triton", 2e-3, share=0.9),
        _row("stack_1b", results.ADAMW, 3.9e-3, op="optimizer step"),
        _row("resnet20", "triton", 24e-6, share=0.1),
        _row("resnet56", "triton", 26e-6, share=0.1),
    ]
    met = {(bar.model, bar.what): bar.met for bar in results.gpu_bars(rows)}
    assert met == {
        ("resnet50", "times its floor, float32"): True,
        ("resnet50", "times its floor, bfloat16"): False,
        ("stack_1b", "times its floor, float32"): True,
        ("resnet20", "microseconds"): True,
        ("resnet56", "microseconds"): False,
        ("resnet110", "microseconds"): False,
        ("resnet50", "of a fused AdamW step"): True,
        ("convnext_l", "of a fused AdamW step"): False,
        ("stack_1b", "of a fused AdamW step"): False,
        ("resnet50", "times faster than per_layer"): False,
        ("resnet50", "microseconds of the host"): True,
    }
