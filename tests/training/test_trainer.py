import math

import pytest
import torch
from torch import nn

from tests.training.training_runs import EPOCHS, make_config
from weight_evolution import WeightEvolution
from weight_evolution.training.checkpoint import read_checkpoint, save_checkpoint
from weight_evolution.training.config import TrainingConfig
from weight_evolution.training.errors import UserError
from weight_evolution.training.inferior import count_inferior_filters
from weight_evolution.training.methods import METHODS, Method
from weight_evolution.training.runs import OutputOptions, train_seeds
from weight_evolution.training.trainer import Trainer

CPU = torch.device("cpu")


def train(trainer: Trainer, until: int) -> Trainer:
    while trainer.epoch < until:
        trainer.run_epoch()
    return trainer


def without_times(history):
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in history]


def assert_same_state(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y)
    else:
        assert a == b


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "evolution"),
    [
        ("baseline", {}),
        ("evolution", {}),
        ("evolution", {"crossover": "released", "optimizer_state": "reset"}),
        ("evolution", {"local_ratio": 0.0, "starvation_divisor": 3.0}),  # lives from the starvation counter
    ],
)
def test_resume_is_bit_equal(digits, tmp_path, method, evolution):
    config = make_config(method, evolution=evolution)
    whole = train(Trainer(config, 1, digits, CPU), EPOCHS)

    first = train(Trainer(config, 1, digits, CPU), EPOCHS // 2)
    save_checkpoint(first.state_dict(), tmp_path / "c.pt")
    torch.rand(5)  # another process: the global generator is elsewhere
    second = Trainer(config, 1, digits, CPU)
    second.load_state_dict(read_checkpoint(tmp_path / "c.pt"))
    assert second.epoch == EPOCHS // 2
    train(second, EPOCHS)

    a, b = whole.state_dict(), second.state_dict()
    assert without_times(a.pop("history")) == without_times(b.pop("history"))
    assert_same_state(a, b)
    if method == "evolution":
        replaced = [row.get("evolution_replaced_conv") for row in whole.history]
        assert replaced[-1] is None  # what is left is what was measured
        assert sum(replaced[:-1]) > 0


class Dropping(nn.Module):
    """Draws from torch's global generator in training."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 8, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, num_classes)
        )

    def forward(self, x):
        return self.layers(x)


def test_resume_with_dropout_is_bit_equal(digits):
    config = make_config("baseline", model="tests.training.test_trainer:Dropping")
    whole = train(Trainer(config, 1, digits, CPU), 2)
    first = train(Trainer(config, 1, digits, CPU), 1)
    second = Trainer(config, 1, digits, CPU)
    second.load_state_dict(first.state_dict())
    torch.rand(5)
    train(second, 2)
    assert_same_state(whole.state_dict()["model"], second.state_dict()["model"])


def test_a_run_leaves_the_global_generator_alone(digits, monkeypatch):
    """Those of GPUs, too, which torch.manual_seed seeds."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the generators of GPUs were seeded"))
    before = torch.get_rng_state()
    train(Trainer(make_config("baseline"), 0, digits, CPU), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ_and_methods_start_alike(digits):
    weight = [Trainer(make_config(m), s, digits, CPU).model.conv1.weight for m, s in (("baseline", 0), ("baseline", 1))]
    assert not torch.equal(*weight)
    assert torch.equal(weight[0], Trainer(make_config("evolution"), 0, digits, CPU).model.conv1.weight)


def test_accuracy_is_measured_before_the_evolution(digits, monkeypatch):
    """Until the first evolution acts, both methods are one: their first rows agree, their second do not."""
    baseline = train(Trainer(make_config("baseline"), 0, digits, CPU), 2).history
    evolved = train(Trainer(make_config("evolution"), 0, digits, CPU), 2).history
    shared = [key for key in baseline[0] if not key.endswith("seconds")]
    assert {key: baseline[0][key] for key in shared} == {key: evolved[0][key] for key in shared}
    assert baseline[1]["train_loss"] != evolved[1]["train_loss"]


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2]), (2, [1]), (3, [2]), (9, [])])
def test_evolve_every(digits, monkeypatch, every, expected):
    epochs = []
    step = WeightEvolution.step

    def recorded(self, epoch):
        report = step(self, epoch)
        epochs.extend([] if report is None else [report.epoch])
        return report

    monkeypatch.setattr(WeightEvolution, "step", recorded)
    train(Trainer(make_config(evolution={"every": every}), 0, digits, CPU), EPOCHS)
    assert epochs == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet14"}, "model is 'resnet8' there and 'resnet14' here"),
        ({"epochs": 2}, "of a run of 4 epochs, not 2; pass --epochs 4, or more"),
        ({"data": "fashion-mnist"}, "data is 'digits' there and 'fashion-mnist' here"),
        ({"method": "baseline"}, "method is 'evolution' there and 'baseline' here"),
        ({"lr": 0.2}, "lr is 0.1 there and 0.2 here"),
        ({"evolution": {"conv_rate": 0.4}}, "conv_rate is 0.3 there and 0.4 here"),
    ],
)
def test_checkpoint_of_another_run(digits, change, message):
    state = train(Trainer(make_config(), 0, digits, CPU), 1).state_dict()
    other = Trainer(make_config(**change), 0, digits, CPU)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        other.load_state_dict(state)
    assert_same_state(other.model.state_dict(), before)
    assert other.epoch == 0


def test_checkpoint_of_another_seed_or_shape(digits):
    state = Trainer(make_config(), 0, digits, CPU).state_dict()
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        Trainer(make_config(), 1, digits, CPU).load_state_dict(state)
    state["model"] = {**state["model"], "conv1.weight": torch.zeros(16, 2, 3, 3)}
    with pytest.raises(UserError, match=r"conv1.weight has shape \(16, 2, 3, 3\) there"):
        Trainer(make_config(), 0, digits, CPU).load_state_dict(state)


def test_loss_that_is_not_finite(digits):
    trainer = Trainer(make_config("baseline"), 0, digits, CPU)
    with torch.no_grad():
        trainer.model.fc.bias[0] = math.nan
    with pytest.raises(UserError, match=r"training loss became nan in epoch 0 .*lower --lr"):
        trainer.run_epoch()
    assert trainer.history == []


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_checkpoint(tmp_path, content):
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt"):
        read_checkpoint(path)


def test_cut_off_checkpoint(digits, tmp_path):
    path = tmp_path / "c.pt"
    save_checkpoint(Trainer(make_config("baseline"), 0, digits, CPU).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(path)


def test_other_files_are_no_checkpoints(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="not a checkpoint of weight-evolution"):
        read_checkpoint(tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"cannot read .*missing\.pt"):
        read_checkpoint(tmp_path / "missing.pt")


def test_a_failing_write_keeps_the_old_checkpoint(digits, tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    trainer = Trainer(make_config("baseline"), 0, digits, CPU)
    save_checkpoint(trainer.state_dict(), path)
    before = path.read_bytes()

    def fail(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(trainer.state_dict(), path)
    assert path.read_bytes() == before


class Toy(Method):
    """A method of somebody else's, which the trainer has never heard of."""

    name = "toy"

    def after_epoch(self, epoch):
        return {"toy_column": float(epoch)}

    @classmethod
    def describe(cls, row):
        return [f"toy {row['toy_column']}"] if "toy_column" in row else []

    @classmethod
    def summarize(cls, history):
        return {"toys": sum(row.get("toy_column", 0) for row in history)}

    @classmethod
    def draw(cls, history, folder):
        (folder / "toy.txt").write_text(str(len(history)))


def test_a_method_needs_no_more_than_to_be_registered(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "toy", Toy)
    config = TrainingConfig(
        model="resnet8", method="toy", method_options={"toy": {}}, epochs=2, batch_size=32, nesterov=False
    )
    said = []
    results = train_seeds(config, [0], digits, CPU, OutputOptions(tmp_path), said.append)
    assert "toy 1.0" in said[-1]
    assert results["runs"][0]["toys"] == 1
    assert (tmp_path / "seed-0" / "toy.txt").read_text() == "2"


def test_counting_inferior_filters_changes_nothing():
    model = nn.Sequential(nn.Conv2d(2, 10, 3), nn.BatchNorm2d(10), nn.Conv2d(10, 7, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[3:6] = 0.01
        model[2].weight.fill_(2.0)
        model[2].weight[6] = 0.1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = count_inferior_filters(model)
    # 17 filters at rate 0.2: the threshold is the 4th smallest importance, so three are below: 0.09, 0.09, 0.09 < 0.1.
    assert (found.inferior, found.filters) == (3, 17)
    assert count_inferior_filters(model, rate=0.9).inferior == 4
    assert count_inferior_filters(model, rate=0.9, local_ratio=0.001).inferior == 0
    assert [len(importance) for importance in found.importances.values()] == [10, 7]
    assert_same_state(dict(model.state_dict()), before)


def test_learning_rates():
    published = [TrainingConfig().learning_rate(epoch) for epoch in (0, 59, 60, 119, 120, 179, 180, 199)]
    assert published == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    assert TrainingConfig(epochs=10, lr_milestones=[2, 5], lr_gamma=0.5).learning_rate(3) == pytest.approx(0.05)
    cosine = TrainingConfig(epochs=10, lr_schedule="cosine")
    assert cosine.learning_rate(0) == 0.1
    assert cosine.learning_rate(5) == pytest.approx(0.05)
    assert TrainingConfig(lr_schedule="constant").learning_rate(9) == 0.1
    warm = TrainingConfig(lr=0.4, lr_schedule="constant", warmup_epochs=3)
    assert [warm.learning_rate(epoch) for epoch in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_configuration_survives_a_round_trip():
    config = make_config()
    assert TrainingConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserError, match="lr_schedule must be one of"):
        make_config(lr_schedule="linear")
    with pytest.raises(UserError, match="optimizer must be one of sgd, adamw, unit-adamw, got 'adam'"):
        make_config(optimizer="adam")
    with pytest.raises(UserError, match="amp must be one of bf16, fp16, got 'int8'"):
        make_config(amp="int8")
