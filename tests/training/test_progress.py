import io
import sys

import pytest
import torch

from tests.training.training_runs import make_config
from weight_evolution.training import cli, progress
from weight_evolution.training.errors import UserError
from weight_evolution.training.runs import OutputOptions, train_seeds

CPU = torch.device("cpu")
SMALL = [
    "train",
    "--method",
    "baseline",
    "--model",
    "resnet8",
    "--batch-size",
    "32",
    "--epochs",
    "1",
    "--device",
    "cpu",
]


def batches(count, size=10):
    for i in range(count):
        yield torch.zeros(size, 1, 2, 2), torch.full((size,), i)


def test_a_bar_shows_images_per_second_and_the_time_left(capsys, monkeypatch):
    import tqdm

    shown = []
    close = tqdm.tqdm.close
    monkeypatch.setattr(tqdm.tqdm, "close", lambda self: shown.append(str(self)) or close(self))
    watched = progress.bar("seed 3", 5, 40)(batches(4), 1)
    assert [int(labels[0]) for _, labels in watched] == [0, 1, 2, 3]
    assert "seed 3  epoch 2/5: 100%" in shown[0]
    assert "40/40 [" in shown[0]
    assert " images/s]" in shown[0]
    err = capsys.readouterr().err
    assert "0/40 [00:00<?" in err
    assert err.endswith("\r")  # nothing is left of it


def test_without_tqdm_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert progress.bar("seed 3", 5, 40) is progress.unwatched


def test_it_is_gone_before_an_error_is_said(digits, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise UserError("a batch that fails")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", fail)
    output = OutputOptions(tmp_path, progress=True)
    with pytest.raises(UserError, match="a batch that fails") as raised:
        train_seeds(make_config("baseline"), [0], digits, CPU, output, print)
    err = capsys.readouterr().err
    assert "seed 0  epoch 1/4" in err
    assert err.endswith("\r")
    del raised


class Terminal(io.StringIO):
    """What somebody looks at."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("terminal", "arguments", "seen"), [(True, [], True), (True, ["--quiet"], False), (False, [], False)]
)
def test_it_is_shown_on_a_terminal_unless_quiet(digits, tmp_path, monkeypatch, terminal, arguments, seen):
    monkeypatch.setattr(cli, "load_data", lambda *_: digits)
    monkeypatch.setattr(sys, "stderr", stderr := Terminal() if terminal else io.StringIO())
    assert cli.main([*SMALL, *arguments, "--output", str(tmp_path)]) == 0
    assert ("seed 0  epoch 1/1" in stderr.getvalue()) == seen
