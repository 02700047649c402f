import csv
import json
import math
import sys

import pytest
import torch

from weight_evolution.training.errors import UserError
from weight_evolution.training.logs import TensorBoardLog, write_log

HISTORY = [{"epoch": 0, "loss": 1.5, "threshold": 0.25}, {"epoch": 1, "loss": math.nan, "extra": 3}]


def test_csv_has_all_columns_and_no_nan(tmp_path):
    write_log(HISTORY, tmp_path / "log.csv")
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"epoch": "0", "loss": "1.5", "threshold": "0.25", "extra": ""},
        {"epoch": "1", "loss": "", "threshold": "", "extra": "3"},
    ]


def test_json_is_strict(tmp_path):
    def refuse(text):
        raise AssertionError(text)

    write_log(HISTORY, tmp_path / "log.json")
    rows = json.loads((tmp_path / "log.json").read_text(), parse_constant=refuse)
    assert rows == [{"epoch": 0, "loss": 1.5, "threshold": 0.25}, {"epoch": 1, "loss": None, "extra": 3}]


def test_missing_tensorboard_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install '\.\[tensorboard\]'"):
        TensorBoardLog(tmp_path, 0)


def test_tensorboard_gets_every_number(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append(purge_step)

        def add_scalar(self, *values):
            written.append(values)

        def close(self):
            written.append("closed")

    module = type(torch)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    board = TensorBoardLog(tmp_path, 7)
    board.write({"epoch": 7, "loss": 0.5, "note": "text"})
    board.close()
    assert written == [7, ("loss", 0.5, 7), "closed"]
