import json
import re
import sys

import numpy as np
import pytest
import torch

from tests.browser import BROWSER, rendered
from tests.training.image_folders import npz_arrays, write_folder, write_image
from weight_evolution import filter_health
from weight_evolution.inspection import command
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


@pytest.fixture
def measured(monkeypatch):
    """The batches that are run through the network."""
    seen = []

    def health(model, batches, **options):
        seen.extend(batches or ())
        return filter_health(model, batches, **options)

    monkeypatch.setattr(command, "filter_health", health)
    return seen


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    path = tmp_path_factory.mktemp("colour") / "w.pt"
    torch.save(make_model("resnet8", 3, 2).state_dict(), path)
    return path


IN_COLOUR = ("--model", "resnet8", "--in-channels", 3, "--num-classes", 2)


def test_data_of_all_classes(colour, tmp_path, measured):
    arrays = npz_arrays(())
    for part in ("train", "test"):
        labels = np.sort(arrays[f"{part}_labels"])
        arrays |= {f"{part}_labels": labels, f"{part}_images": np.uint8(50 * labels)[:, None, None].repeat(8, 1)}
        arrays[f"{part}_images"] = arrays[f"{part}_images"].repeat(8, 2)
    np.savez(tmp_path / "a.npz", **arrays)
    gray = ("--model", "resnet8", "--in-channels", 1, "--num-classes", 2)
    torch.save(make_model("resnet8", 1, 2).state_dict(), tmp_path / "w.pt")
    assert run("inspect", tmp_path / "w.pt", *gray, "--data", f"npz:{tmp_path}/a.npz", "--images", 3) == 0
    assert len(torch.cat(measured).unique()) == 3


def test_images_of_different_sizes(colour, tmp_path, measured, capsys):
    write_folder(tmp_path / "set")
    write_image(tmp_path / "set" / "val" / "cat" / "00.png", 12, 10)
    data = ("--data", f"folder:{tmp_path / 'set'}")
    assert run("inspect", colour, *IN_COLOUR, *data) == 2
    assert "pass --image-size N" in capsys.readouterr().err
    assert run("inspect", colour, *IN_COLOUR, *data, "--image-size", 6) == 0
    assert measured[0].shape == (12, 3, 6, 6)


def test_a_run_knows_the_size_of_its_images(tmp_path, measured, capsys):
    write_folder(tmp_path / "set")
    write_image(tmp_path / "set" / "val" / "cat" / "00.png", 12, 10)
    data = ("--data", f"folder:{tmp_path / 'set'}")
    options = ("--model", "resnet8", "--batch-size", 6, "--epochs", 1, "--device", "cpu", "--quiet")
    train = ("train", *data, *options, "--image-size", 8, "--output", tmp_path / "run")
    assert run(*train) == 0
    checkpoint = tmp_path / "run" / "seed-0" / "checkpoint.pt"
    assert run("inspect", checkpoint, *data) == 0
    capsys.readouterr()
    assert run("inspect", tmp_path / "run", *data, "--image-size", 10) == 0
    assert f"{checkpoint}: resnet8 on folder:" in capsys.readouterr().out.splitlines()[0]
    assert [batch.shape for batch in measured] == [(12, 3, 8, 8), (12, 3, 10, 10)]
    assert run("inspect", tmp_path / "run" / "seed-0", "--key", "model") == 0
    assert "tensors" in capsys.readouterr().out.splitlines()[0]
    assert run("inspect", checkpoint, "--data", "digits") == 2
    error = capsys.readouterr().err
    assert "--data digits: the network takes no input of size (1, 8, 8)" in error
    assert "its first convolution (conv1) takes 3 channels, not 1" in error


def test_whoever_reads_data_can_fetch_it(colour, tmp_path, capsys):
    """Messages about missing data name options; all commands that read data have them."""
    commands = (
        ("train", "--output", tmp_path / "run", "--data", "cifar10"),
        ("inspect", colour, *IN_COLOUR, "--data", "cifar10"),
    )
    for given in commands:
        assert run(*given, "--root", tmp_path / "none", "--no-checksum") == 2
        assert "pass --root FOLDER, or --download" in capsys.readouterr().err
    for name in ("train", "inspect", "compact"):
        assert run(name, "--help") == 0
        shown = capsys.readouterr().out
        assert all(f"{option} " in shown for option in ("--root", "--download", "--no-checksum"))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((3, 32), "its first convolution (conv1) takes C H W, 3 numbers"),
        ((1, 8, 8), "its first convolution (conv1) takes 3 channels, not 1"),
        ((3, 8, 8, 8), "its first convolution (conv1) takes C H W, 3 numbers"),
    ],
)
def test_an_input_that_does_not_fit(colour, capsys, size, message):
    assert run("inspect", colour, *IN_COLOUR, "--input-size", *size) == 2
    error = capsys.readouterr().err
    assert f"error: --input-size {' '.join(map(str, size))}: the network takes no input of size {size}: " in error
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "digits"), "--data needs a network that can be run: say which by --model"),
        (("--input-size", 3, 8, 8), "--input-size needs a network"),
        (("--conv-rate", 0.5), "are for checkpoints of train"),
        (("--model", "resnet8", "--in-channels", 1, "--data", "cifar11"), "--data must be digits"),
        (("--model", "resnet8", "--in-channels", 3), "--in-channels"),
        (("--model", "resnet8:make"), "--model resnet8:make: No module named 'resnet8'"),
        (("--format", "xml"), "invalid choice"),
        (("--images", 3), "--images belongs to --data; leave it out, or say which data"),
        (("--no-checksum", "--root", "a"), "--root, --no-checksum belongs to --data"),
        (("--image-size", 3), "--image-size belongs to --data"),
        (("--random",), "--random is for timm:NAME and torchvision:NAME"),
        (("--num-classes", 3), "--num-classes and --in-channels are of an architecture: say which by --model"),
        (("--output", "nowhere/a.html", "--format", "html"), "nowhere/a.html: there is no folder nowhere"),
        (("--output", ".", "--overwrite"), ". is a folder; name a file"),
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


def test_nothing_is_read_if_the_result_cannot_be_written(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_network", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("inspect", weights, "--format", "html") == 2
    assert "--format html needs matplotlib: pip install '.[inspect]' in a clone" in capsys.readouterr().err
    before = weights.read_bytes()
    assert run("inspect", weights, "--output", weights, "--overwrite") == 2
    assert "is what is read; name another file" in capsys.readouterr().err
    assert weights.read_bytes() == before


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
