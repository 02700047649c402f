"""The commands of docs/training.md, in their order, with a small network, few images and a hundredth of the epochs."""

import json
import re
import shlex

import numpy as np
import pytest
import torch

from tests.processes import ROOT
from tests.training.image_folders import npz_arrays, write_folder, write_image
from tests.training.test_data import write_cifar
from weight_evolution.training import cli
from weight_evolution.training.models import make_model

PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = [line for block in PAGE.split("```")[1::2] for line in block.splitlines() if line.startswith("weight-evo")]
SMALL = ["--model", "resnet8", "--batch-size", "32", "--device", "cpu", "--quiet"]


def run(line, capsys):
    command, _, file = line.partition(" > ")
    words = [word if before != "--epochs" else str(int(word) // 100) for before, word in pairs(shlex.split(command))]
    if "--stop-after" in words:
        words[words.index("--stop-after") + 1] = "1"
    if "--epochs" not in words and "--config" not in words:
        words += ["--epochs", "1"]
    capsys.readouterr()
    assert cli.main([*words[1:], *SMALL]) == 0, line
    if file:
        with open(file, "w", encoding="utf-8") as written:
            written.write(capsys.readouterr().out)


def pairs(words):
    return zip(["", *words], words, strict=False)


def test_the_commands_of_the_page(digits, tmp_path, monkeypatch, capsys):
    load = cli.load_data
    monkeypatch.setattr(cli, "load_data", lambda name, *rest: digits if name == "digits" else load(name, *rest))
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos")
    write_image(tmp_path / "photos" / "val" / "cat" / "large.png", 90, 70)
    np.savez(tmp_path / "own.npz", **npz_arrays())
    write_cifar(tmp_path / "cifar")
    assert len(COMMANDS) == 10
    for line in COMMANDS:
        run(line, capsys)
    results = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/results.json")}
    assert results.keys() == {"digits", "photos", "npz", "cifar", "adamw", "file", "long"}
    assert [run["epochs"] for run in results["long"]["runs"]] == [3]
    assert [run["seed"] for run in results["file"]["runs"]] == [0, 1]
    assert results["file"]["config"]["ema"] == 0.99

    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    model = make_model("resnet8", 1, 10)
    exec(example[1], {"model": model})
    state = torch.load("runs/adamw/seed-0/checkpoint.pt", weights_only=True)
    assert torch.equal(model.conv1.weight, state["ema"]["model"]["conv1.weight"])


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--[a-z-]*[a-z]", PAGE))))
def test_the_options_of_the_page_exist(option):
    known = {
        name for action in cli.make_parser().parse_args(["train"]).parser._actions for name in action.option_strings
    }
    assert option in known | {"--nproc-per-node"}  # torchrun's
