"""A loop of one's own with accelerate: weight evolution between epochs, asynchronous updates of accumulated steps.

python examples/accelerate_loop.py --epochs 4 --folder /tmp/run
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from weight_evolution import AsynchronousUpdate, StagedSigmoid, WeightEvolution


def main(arguments: list[str] | None = None) -> WeightEvolution:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("accelerate-run"))
    options = parser.parse_args(arguments)

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    data = TensorDataset(torch.randn(16, 3, 32, 32), torch.randint(10, (16,)))
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=4))

    epochs = options.epochs
    evolution = WeightEvolution(model, optimizer=optimizer, epochs=epochs, schedule=StagedSigmoid.cifar(epochs))
    update = AsynchronousUpdate(optimizer, model)  # takes accelerate's optimizer
    accelerator.register_for_checkpointing(evolution, update)
    first = 0
    if options.folder.exists():
        accelerator.load_state(str(options.folder))
        first = evolution.epoch
    for epoch in range(first, epochs):
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss:.3f}")  # validate here
        evolution.step()
        accelerator.save_state(str(options.folder))  # after the step: it goes on from there
    return evolution


if __name__ == "__main__":
    main()
