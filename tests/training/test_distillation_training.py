import pytest
import torch

from tests.training.training_runs import EPOCHS, make_config
from weight_evolution import distillation_loss
from weight_evolution.training import UserError, cli
from weight_evolution.training.checkpoint import read_checkpoint, save_checkpoint
from weight_evolution.training.config import TrainingConfig
from weight_evolution.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teachers(digits, tmp_path_factory):
    """Two trained networks, of other widths than the student."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, model in enumerate(("resnet8", "resnet14")):
        trainer = Trainer(make_config("baseline", model=model), seed, digits, CPU)
        trainer.run_epoch()
        save_checkpoint(trainer.state_dict(), folder / f"{seed}.pt")
    return [str(folder / f"{seed}.pt") for seed in range(2)]


def config_of(teachers, **options):
    distillation = {"teachers": teachers, "temperature": 3.0, "data": "digits", **options}
    return TrainingConfig(
        model="resnet8",
        method="distillation",
        method_options={"distillation": distillation},
        epochs=EPOCHS,
        batch_size=32,
    )


def train(trainer, until=EPOCHS):
    while trainer.epoch < until:
        trainer.run_epoch()
    return trainer


def test_loss_is_that_of_the_teachers(digits, teachers):
    trainer = Trainer(config_of(teachers), 0, digits, CPU)
    method = trainer.methods["distillation"]
    before = [{k: v.clone() for k, v in teacher.state_dict().items()} for teacher in method.teachers]
    images = torch.randn(6, 1, 8, 8)
    logits = torch.randn(6, 10, requires_grad=True)
    with torch.no_grad():
        expected = distillation_loss(logits, [teacher(images) for teacher in method.teachers], 3.0)
    torch.testing.assert_close(method.extra_loss(images, logits), expected)
    train(trainer, 1)
    for teacher, state in zip(method.teachers, before, strict=True):
        assert not teacher.training
        assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
    row = trainer.history[0]
    assert 0 < row["distillation_loss"] < 9 * 10
    plain = train(Trainer(make_config("baseline"), 0, digits, CPU), 1)
    assert plain.history[0]["train_loss"] != row["train_loss"]
    assert "distillation_loss" not in plain.history[0]


def test_the_students_gradient_is_of_the_sum(digits, teachers, monkeypatch):
    """With the cross-entropy replaced by zero, a student still learns what its teacher says."""
    from weight_evolution.training import trainer as module

    cross_entropy = module.functional.cross_entropy
    monkeypatch.setattr(
        module.functional, "cross_entropy", lambda logits, targets: 0.0 * cross_entropy(logits, targets)
    )
    losses = [row["distillation_loss"] for row in train(Trainer(config_of(teachers), 0, digits, CPU)).history]
    assert losses[-1] < losses[0]


def test_resume_is_bit_equal(digits, teachers, tmp_path):
    whole = train(Trainer(config_of(teachers), 1, digits, CPU))
    save_checkpoint(train(Trainer(config_of(teachers), 1, digits, CPU), 2).state_dict(), tmp_path / "c.pt")
    second = Trainer(config_of(teachers), 1, digits, CPU)
    second.load_state_dict(read_checkpoint(tmp_path / "c.pt"))
    train(second)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    assert [row["distillation_loss"] for row in second.history] == [row["distillation_loss"] for row in whole.history]


def test_other_teachers_at_the_same_path_are_refused(digits, teachers, tmp_path):
    state = read_checkpoint(teachers[0])
    path = str(tmp_path / "t.pt")
    save_checkpoint(state, tmp_path / "t.pt")
    first = train(Trainer(config_of([path]), 1, digits, CPU), 1).state_dict()
    state["model"]["fc.bias"] += 1
    save_checkpoint(state, tmp_path / "t.pt")
    with pytest.raises(UserError, match="not those that the run began with"):
        Trainer(config_of([path]), 1, digits, CPU).load_state_dict(first)


def test_teachers_that_do_not_fit(digits, teachers, tmp_path):
    with pytest.raises(UserError, match="was trained on digits, this run is on cifar10"):
        Trainer(config_of(teachers, data="cifar10"), 0, digits, CPU)
    state = read_checkpoint(teachers[0])
    del state["model"]["fc.bias"]
    save_checkpoint(state, tmp_path / "t.pt")
    with pytest.raises(UserError, match="does not fit its own model"):
        Trainer(config_of([str(tmp_path / "t.pt")]), 0, digits, CPU)
    with pytest.raises(UserError, match="cannot read"):
        Trainer(config_of([str(tmp_path / "none.pt")]), 0, digits, CPU)


def test_one_switch(teachers, tmp_path, digits, monkeypatch, capsys):
    monkeypatch.setattr(cli, "load_data", lambda *_: digits)
    small = [
        "train",
        "--model",
        "resnet8",
        "--batch-size",
        "32",
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--quiet",
        "--output",
    ]
    for method, expected in (("baseline", "distillation"), ("grafting", "grafting+distillation")):
        folder = tmp_path / method
        assert cli.main([*small, str(folder), "--method", method, "--teachers", *teachers]) == 0
        seed = folder / "seed-0"
        path = seed / "checkpoint.pt" if method == "baseline" else seed / "network-1" / "checkpoint.pt"
        state = read_checkpoint(path)
        assert state["config"]["method"] == expected
        assert state["config"]["method_options"]["distillation"]["teachers"] == teachers
        assert state["config"]["method_options"]["distillation"]["temperature"] == 2.0
        assert state["history"][0]["distillation_loss"] > 0
    capsys.readouterr()
    assert cli.main([*small, str(tmp_path / "x"), "--method", "distillation"]) == 2
    assert "distillation needs --teachers" in capsys.readouterr().err
