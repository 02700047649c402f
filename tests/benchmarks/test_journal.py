"""Results that stay when their program is killed, and jobs that go on after the step that killed them."""

import subprocess
import sys

import pytest

from benchmarks.journal import Journal, Steps
from tests.processes import environment


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "results.jsonl")


def test_lines_are_read_as_they_were_written(journal):
    assert journal.read() == []
    journal.write("row", model="a", seconds=1.5)
    journal.write("versions", torch="2")
    assert [line["event"] for line in journal.read()] == ["row", "versions"]
    (row,) = journal.read("row")
    assert (row["model"], row["seconds"]) == ("a", 1.5)
    assert row["at"] > 1e9


def test_a_line_that_was_cut_off_is_left_out_and_the_next_ones_are_not(journal):
    journal.write("row", model="a")
    with journal.path.open("a") as file:
        file.write('{"event": "row", "mod')
    assert [line["model"] for line in journal.read()] == ["a"]
    journal.write("row", model="b")
    journal.write("row", model="c")
    assert [line["model"] for line in journal.read()] == ["a", "b", "c"]


def in_a_process(journal, body, limit=20.0):
    code = f"""
import os, time
from pathlib import Path
from benchmarks.journal import Journal, Steps
steps = Steps(Journal(Path({str(journal.path)!r})), "job", {limit})
for name in "abc":
    if name in steps.begun:
        continue
    with steps.step(name):
        {body}
        steps.journal.write("row", name=name)
steps.finish()
"""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "body",
    ["if name == 'b': os.kill(os.getpid(), 11)", "if name == 'b': time.sleep(30)"],
    ids=["segfault", "hang"],
)
def test_a_job_goes_on_after_the_step_that_ended_its_process(journal, body):
    first = in_a_process(journal, body, limit=1.0)
    assert first.returncode != 0
    assert [line["name"] for line in journal.read("row")] == ["a"]
    assert not journal.read("job ends")
    assert in_a_process(journal, body).returncode == 0
    assert [line["name"] for line in journal.read("row")] == ["a", "c"]
    assert [line["job"] for line in journal.read("job ends")] == ["job"]


def test_an_interpreter_that_holds_its_lock_is_ended_too(journal):
    body = "import ctypes; ctypes.PyDLL(None).sleep(20)"
    done = in_a_process(journal, body, limit=1.0)
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_steps_of_another_job_are_not_mine(journal):
    with Steps(journal, "one", 5.0).step("a"):
        pass
    assert Steps(journal, "one", 5.0).begun == {"a"}
    assert Steps(journal, "two", 5.0).begun == set()
