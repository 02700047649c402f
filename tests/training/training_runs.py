"""A configuration and data that train in well under a second."""

from __future__ import annotations

from weight_evolution.training.config import TrainingConfig
from weight_evolution.training.data import Dataset, load_data
from weight_evolution.training.methods.evolution import scaled_schedule

EPOCHS = 4


def make_config(method: str = "evolution", *, evolution: dict[str, object] | None = None, **changes) -> TrainingConfig:
    options = {
        "crossover": "paper",
        "conv_rate": 0.3,
        "norm_scale_rate": 0.1,
        "norm_shift_rate": 0.1,
        "linear_rate": 0.0,
        "local_ratio": 0.9,  # so that every epoch replaces some
        "starvation_divisor": 2.0,
        "schedule": scaled_schedule("cifar", EPOCHS),
        "every": 1,
        "optimizer_state": "keep",
        "epochs": EPOCHS,
        **(evolution or {}),
    }
    values = {"model": "resnet8", "epochs": EPOCHS, "batch_size": 32, **changes}
    return TrainingConfig(
        method=method, method_options={} if method == "baseline" else {"evolution": options}, **values
    )


def small_digits() -> Dataset:
    """A tenth of the digits, to be quick."""
    whole = load_data("digits")
    return Dataset(
        "digits",
        whole.train_images[:90],
        whole.train_labels[:90],
        whole.test_images[:70],
        whole.test_labels[:70],
        10,
        whole.augmentation,
    )
