"""Every file in examples/ trains, evolves after each epoch but the last, and goes on from its own checkpoint."""

import logging
import os
import runpy

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.processes import ROOT

EXAMPLES = {
    "plain_pytorch.py": ([], "--checkpoint {}/checkpoint.pt", None),
    "torchvision_reference.py": (["torchvision"], "--output-dir {}", "--resume {}/checkpoint.pth"),
    "timm_train.py": (["timm", "torchvision"], "--model test_resnet --output {}", "--resume {}/last.pth.tar"),
    "lightning_callbacks.py": (["lightning"], "--folder {}", "--resume {}/last.ckpt"),
    "huggingface_trainer.py": (["transformers", "accelerate"], "--folder {}", "--resume"),
    "accelerate_loop.py": (["accelerate", "torchvision"], "--folder {}/state", None),
}
"""File -> what it imports, its options, and those by which it resumes; None: by itself."""


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name, tmp_path, monkeypatch):
    libraries, options, resume = EXAMPLES[name]
    for library in libraries:
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    main = runpy.run_path(str(ROOT / "examples" / name))["main"]

    trained = []

    def run(*more):
        torch.manual_seed(0)
        trained.clear()
        counting = register_optimizer_step_post_hook(lambda *_: trained.append(1))
        found = main(["--epochs", "3", *options.format(tmp_path).split(), *more])
        counting.remove()
        return found

    made = run()
    assert getattr(made, "evolution", made).steps == 2
    assert trained
    run(*(resume or "").format(tmp_path).split())
    assert not trained  # nothing was left to do
