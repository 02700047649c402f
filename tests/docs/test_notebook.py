"""docs/notebooks/diagnose.ipynb is what `make notebook` makes of the script beside it; and the script still works."""

import json
import re

import pytest

from tests.processes import ROOT

SCRIPT = ROOT / "docs" / "notebooks" / "diagnose.py"
NOTEBOOK = json.loads(SCRIPT.with_suffix(".ipynb").read_text(encoding="utf-8"))
CELLS = [(cell["cell_type"], "".join(cell["source"])) for cell in NOTEBOOK["cells"]]


def cells_of(script):
    """(type, text) of each cell of a script in the percent format."""
    for cell in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        first, _, text = cell.partition("\n")
        if first == " [markdown]":
            yield "markdown", re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip()
        else:
            yield "code", text.strip()


def test_cells_are_those_of_the_script():
    assert list(cells_of(SCRIPT.read_text(encoding="utf-8"))) == CELLS


def printed():
    """All that the notebook's code printed."""
    outputs = [output for cell in NOTEBOOK["cells"] for output in cell.get("outputs", [])]
    assert {output["output_type"] for output in outputs} == {"stream"}
    return "".join("".join(output["text"]) for output in outputs)


def test_treatment_shows():
    without, treated = (
        [int(number) for number in re.findall(r"(\d+)%", line)]
        for line in re.findall(r"^(?:without|treated): (.*)", printed(), re.MULTILINE)
    )
    assert len(without) == len(treated) == 10
    assert min(treated) > max(without)
    before, after = map(int, re.findall(r"(\d+) dead of 128 units", printed()))
    assert after < before / 10


def test_the_code_runs(capsys):
    pytest.importorskip("sklearn")
    code = "\n".join(text for kind, text in CELLS if kind == "code")
    for long, short in {"epochs=30": "epochs=1", "range(10, 20)": "range(10, 12)", "range(10)": "range(2)"}.items():
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, "diagnose.ipynb", "exec"), {})
    assert capsys.readouterr().out.count("of 128 units") >= 2
