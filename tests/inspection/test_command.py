import json
import re

import pytest
import torch

from tests.browser import BROWSER, rendered
from weight_evolution.training import cli
from weight_evolution.training.models import make_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    net = make_model("resnet8", 1, 10)
    with torch.no_grad():
        net.layer1[0].conv1.weight[:6] = 0
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(net.state_dict(), path)
    return path


def run(*arguments):
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def test_text(weights, capsys):
    assert run("inspect", weights) == 0
    short = capsys.readouterr().out
    assert "no --model: known by the weights alone" in short
    assert re.search(r"layer1\.0\.conv1 +16 +6 +6", short)
    assert "6 of 250 filters (2%) are zero" in short
    assert "small L1 norm" not in short
    assert run("inspect", weights, "--long") == 0
    long = capsys.readouterr().out
    assert long.startswith(short.rstrip("\n"))
    assert re.search(r"^fc +10 ", long, re.MULTILINE)


def test_data_shows_which_units_fire(weights, capsys):
    options = ("--model", "resnet8", "--in-channels", 1, "--data", "digits", "--images", 32, "--format", "json")
    assert run("inspect", weights, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layers"]["layer1.0.conv1"]["dead"] == 6
    assert len(found["layers"]["layer1.0.conv1"]["scores"]) == 16
    assert found["totals"]["dead"] >= 6
    assert 0 < found["previews"]["LowRankProjection"]["macs_share"] <= 1
    assert found["notes"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "digits"), "--data needs a network that can be run: say which by --model"),
        (("--input-size", 3, 8, 8), "--input-size needs a network"),
        (("--conv-rate", 0.5), "are for checkpoints of train"),
        (("--model", "resnet8", "--in-channels", 1, "--data", "cifar11"), "--data must be digits"),
        (("--model", "resnet8", "--in-channels", 3), "--in-channels"),
        (("--format", "xml"), "invalid choice"),
    ],
)
def test_mistakes_are_one_line(weights, capsys, options, message):
    assert run("inspect", weights, *options) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_files_are_not_overwritten(weights, tmp_path, capsys):
    output = tmp_path / "health.json"
    assert run("inspect", weights, "--format", "json", "--output", output) == 0
    assert capsys.readouterr().out == f"written to {output}\n"
    first = output.read_text()
    assert json.loads(first)["totals"]["zero"] == 6
    assert run("inspect", weights, "--output", output) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert output.read_text() == first
    assert run("inspect", weights, "--output", output, "--overwrite") == 0
    assert output.read_text() != first


def test_page_needs_nothing_else(weights, tmp_path):
    page = tmp_path / "health.html"
    assert run("inspect", weights, "--format", "html", "--output", page) == 0
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#)""", text)
    assert "<script" not in text
    assert "<svg" in text


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_page_in_a_browser(weights, tmp_path):
    page = tmp_path / "health.html"
    assert run("inspect", weights, "--format", "html", "--output", page) == 0
    # A script of the test's own reports what the browser made of the page.
    probe = (
        "<script>addEventListener('load', () => { const of = (s) => document.querySelectorAll(s);"
        "document.title = [of('tbody tr').length, of('svg text').length > 0 || of('svg path').length > 9, "
        "document.body.scrollWidth <= innerWidth].join() })</script></body>"
    )
    page.write_text(page.read_text().replace("</body>", probe))
    seen = rendered(page, tmp_path / "profile")
    assert re.search("<title>(.*?)</title>", seen)[1] == "8,true,true"
