"""In the style of torchvision's references/classification/train.py: what weight evolution adds to it is marked (+).

python examples/torchvision_reference.py --model resnet18 --epochs 4 --output-dir /tmp/run
"""

import argparse
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, ToDtype, ToImage

from weight_evolution import StagedSigmoid, WeightEvolution


def train_one_epoch(model, criterion, optimizer, data_loader):
    model.train()
    for image, target in data_loader:
        loss = criterion(model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def evaluate(model, data_loader):
    model.eval()
    with torch.inference_mode():
        right = [(model(image).argmax(1) == target).float().mean() for image, target in data_loader]
    return float(torch.stack(right).mean())


def load_data(size, count):
    transform = Compose([ToImage(), ToDtype(torch.float32, scale=True), Normalize((0.5,) * 3, (0.25,) * 3)])
    data = torchvision.datasets.FakeData(count, (3, size, size), num_classes=10, transform=transform)
    return DataLoader(data, batch_size=8, shuffle=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--resume", default="")
    parser.add_argument("--output-dir", type=Path, default=Path("torchvision-run"))
    args = parser.parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    data_loader, data_loader_test = load_data(32, 16), load_data(32, 16)
    model = torchvision.models.get_model(args.model, weights=None, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    schedule = StagedSigmoid.imagenet(args.epochs)  # (+)
    rates = {"conv_rate": 0.02, "norm_scale_rate": 0.02, "norm_shift_rate": 0.02}  # (+) as published for ImageNet
    evolution = WeightEvolution(model, optimizer=optimizer, epochs=args.epochs, schedule=schedule, **rates)  # (+)

    start_epoch = 0
    if args.resume:
        checkpoint = torch.load(args.resume)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        lr_scheduler.load_state_dict(checkpoint["lr_scheduler"])
        evolution.load_state_dict(checkpoint["evolution"])  # (+)
        start_epoch = checkpoint["epoch"] + 1

    for epoch in range(start_epoch, args.epochs):
        if epoch > 0:  # (+) not before there is something to evolve
            evolution.step(epoch=epoch - 1)  # (+) of the epoch before, whose checkpoint is what was evaluated
        train_one_epoch(model, nn.CrossEntropyLoss(label_smoothing=0.1), optimizer, data_loader)
        lr_scheduler.step()
        print(f"Epoch: [{epoch}] Acc@1 {evaluate(model, data_loader_test):.3f}")
        checkpoint = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": lr_scheduler.state_dict(),
            "evolution": evolution.state_dict(),  # (+)
            "epoch": epoch,
        }
        torch.save(checkpoint, args.output_dir / "checkpoint.pth")
    return evolution


if __name__ == "__main__":
    main()
