"""One rank of test_parallel: what all ranks train together, beside what one process makes of it here and now.

python -m tests.ranks PROCESSES tests.training.parallel_rank FOLDER
"""

import math
import os
import traceback
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn

from tests.training.training_runs import make_config, small_digits
from weight_evolution.training.checkpoint import read_checkpoint, save_checkpoint
from weight_evolution.training.config import TrainingConfig
from weight_evolution.training.errors import UserError
from weight_evolution.training.methods import asynchronous, grafting, low_rank, reactivation
from weight_evolution.training.networks import Networks
from weight_evolution.training.parallel import parallel_ranks
from weight_evolution.training.parallel.shards import Shards
from weight_evolution.training.parallel.started import rank_errors
from weight_evolution.training.runs import OutputOptions, train_seeds
from weight_evolution.training.trainer import Trainer

CPU = torch.device("cpu")
EPOCHS = 2
CASES = {}


class Plain(nn.Module):
    """Without BatchNorm, in float64: ranks make of it what one process does, up to the float32 of images and loss."""

    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(128, num_classes)
        self.double()

    def forward(self, x):
        x = self.conv2(self.conv1(x.double()).relu()).relu()
        return self.fc(x.flatten(1))


class Dropping(nn.Sequential):
    """Says which of its inputs were dropped last."""

    dropped = None

    def __init__(self, in_channels, num_classes):
        super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * in_channels, num_classes))

    def forward(self, x):
        x = self[0](x)
        dropped = self[1](torch.ones_like(x))
        self.dropped = dropped if self.training else self.dropped
        return self[2](x * dropped)


def main(folder):
    os.environ |= {"TORCHELASTIC_RUN_ID": "tests", "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}
    torch.set_num_threads(1)
    folder, outcomes = Path(folder), {}
    with parallel_ranks("ddp", CPU, 60.0) as ranks:
        for name, case in CASES.items():
            outcomes[name] = outcome(case, ranks, folder / name)
        torch.save(outcomes, folder / f"rank-{ranks.rank}.pt")
        dist.barrier()


def outcome(case, ranks, folder):
    try:
        case(ranks, folder)
    except (Exception, pytest.fail.Exception):
        return traceback.format_exc()
    return "done"


def case(function):
    CASES[function.__name__] = function
    return function


def digits(images=90):
    """So many training images, 70 test images."""
    whole = small_digits()
    return replace(whole, train_images=whole.train_images[:images], train_labels=whole.train_labels[:images])


def config_of(method, model=f"{__name__}:Plain", **changes) -> TrainingConfig:
    """Two epochs; measurements of reactivation go on over the end of the first."""
    every = {
        **make_config().method_options,
        "asynchronous": asdict(asynchronous.Options()),
        "low-rank": asdict(low_rank.Options(every_iterations=2)),
        "reactivation": asdict(reactivation.Options(every=2, batches=1, threshold=0.9)),
        "grafting": asdict(grafting.Options(networks=2)),
        "distillation": {"teachers": changes.pop("teachers", None), "temperature": 3.0, "data": "digits"},
    }
    names = [] if method == "baseline" else method.split("+")
    values = {"model": model, "lr": 0.02, "epochs": EPOCHS, "batch_size": 32} | changes
    return TrainingConfig(method=method, method_options={name: every[name] for name in names}, **values)


def train(trainer, until=EPOCHS):
    while trainer.epoch < until:
        trainer.run_epoch()
    return trainer


def assert_close(one, other, **tolerance):
    """Of weights, optimizer state, counters and the log, without its times."""
    states = [{**trainer.state_dict(), "config": None} for trainer in (one, other)]
    for state in states:
        state["history"] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in state["history"]]
    assert_alike(*states, **tolerance)


def assert_alike(one, other, **tolerance):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key], **tolerance)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_alike(a, b, **tolerance)
    elif isinstance(one, (float, torch.Tensor)):
        torch.testing.assert_close(one, other, equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))
    else:
        assert one == other


def assert_same_on_all(*models):
    """Parameters and buffers have the same bits on all ranks."""
    different = []
    for model in models:
        for name, tensor in model.state_dict().items():
            first = tensor.clone()
            dist.broadcast(first, 0)
            different += [] if torch.equal(first, tensor) else [name]
    assert not different  # when all that the ranks do together is done


def as_one_process(ranks, images=90, **options):
    """The batches of 90 images on 2 ranks are 16 + 16, 16 + 16 and 13 + 13; those of 87 end with 12 + 11."""
    config = config_of(**options)
    together = train(Trainer(config, 3, digits(images), CPU, ranks=ranks))
    assert_same_on_all(together.model)
    if ranks.first:
        assert_close(train(Trainer(config, 3, digits(images), CPU)), together, rtol=1e-5, atol=1e-6)
    return together


@case
def the_plain_optimizer(ranks, folder):
    as_one_process(ranks, 87, method="baseline", ema=0.5, optimizer="adamw")


@case
def evolution_and_asynchronous(ranks, folder):
    trained = as_one_process(ranks, 87, method="evolution+asynchronous")
    assert trained.history[0]["evolution_replaced_conv"] > 0
    assert trained.history[0]["overlap_mean"] > 0


@case
def unit_reactivation(ranks, folder):
    """Which measures on all ranks."""
    trained = as_one_process(ranks, method="reactivation")
    assert sum(row["reactivation_revived"] for row in trained.history) > 0


@case
def low_rank_projection(ranks, folder):
    trained = as_one_process(ranks, method="low-rank")
    assert trained.history[0]["compact_test_accuracy"] > 0


@case
def distillation_from_a_teacher(ranks, folder):
    teacher = train(Trainer(config_of("baseline"), 7, digits(), CPU), 1)
    path = folder.with_suffix(f".{ranks.rank}.pt")
    save_checkpoint(teacher.state_dict(), path)
    as_one_process(ranks, method="distillation", teachers=[str(path)])


@case
def grafting_of_two_networks(ranks, folder):
    config = config_of("grafting+evolution")
    together = train(Networks(config, 3, digits(), CPU, ranks=ranks))
    assert_same_on_all(*(trainer.model for trainer in together.trainers.values()))
    if ranks.first:
        alone = train(Networks(config, 3, digits(), CPU))
        for one, other in zip(alone.trainers.values(), together.trainers.values(), strict=True):
            assert_close(one, other, rtol=1e-5, atol=1e-6)


@case
def replicas_with_batch_norm(ranks, folder):
    """Each rank has its own statistics in training; the first one's are measured with and kept."""
    config = config_of("evolution+reactivation+low-rank", model="resnet8", ema=0.5, channels_last=True, amp="bf16")
    trainer = train(Trainer(config, 3, digits(), CPU, ranks=ranks))
    assert_same_on_all(trainer.model, trainer.ema.model)


@case
def shards_are_as_replicas(ranks, folder):
    """Bit for bit on two ranks, where a sum of gradients has one order only, and halves are exact."""
    config = config_of("evolution+asynchronous", model="resnet8", ema=0.5)
    shards, replicas = (train(Trainer(config, 3, digits(), CPU, ranks=of)) for of in (Shards(CPU), ranks))
    assert_same_checkpoints(ranks, folder, shards, replicas)
    assert (shards.state_dict()["ema"]["model"]["conv1.weight"] is not None) == ranks.first  # who gathers
    if ranks.first:
        train(restored(config, read_checkpoint(folder / "shards.pt")), EPOCHS)  # by one process


@case
def shards_in_bfloat16(ranks, folder):
    config = config_of("baseline", model="resnet8", amp="bf16")
    shards, replicas = (train(Trainer(config, 3, digits(64), CPU, ranks=of), 1) for of in (Shards(CPU), ranks))
    assert shards.history[0]["test_loss"] == pytest.approx(replicas.history[0]["test_loss"], rel=1e-2)
    state = shards.state_dict()["model"]
    if ranks.count == 2 and ranks.first:
        assert_alike(dict(state), dict(replicas.model.state_dict()))


def assert_same_checkpoints(ranks, folder, shards, replicas):
    folder.mkdir(exist_ok=True)
    shards.save(folder / "shards.pt")
    replicas.save(folder / "replicas.pt")
    if ranks.first:
        one, other = (read_checkpoint(folder / name) for name in ("shards.pt", "replicas.pt"))
        for state in (one, other):
            state["history"] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in state["history"]]
        assert_alike(one, other, **({} if ranks.count == 2 else {"rtol": 1e-3, "atol": 1e-3}))


def restored(config, state, **options):
    trainer = Trainer(config, 3, digits(), CPU, **options)
    trainer.load_state_dict(state)
    return trainer


@case
def resuming_on_other_ranks(ranks, folder):
    """From one process to replicas to shards; counters, momentum and the average must come along."""
    config = config_of("evolution+asynchronous", epochs=3, optimizer="adamw", lr=0.002, ema=0.5)
    path = folder.with_suffix(f".{ranks.rank}.pt")
    alone = train(Trainer(config, 3, digits(), CPU), 1)
    save_checkpoint(alone.state_dict(), path)
    replicas = train(restored(config, read_checkpoint(path), ranks=ranks), 2)
    save_checkpoint(replicas.state_dict(), path)
    shards = train(restored(config, read_checkpoint(path), ranks=Shards(CPU)), 3)
    state = shards.state_dict()
    if ranks.first:
        assert_close(train(alone, 3), restored(config, state), rtol=1e-5, atol=1e-6)


@case
def grafting_of_sharded_networks(ranks, folder):
    """With a teacher and learning rates of their own, and pairs of convolutions and BatchNorms."""
    teacher = train(Trainer(config_of("baseline", model="resnet8"), 7, digits(), CPU), 1)
    path = folder.with_suffix(f".{ranks.rank}.pt")
    save_checkpoint(teacher.state_dict(), path)
    config = config_of("grafting+evolution+distillation", model="resnet8", teachers=[str(path)])
    config.method_options["grafting"].update(learning_rates=[0.02, 0.005], level="filter")
    shards, replicas = (train(Networks(config, 3, digits(), CPU, ranks=of)) for of in (Shards(CPU), ranks))
    assert [trainer.history[0]["lr"] for trainer in shards.trainers.values()] == [0.02, 0.005]
    for i, trainer in shards.trainers.items():
        assert trainer.history[0]["grafting_kept_min"] < trainer.history[0]["grafting_kept_max"]
        assert_same_checkpoints(ranks, folder.with_name(f"{folder.name}-{i}"), trainer, replicas.trainers[i])


@case
def sharded_networks_go_on_on_other_ranks(ranks, folder):
    """From one process to shards to replicas to shards; grafted after every second epoch."""
    config = config_of("grafting", epochs=5, ema=0.5)
    config.method_options["grafting"].update(every=2)
    alone = train(Networks(config, 3, digits(), CPU), 1)
    folders = {i: folder.with_name(f"{folder.name}.{ranks.rank}.{i}") for i in alone.trainers}
    for each in folders.values():
        each.mkdir()
    alone.save(folders)
    for until, of in ((2, Shards(CPU)), (3, ranks), (5, Shards(CPU))):
        resumed = Networks(config, 3, digits(), CPU, ranks=of)
        resumed.load(folders)
        assert resumed.epoch < until
        train(resumed, until).save(folders)
    if ranks.first:
        last = Networks(config, 3, digits(), CPU)
        last.load(folders)
        for one, other in zip(train(alone, 5).trainers.values(), last.trainers.values(), strict=True):
            assert ["grafting_kept_mean" in row for row in one.history] == [False, True, False, True, False]
            assert_close(one, other, rtol=1e-5, atol=1e-6)


@case
def reactivation_of_shards(ranks, folder):
    """As of replicas, to the bits on two ranks; with BatchNorm."""
    options = asdict(reactivation.Options(every=2, batches=1, threshold=0.96))
    config = config_of("reactivation", model="resnet8", optimizer="unit-adamw", lr=0.002)
    config = replace(config, method_options={"reactivation": options})
    shards = train(Trainer(config, 3, digits(), CPU, ranks=Shards(CPU)))
    replicas = train(Trainer(config, 3, digits(), CPU, ranks=ranks))
    assert sum(row["reactivation_revived"] for row in shards.history) > 0
    states = [shards.state_dict(), replicas.state_dict()]
    if ranks.count == 2 and ranks.first:
        without_zeros(states[0])
        without_zeros(states[1])
        assert_alike(*({name: dict(state[name]) for name in ("model", "optimizer", "methods")} for state in states))


def without_zeros(state):
    """UnitAdamW has vectors of all DTensors, of other parameters only after a reset."""
    for entries in state["optimizer"]["state"].values():
        for name in ("row_reset", "column_reset"):
            if name in entries and not entries[name].any():
                del entries[name]


@case
def measurements_resume_on_other_ranks(ranks, folder):
    """From one process to replicas to shards, in the middle of measurements; ages must come along, too."""
    options = asdict(reactivation.Options(every=4, batches=3, threshold=0.9))
    config = config_of("reactivation", epochs=4, optimizer="unit-adamw", lr=0.002)
    config = replace(config, method_options={"reactivation": options})
    path = folder.with_suffix(f".{ranks.rank}.pt")
    alone = train(Trainer(config, 3, digits(), CPU), 1)
    save_checkpoint(alone.state_dict(), path)
    replicas = train(restored(config, read_checkpoint(path), ranks=ranks), 2)
    save_checkpoint(replicas.state_dict(), path)
    dist.broadcast_object_list(saved := [path.read_bytes()], 0)
    path.write_bytes(saved[0])
    shards = train(restored(config, read_checkpoint(path), ranks=Shards(CPU)), 3)
    state = shards.state_dict()
    assert all(state["methods"]["reactivation"]["activity"].values())
    save_checkpoint(state, path)
    dist.broadcast_object_list(saved := [path.read_bytes()], 0)
    path.write_bytes(saved[0])
    replicas = train(restored(config, read_checkpoint(path), ranks=ranks), 4)
    assert replicas.history[2]["reactivation_revived"] > 0
    states = [replicas.state_dict(), train(alone, 4).state_dict()]
    for state in states:
        without_zeros(state)
        state["history"] = [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in state["history"]]
    assert_alike(*states, rtol=1e-5, atol=1e-6)


@case
def one_rank_reads_and_writes(ranks, folder):
    """Of a folder that is there on its machine alone; its errors are those of all."""
    own = OutputOptions(folder if ranks.first else folder.with_name("elsewhere"), stop_after=1)
    said = []
    config = config_of("evolution")
    train_seeds(config, [0, 1], digits(), CPU, own, said.append, ranks)
    results = train_seeds(config, [0, 1], digits(), CPU, replace(own, stop_after=None, resume=True), said.append, ranks)
    assert [run["epochs"] for run in results["runs"]] == [2, 2]
    assert (results["parallel"], results["ranks"]) == ("ddp", ranks.count)
    assert own.folder.exists() == ranks.first
    assert len([line for line in said if "epoch 2/2" in line]) == (2 if ranks.first else 0)
    with pytest.raises(UserError, match="exists; pass --resume") as refused:
        train_seeds(config, [0], digits(), CPU, own, said.append, ranks)
    assert ("rank 0 failed: " in str(refused.value)) != ranks.first


@case
def a_loss_that_is_not_finite_on_one_rank(ranks, folder):
    trainer = Trainer(config_of("baseline"), 0, digits(), CPU, ranks=ranks)
    step = trainer._step
    trainer._step = lambda images, *rest: step(images * (math.nan if ranks.rank == 1 else 1.0), *rest)
    with pytest.raises(UserError, match="training loss became nan in epoch 0"):
        trainer.run_epoch()


class Spare(Plain):
    """The loss does not depend on some parameters."""

    def __init__(self, in_channels, num_classes):
        super().__init__(in_channels, num_classes)
        self.spare = nn.Linear(2, 2)


@case
def a_network_with_parameters_to_spare(ranks, folder):
    trainer = Trainer(config_of("baseline", model=f"{__name__}:Spare"), 0, digits(), CPU, ranks=ranks)
    with pytest.raises(UserError, match="parameters that the loss does not depend on"), rank_errors("ddp", 60.0):
        trainer.run_epoch()


@case
def ranks_drop_other_units(ranks, folder):
    trainer = Trainer(config_of("baseline", model=f"{__name__}:Dropping"), 0, digits(64), CPU, ranks=ranks)
    trainer.run_epoch()
    mask = trainer.model.dropped
    first = mask.clone()
    dist.broadcast(first, 0)
    assert torch.equal(first, mask) == ranks.first


@case
def what_ranks_cannot_train_is_refused(ranks, folder):
    with pytest.raises(UserError, match="--parallel fsdp needs a GPU for each rank"):
        Shards(torch.device("cuda"))
    shards = Shards(CPU)
    for message, method, among, changes in (
        ("--batch-size 33 is split over the ranks and must be a multiple", "baseline", ranks, {"batch_size": 33}),
        ("2 training images are too few", "baseline", ranks, {"images": 2}),
        ("--compile does not go with --parallel fsdp", "baseline", shards, {"compile": True}),
        ("--channels-last does not go with --parallel fsdp", "baseline", shards, {"channels_last": True}),
        ("--amp fp16 does not go with --parallel fsdp", "baseline", shards, {"amp": "fp16"}),
    ):
        data = digits(changes.pop("images", 90))
        with pytest.raises(UserError, match=message):
            Trainer(config_of(method, **changes), 0, data, CPU, ranks=among)
