"""Lightning's Trainer with weight evolution; any LightningModule and DataModule go here.

python examples/lightning_callbacks.py --epochs 4 --folder /tmp/run
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from weight_evolution.integrations.lightning import EvolutionCallback


class Classifier(LightningModule):
    """Stands for your module."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        images, labels = batch
        self.log("loss", nn.functional.cross_entropy(self.network(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def images(count: int) -> DataLoader:
    """Stands for your data."""
    return DataLoader(TensorDataset(torch.randn(count, 3, 32, 32), torch.randint(10, (count,))), batch_size=16)


def main(arguments: list[str] | None = None) -> EvolutionCallback:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--folder", default="lightning-run")
    parser.add_argument("--resume", help="a checkpoint")
    options = parser.parse_args(arguments)

    evolution = EvolutionCallback(module="network")
    best = ModelCheckpoint(options.folder, "best", monitor="loss", enable_version_counter=False)
    last = ModelCheckpoint(options.folder, "last", enable_version_counter=False)
    trainer = Trainer(
        max_epochs=options.epochs,
        accelerator="cpu",
        default_root_dir=options.folder,
        callbacks=[evolution, best, last],  # both checkpoints hold a network that was validated
    )
    trainer.fit(Classifier(), images(64), images(32), ckpt_path=options.resume)
    return evolution


if __name__ == "__main__":
    main()
