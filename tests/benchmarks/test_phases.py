"""Commands within limits of time: their endings, their children, their log, what starts again."""

import sys
import time

import pytest

from benchmarks.journal import Journal
from benchmarks.phases import Phase, Runner
from tests.processes import environment


@pytest.fixture
def runner(tmp_path):
    return Runner(Journal(tmp_path / "results.jsonl"), tmp_path / "log", tmp_path, time.time() + 60)


def command(code):
    return [sys.executable, "-c", code]


def test_endings_are_journalled_and_output_is_kept(runner, capsys):
    runner.run(Phase("good", command("import os; print(os.environ['COLOUR'])"), 20, environment={"COLOUR": "x"}))
    runner.run(Phase("bad", command("print('one'); print('two'); raise SystemExit(3)"), 20))
    runner.run(Phase("absent", ["/no/such/program"], 20))
    runner.run(Phase("unwanted", command("pass"), 20, skip="no tool"))
    endings = {line["phase"]: line for line in runner.journal.read("phase ends")}
    assert [line["outcome"] for line in endings.values()] == ["passed", "failed", "failed", "skipped"]
    assert endings["bad"]["tail"] == ["one", "two"]
    assert endings["bad"]["detail"] == "exit status 3: two"
    assert "No such file" in endings["absent"]["detail"]
    assert endings["unwanted"]["detail"] == "no tool"
    assert runner.log.read_text() == "[good] x\n[bad] one\n[bad] two\n"
    assert "bad                  failed" in capsys.readouterr().out


def test_a_phase_that_takes_too_long_is_ended_with_its_children(runner, tmp_path):
    child = tmp_path / "child"
    start = time.monotonic()
    ending = runner.run(Phase("slow", ["sh", "-c", f"echo here; (sleep 5; touch {child}) & wait"], 2.5))
    assert time.monotonic() - start < 5
    assert ending.outcome == "timed out"
    assert ending.tail == ["here"]
    time.sleep(max(0.0, 5.5 - (time.monotonic() - start)))
    assert not child.exists()


def test_nothing_starts_when_the_time_is_over(runner):
    assert runner.run(Phase("late", command("pass"), 20), until=time.time() + 1).outcome == "skipped"
    runner.deadline = time.time() + 1
    assert runner.run(Phase("later", command("pass"), 20)).detail == "no time is left"


def test_phases_run_beside_each_other(runner):
    start = time.monotonic()
    runner.together([Phase(name, ["sleep", "1.5"], 20) for name in "abcd"], workers=4)
    assert time.monotonic() - start < 4
    assert [line["outcome"] for line in runner.journal.read("phase ends")] == ["passed"] * 4


@pytest.mark.parametrize(("code", "outcome"), [("pass", "passed"), ("raise SystemExit(1)", "skipped")])
def test_a_phase_waits_for_what_it_needs(runner, code, outcome):
    needed = runner.in_background(Phase("build", command(f"import time; time.sleep(1); {code}"), 20))
    ending = runner.run(Phase("use", command("pass"), 20, needs=needed))
    assert ending.outcome == outcome
    assert [line["phase"] for line in runner.journal.read("phase ends")] == ["build", "use"]


JOB = """
import os
from pathlib import Path
from benchmarks.journal import Journal, Steps
steps = Steps(Journal(Path("results.jsonl")), "job", 20)
for name in "abcde":
    if name not in steps.begun:
        with steps.step(name):
            if name in {deadly!r}:
                os.kill(os.getpid(), 11)
steps.finish()
raise SystemExit({status})
"""


@pytest.mark.parametrize(
    ("deadly", "status", "starts", "outcome"), [("", 0, 1, "passed"), ("bd", 0, 3, "failed"), ("", 1, 1, "failed")]
)
def test_a_job_whose_process_dies_is_started_again(runner, deadly, status, starts, outcome):
    code = JOB.format(deadly=deadly, status=status)
    ending = runner.run(Phase("job", command(code), 40, resumes=True, environment=environment()))
    assert (ending.outcome, ending.starts) == (outcome, starts)
    assert [line["step"] for line in runner.journal.read("step begins")] == list("abcde")
    assert [line["during"] for line in runner.journal.read("process died")] == [f"during {x}" for x in deadly]


def test_a_job_that_dies_without_a_step_is_given_up(runner):
    ending = runner.run(Phase("job", command("print('no'); raise SystemExit(4)"), 40, resumes=True))
    assert (ending.outcome, ending.starts) == ("failed", 1)
    assert ending.detail == "exit status 4: no"
