"""Hugging Face's Trainer with weight evolution; the network is a small ResNet from its configuration.

python examples/huggingface_trainer.py --epochs 4 --folder /tmp/run
"""

import argparse

import torch
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from weight_evolution.integrations.transformers import EvolutionCallback


class RandomImages(Dataset):
    """Stands for your data."""

    def __init__(self, count: int) -> None:
        self.images, self.labels = torch.randn(count, 3, 32, 32), torch.randint(10, (count,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[place], "labels": self.labels[place]}


def main(arguments: list[str] | None = None) -> EvolutionCallback:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--folder", default="huggingface-run")
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint in the folder")
    options = parser.parse_args(arguments)

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10)
    evolution = EvolutionCallback()
    trainer = Trainer(
        ResNetForImageClassification(config),
        TrainingArguments(
            output_dir=options.folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,  # which is one that was evaluated
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=RandomImages(64),
        eval_dataset=RandomImages(32),
        callbacks=[evolution],
    )
    evolution.log = trainer.log  # its numbers go where the Trainer's go
    trainer.train(resume_from_checkpoint=options.resume or None)
    return evolution


if __name__ == "__main__":
    main()
