"""A pytest plugin: runs one group of `groups`, and journals every test as it begins and ends.

Started again after a test has killed the process, it goes on with the tests that were not begun.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import groups, journal

LINES = 60
"""Of a failure's traceback that are kept; the middle goes first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("campaign")
    group.addoption("--campaign-journal", type=Path, required=True)
    group.addoption("--campaign-log", type=Path, required=True, help="receives tracebacks")
    group.addoption("--campaign-group", required=True)
    group.addoption("--campaign-limit", type=float, required=True, help="seconds for one test")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Group(config), "campaign-group")


class Group:
    """The hooks."""

    def __init__(self, config: pytest.Config) -> None:
        self.name: str = config.getoption("--campaign-group")
        self.log: Path = config.getoption("--campaign-log")
        self.journal = journal.Journal(config.getoption("--campaign-journal"))
        self.steps = journal.Steps(self.journal, self.name, config.getoption("--campaign-limit"))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        own = [x for x in items if groups.group_of(x.path, re.sub(r"\[.*", "", x.name)) == self.name]
        left = [item for item in own if item.nodeid not in self.steps.begun]
        config.hook.pytest_deselected(items=[item for item in items if item not in left])
        items[:] = left
        self.journal.write("tests found", job=self.name, number=len(own), left=len(left))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self._note(report, report.nodeid, "collect")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.steps.begin(item.nodeid)
        try:
            return (yield)
        finally:
            self.steps.end()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._note(report, report.nodeid, report.when or "")
        if report.outcome == "failed":
            journal.leave_if_broken(self.steps)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:  # all are skipped, or were begun before
            session.exitstatus = pytest.ExitCode.OK
        self.steps.finish()

    def _note(self, report: Any, test: str, when: str) -> None:
        text = str(report.longrepr or "")
        seconds = round(getattr(report, "duration", 0.0), 2)
        values = {"job": self.name, "test": test, "outcome": report.outcome, "when": when, "seconds": seconds}
        if report.outcome != "passed":
            values["reason"] = reason(report.longrepr)
        self.journal.write("test ends", **values)
        if report.outcome == "failed":
            journal.append(self.log, f"===== {self.name}: {test} ({when})\n{shortened(text)}\n\n")


def reason(longrepr: Any) -> str:
    """One line: why a test failed or was skipped."""
    if isinstance(longrepr, tuple):
        return str(longrepr[2])[:300]
    crash = getattr(longrepr, "reprcrash", None)
    lines = (crash.message if crash else str(longrepr)).strip().splitlines() or [""]
    return str(lines[0] if crash else lines[-1])[:300]


def shortened(text: str) -> str:
    """The first third and the last two thirds of `LINES` lines."""
    lines = text.splitlines()
    if len(lines) <= LINES:
        return text
    left_out = len(lines) - LINES
    return "\n".join([*lines[: LINES // 3], f"... {left_out} lines left out ...", *lines[-LINES * 2 // 3 :]])
