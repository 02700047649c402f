"""What CONTRIBUTING.md shows works as it stands there."""

import dataclasses
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import we_kernels as wk
import weight_evolution
from tests.training.training_runs import make_config
from weight_evolution.training import methods
from weight_evolution.training.data import load_data
from weight_evolution.training.trainer import Trainer

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
FILES = dict(re.findall(r"`((?:we_kernels|weight_evolution)/[\w/]+\.py)`[^`]*```python\n(.*?)```", TEXT, re.DOTALL))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Imports a module of the examples, which are written beside the package's own."""
    for name, code in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    for package in (wk, weight_evolution, methods):
        folder = tmp_path / package.__name__.replace(".", "/")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield importlib.import_module
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]


def test_an_operator(written):
    peaks = written("we_kernels.peaks")
    weights = [torch.randn(4, 3, 3, 3), torch.randn(2, 5).double()]
    bank = wk.FilterBank(weights)
    wanted = torch.cat([weight.abs().flatten(1).amax(1).float() for weight in weights])
    assert torch.equal(peaks.filter_peaks(bank), wanted)
    torch.library.opcheck(torch.ops.we_kernels.filter_peaks.default, (weights, [0, 0], [0, 0]))
    compiled = torch.compile(lambda w: peaks.filter_peaks(wk.FilterBank(w)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(weights), wanted)


def test_a_method(written, monkeypatch):
    monkeypatch.setitem(
        methods.METHODS, "clipping", written("weight_evolution.training.methods.clipping").ClippingMethod
    )
    digits = load_data("digits")
    digits = dataclasses.replace(digits, train_images=digits.train_images[:90], train_labels=digits.train_labels[:90])
    config = make_config("baseline", epochs=1)
    config = dataclasses.replace(config, method="clipping", method_options={"clipping": {"limit": 1.01}})
    trainer = Trainer(config, 0, digits, torch.device("cpu"))
    assert trainer.run_epoch()["clipped"] > 0
    other = Trainer(config, 0, digits, torch.device("cpu"))
    other.load_state_dict(trainer.state_dict())
    assert other.methods["clipping"].clipping.steps == 1


def test_every_file_of_the_examples_was_tried():
    assert len(FILES) == 7
