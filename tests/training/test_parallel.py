"""Ranks that train one network together (``--parallel``): gloo processes on loopback."""

import csv
from itertools import chain

import pytest
import torch

from tests.processes import run_ranks, torchrun
from tests.training import parallel_rank
from tests.training.test_trainer import assert_same_state
from weight_evolution.training import cli
from weight_evolution.training.checkpoint import read_checkpoint
from weight_evolution.training.data import batch_sizes
from weight_evolution.training.parallel.replicas import Replicas

SMALL = ["train", "--model", "resnet8", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--threads", "1"]


def run(ranks, folder):
    done = run_ranks(ranks, "tests.training.parallel_rank", folder)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run(2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("ranks"))


def check(outcomes, name):
    assert all(outcome[name] == "done" for outcome in outcomes), "\n".join(outcome[name] for outcome in outcomes)


@pytest.mark.xdist_group("two ranks")
@pytest.mark.parametrize("name", parallel_rank.CASES)
def test_ranks_train_as_one_process(name, two_ranks):
    check(two_ranks, name)


@pytest.mark.slow
@pytest.mark.xdist_group("four ranks")
@pytest.mark.parametrize("name", parallel_rank.CASES)
def test_four_ranks_train_as_one_process(name, four_ranks):
    check(four_ranks, name)


LOST = {
    "kill": "",
    "hang": "",
    "refuse": "rank 1: these images cannot be read",
    "fail": "RuntimeError: a fault of the network's own",
}
"""How -> what the lost rank says."""


@pytest.mark.parametrize("mode", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "how", ["kill", *(pytest.param(how, marks=pytest.mark.slow) for how in ("hang", "refuse", "fail"))]
)
def test_a_rank_is_lost(tmp_path, monkeypatch, digits, capsys, mode, how):
    """The other one says so, and the last checkpoint is whole: the run goes on from it, in one process."""
    options = ["--parallel", mode, "--parallel-timeout", "8"]
    lost = run_ranks(2, "tests.training.lost_rank", how, *SMALL, *options, "--output", tmp_path)
    assert lost.returncode != 0
    assert LOST[how] in lost.stderr
    assert "rank 0: another rank ended or hangs (its own output says why)" in lost.stderr
    assert "start again with --resume" in lost.stderr
    assert lost.stdout.count("epoch 1/2") == 1
    assert "epoch 2/2" not in lost.stdout
    monkeypatch.setattr(cli, "load_data", lambda *_: digits)
    assert cli.main([*SMALL, "--resume", "--output", str(tmp_path)]) == 0
    assert "resumed after 1 of 2 epochs" in capsys.readouterr().out
    with (tmp_path / "seed-0" / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_one_rank_under_torchrun_has_the_bits_of_one_process(tmp_path, mode):
    options = ["--model", "resnet8", "--batch-size", "512", "--epochs", "2", "--device", "cpu", "--threads", "1"]
    command = ["train", *options, "--method", "evolution+asynchronous"]
    done = torchrun(1, "weight_evolution", *command, "--parallel", mode, "--output", tmp_path / "ranks")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results in") == 1
    assert cli.main([*command, "--quiet", "--output", str(tmp_path / "alone")]) == 0
    states = [read_checkpoint(tmp_path / name / "seed-0" / "checkpoint.pt") for name in ("ranks", "alone")]
    for entry in ("config", "model", "optimizer", "methods"):
        assert_same_state(*(state[entry] for state in states))


@pytest.mark.slow
def test_sharded_networks_under_torchrun(tmp_path, capsys):
    """They are grafted on two ranks; one process goes on."""
    options = ["--batch-size", "512", "--epochs", "3", "--device", "cpu", "--threads", "1", "--output", tmp_path]
    method = ["--model", "resnet8", "--method", "grafting", "--networks", "3", "--graft-every", "2", "--ema", "0.9"]
    command = ["train", *method, "--graft-learning-rates", "0.1", "0.05", "0.02", *map(str, options)]
    done = torchrun(2, "weight_evolution", *command, "--parallel", "fsdp", "--stop-after", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the best of 3, chosen on the test set") == 1
    assert cli.main([*command, "--resume"]) == 0
    assert "resumed after 2 of 3 epochs" in capsys.readouterr().out
    for i in range(3):
        with (tmp_path / "seed-0" / f"network-{i}" / "log.csv").open(newline="") as file:
            assert [bool(row["grafting_kept_mean"]) for row in csv.DictReader(file)] == [False, True, False]


def test_without_torchrun(tmp_path, capsys):
    assert cli.main([*SMALL, "--parallel", "fsdp", "--output", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert "torchrun --nproc-per-node 2 -m weight_evolution train --parallel fsdp" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_options_in_a_file(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text('parallel = "ddp"\nparallel-timeout = 7\n')
    assert cli.main([*SMALL, "--config", str(file), "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert 'parallel = "ddp"' in printed
    assert "parallel-timeout = 7.0" in printed


def ranks_of(count):
    made = [Replicas.__new__(Replicas) for _ in range(count)]
    for rank, replica in enumerate(made):
        replica.rank, replica.count = rank, count
    return made


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("images", [8, 13, 64, 100])
def test_each_image_is_seen_once(images, count):
    """In training with the weight of one, in measuring in as many batches on each rank, none of which is empty."""
    ranks, all_images = ranks_of(count), list(range(images))
    parts = [all_images[rank.part(images)] for rank in ranks]
    assert list(chain(*parts)) == all_images
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for rank, part in zip(ranks, parts, strict=True):
        assert rank.weight(images) / count * images == pytest.approx(len(part))
    batches = [[all_images[part] for part in rank.test_parts(images, 5)] for rank in ranks]
    assert list(chain(*chain(*batches))) == all_images
    assert len({len(of) for of in batches}) == 1
    assert all(0 < len(batch) <= 5 for of in batches for batch in of)


@pytest.mark.parametrize(
    ("images", "ranks", "sizes"),
    [(90, 1, [32, 32, 26]), (65, 1, [32, 33]), (66, 1, [32, 32, 2]), (66, 2, [32, 34]), (68, 2, [32, 32, 4]),
     (7, 4, [7]), (64, 4, [32, 32])],
)  # fmt: skip
def test_a_last_batch_that_is_too_small_joins_the_one_before(images, ranks, sizes):
    assert batch_sizes(images, 32, ranks) == sizes
