"""What docs/start.md shows works as it stands there."""

import re

import pytest

from tests.processes import ROOT

TEXT = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))


def test_the_program_of_the_page(capsys):
    pytest.importorskip("sklearn")
    exec(compile(CODE, "docs/start.md", "exec"), {})
    printed = capsys.readouterr().out
    accuracies = [
        float(number) for number in re.findall(r"^(?:epoch \d|dead|alive again): ([\d.]+)%", printed, re.MULTILINE)
    ]
    assert len(accuracies) == 6
    *epochs, dead, alive = accuracies
    assert epochs[-1] > 90
    assert dead < 20
    assert alive > 80
    assert "filters in 4 layers" in printed
    revived = [int(number) for number in re.findall(r"reactivation at iteration \d+: (\d+) of", printed)]
    assert revived
    assert all(revived)
