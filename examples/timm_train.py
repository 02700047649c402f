"""In the style of timm's train.py, with EMA and its CheckpointSaver: what weight evolution adds to it is marked (+).

python examples/timm_train.py --model resnet10t --epochs 4 --output /tmp/run
"""

import argparse
from pathlib import Path

import timm
import torch
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, CheckpointSaver, ModelEmaV3, accuracy
from torchvision.datasets import FakeData

from weight_evolution import StagedSigmoid, WeightEvolution


def train_one_epoch(model, loader, optimizer, loss_fn, model_ema, updates):
    model.train()
    for images, target in loader:
        loss = loss_fn(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        updates += 1
        model_ema.update(model, step=updates)
    return updates


@torch.inference_mode()
def validate(model, loader):
    model.eval()
    top1 = AverageMeter()
    for images, target in loader:
        top1.update(accuracy(model(images), target)[0].item(), len(target))
    return top1.avg


class EvolutionState:  # (+)
    """What timm's CheckpointSaver saves beside the network, under the place of its loss scaler."""

    state_dict_key = "weight_evolution"

    def __init__(self, evolution):
        self.state_dict = evolution.state_dict


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--resume", default="")
    parser.add_argument("--output", type=Path, default=Path("timm-run"))
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)

    model = timm.create_model(args.model, num_classes=10)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, momentum=0.9)
    scheduler, num_epochs = create_scheduler_v2(optimizer, num_epochs=args.epochs, warmup_epochs=1)
    options = {"batch_size": 8, "input_size": (3, 32, 32), "use_prefetcher": False, "num_workers": 0}
    loader_train = create_loader(FakeData(16, (3, 32, 32), 10), is_training=True, **options)
    loader_eval = create_loader(FakeData(16, (3, 32, 32), 10), **options)

    schedule = StagedSigmoid.imagenet(num_epochs)  # (+)
    rates = {"conv_rate": 0.02, "norm_scale_rate": 0.02, "norm_shift_rate": 0.02}  # (+) as published for ImageNet
    evolution = WeightEvolution(model, optimizer=optimizer, epochs=num_epochs, schedule=schedule, **rates)  # (+)

    start_epoch = 0
    model_ema = ModelEmaV3(model, decay=0.99)  # averages what is trained, evolved weights among it
    if args.resume:
        checkpoint = torch.load(args.resume, weights_only=False)
        model.load_state_dict(checkpoint["state_dict"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        model_ema.module.load_state_dict(checkpoint["state_dict_ema"])
        evolution.load_state_dict(checkpoint["weight_evolution"])  # (+)
        start_epoch = checkpoint["epoch"] + 1
        scheduler.step(start_epoch)

    saver = CheckpointSaver(
        model,
        optimizer,
        args=args,
        model_ema=model_ema,
        amp_scaler=EvolutionState(evolution),  # (+)
        checkpoint_dir=str(args.output),
        recovery_dir=str(args.output),
    )
    updates = start_epoch * len(loader_train)
    for epoch in range(start_epoch, num_epochs):
        if epoch > 0:  # (+) not before there is something to evolve
            evolution.step(epoch=epoch - 1)  # (+) of the epoch before, whose checkpoint is what was validated
        updates = train_one_epoch(model, loader_train, optimizer, LabelSmoothingCrossEntropy(), model_ema, updates)
        scheduler.step(epoch + 1)
        top1 = validate(model, loader_eval)
        print(f"epoch {epoch}: {top1:.1f}, of the average {validate(model_ema.module, loader_eval):.1f}")
        saver.save_checkpoint(epoch, metric=top1)
    return evolution


if __name__ == "__main__":
    main()
