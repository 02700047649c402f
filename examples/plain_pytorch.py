"""A training loop in plain PyTorch, with weight evolution between its epochs; resumes exactly.

python examples/plain_pytorch.py --epochs 4 --checkpoint /tmp/checkpoint.pt
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from weight_evolution import StagedSigmoid, WeightEvolution


def random_images(count: int) -> TensorDataset:
    """Stands for your data."""
    return TensorDataset(torch.randn(count, 3, 32, 32), torch.randint(10, (count,)))


def network() -> nn.Module:
    """Stands for your network."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def main(arguments: list[str] | None = None) -> WeightEvolution:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    options = parser.parse_args(arguments)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    evolution = WeightEvolution(
        model, optimizer=optimizer, epochs=options.epochs, schedule=StagedSigmoid.cifar(options.epochs)
    )
    first = 0
    if options.checkpoint.exists():
        checkpoint = torch.load(options.checkpoint)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        evolution.load_state_dict(checkpoint["evolution"])
        first = checkpoint["epoch"] + 1

    training, validation = random_images(64), random_images(32)
    for epoch in range(first, options.epochs):
        if epoch > 0 and (report := evolution.step(epoch=epoch - 1)):  # of the epoch before, which has been saved
            print(f"evolved: {sum(report.inferior.values())} filters, shifts and scales")
        model.train()
        for images, labels in DataLoader(training, batch_size=16, shuffle=True):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in DataLoader(validation, 16))
        print(f"epoch {epoch}: {right / len(validation):.1%}")
        state = {"model": model, "optimizer": optimizer, "evolution": evolution}
        torch.save({"epoch": epoch} | {name: each.state_dict() for name, each in state.items()}, options.checkpoint)
    return evolution


if __name__ == "__main__":
    main()
