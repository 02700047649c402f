"""What CONTRIBUTING.md shows works as it stands there."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import we_kernels as wk

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"`(we_kernels/[\w/]+\.py)`[^`]*```python\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def peaks(tmp_path, monkeypatch):
    """The folder of the example, beside the others of the package."""
    for name, code in FILES.items():
        path = tmp_path / name.removeprefix("we_kernels/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    monkeypatch.setattr(wk, "__path__", [*wk.__path__, str(tmp_path)])
    yield importlib.import_module("we_kernels.peaks")
    for name in [name for name in sys.modules if name.startswith("we_kernels.peaks")]:
        del sys.modules[name]


def test_an_operator(peaks):
    assert set(FILES) == {f"we_kernels/peaks/{name}.py" for name in ("__init__", "api", "operators", "reference")}
    weights = [torch.randn(4, 3, 3, 3), torch.randn(2, 5).double()]
    bank = wk.FilterBank(weights)
    wanted = torch.cat([weight.abs().flatten(1).amax(1).float() for weight in weights])
    assert torch.equal(peaks.filter_peaks(bank), wanted)
    torch.library.opcheck(torch.ops.we_kernels.filter_peaks.default, (weights, [0, 0], [0, 0]))
    compiled = torch.compile(lambda w: peaks.filter_peaks(wk.FilterBank(w)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weights), wanted)
