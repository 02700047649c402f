"""The grafting benchmark runs, verifies before it times, and writes what it found."""

import json

import pytest
import torch

from benchmarks import grafting


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(grafting, "BANDWIDTH_BYTES", 1 << 20)
    return grafting


def run(bench, output):
    return bench.main(["--models", "resnet20", "--repeats", "2", "--device", "cpu", "--output", str(output)])


def test_rows_and_json(bench, tmp_path, capsys):
    output = tmp_path / "result.json"
    assert run(bench, output) == 0
    result = json.loads(output.read_text())
    assert result["bandwidth"]["resnet20"]["weight_bytes"] == 2 * 4 * 267696
    assert [(row["model"], row["op"], row["layers"], row["repeats"]) for row in result["rows"]] == [
        ("resnet20", op, 19, 2) for op in ("pytorch", "graft", "entropy", "blend")
    ]
    assert result["rows"][0]["ratio_pytorch"]["median"] == 1
    assert all(row["times_floor"] > 0 for row in result["rows"])
    assert "| resnet20 | graft | 19 |" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["entropy", "blend"])
def test_a_wrong_result_is_not_timed(bench, tmp_path, monkeypatch, capsys, wrong):
    entropy, ring = bench.wk.weight_entropy, bench.wk.blend_ring_
    if wrong == "entropy":
        monkeypatch.setattr(
            bench.wk, "weight_entropy", lambda bank, bins, **options: entropy(bank, bins + 1, **options)
        )
    else:
        monkeypatch.setattr(
            bench.wk, "blend_ring_", lambda banks, share, **options: ring(banks, share * 0.999, **options)
        )
    assert run(bench, tmp_path / "result.json") == 1
    assert "a result is wrong" in capsys.readouterr().err
    assert not (tmp_path / "result.json").exists()


def test_missed_bars_are_named(bench):
    times = bench.Spread(1.0, 1.0, 1.0)
    rows = [bench.Row(model, "graft", 53, 3, times, times._replace(median=4.0), 2.6) for model in bench.REPEATS]
    assert bench.missed_bars(rows, torch.device("cpu")) == [
        "missed: mobilenetv2: 4.0 times faster than PyTorch, bar 5",
        "missed: resnet50: 2.60 times the floor, bar 2.5",
    ]
    assert bench.missed_bars(rows, torch.device("cuda")) == []


STAND_IN = """
raise RuntimeError("the script itself must not run")

def entropy(x, n=10):
    x = x.reshape(-1)
    edges = [x.min() + k * ((x.max() - x.min()) / n) for k in range(n + 1)]
    p = torch.stack([((a <= x) & (x < b)).sum() for a, b in zip(edges, edges[1:])]) / len(x)
    return float(torch.special.entr(p).sum())

def grafting(net, epoch):
    other = torch.load("%s/ckpt%d" % (args.s, args.i - 1))["net"]
    model = collections.OrderedDict()
    for key, own in net.state_dict().items():
        w = round(args.a / np.pi * np.arctan(args.c * (entropy(own) - entropy(other[key]))) + 0.5, 2)
        model[key] = own * w + other[key] * SIGN (1 - w)
    net.load_state_dict(model)
"""


@pytest.mark.parametrize(("sign", "status"), [("*", 0), ("* -1 *", 1)], ids=["right", "wrong"])
def test_released_program(bench, tmp_path, capsys, sign, status):
    """On both networks' memory, verified before it is timed."""
    path = tmp_path / "grafting_cifar" / "grafting.py"
    path.parent.mkdir()
    path.write_text(STAND_IN.replace("* SIGN", sign))
    arguments = ["--models", "resnet20", "--repeats", "2", "--device", "cpu", "--released", str(tmp_path)]
    assert bench.main([*arguments, "--output", str(tmp_path / "result.json")]) == status
    said = capsys.readouterr()
    if status:
        assert "differ from the released program" in said.err
    else:
        assert "| resnet20 | released | 19 |" in said.out


def test_another_directory_is_refused(bench, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--released", str(tmp_path)])
    assert "fxmeng/filter-grafting" in capsys.readouterr().err
