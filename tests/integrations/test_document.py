"""What docs/integrations.md shows works as it stands there."""

import logging
import os
import re

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from tests.integrations.networks import batch, network
from tests.processes import ROOT

TEXT = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in TEXT.split("\n## ")}


def lightning_names():
    pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    from tests.integrations.test_lightning import DataLoader, Images, Module

    loader = DataLoader(Images(), batch_size=4)
    return {"module": Module(), "loader": loader, "validation_loader": loader}


def transformers_names():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from tests.integrations.test_transformers import Images, network, trainer

    return {"model": network(), "args": trainer("out").args, "dataset": Images(), "images": batch()[0]}


def accelerate_names():
    pytest.importorskip("accelerate")
    model = network()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*batch()))
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "loader": loader}


NAMES = {
    "Lightning": lightning_names,
    "Hugging Face's Trainer": transformers_names,
    "accelerate": accelerate_names,
    "Schedules of your run": lambda: {"model": network()},
}


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("section", NAMES)
def test_code_of_a_section(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = NAMES[section]()
    for code in SECTIONS[section]:
        exec(compile(code.replace("max_epochs=90", "max_epochs=2, accelerator='cpu'"), section, "exec"), names)


def test_every_section_is_run():
    assert {section for section, code in SECTIONS.items() if code} == set(NAMES)


def test_the_table_has_every_example():
    assert set(re.findall(r"\(\.\./examples/(\w+\.py)\)", TEXT)) == {
        path.name for path in (ROOT / "examples").glob("*.py")
    }
