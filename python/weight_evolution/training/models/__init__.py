"""The networks by name, and those of users."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable

import torch
from torch import nn

from weight_evolution.tables import first_line

from ..errors import UserError, needed, user_errors
from .mobilenet_v2 import CifarMobileNetV2
from .resnet import CifarResNet
from .vgg import CifarVGG16

MODEL_HELP = (
    "resnet20, resnet32, resnet56, resnet110 (or another 6n + 2, from resnet8), mobilenetv2, vgg16-bn, "
    "timm:NAME, or module:factory, called with in_channels and num_classes"
)


def make_model(name: str, in_channels: int, num_classes: int, *, said: str | None = None) -> nn.Module:
    """A network of this name, randomly initialized from torch's global generator.

    Args:
        name: as `MODEL_HELP` says.
        in_channels: of the images.
        num_classes: how many.
        said: where the name comes from, for error messages; ``--model NAME`` when left out.

    Raises:
        UserError: the name is unknown, or the module, factory or package behind it does not work.
    """
    said = said or f"--model {name}"
    if match := re.fullmatch(r"resnet(\d+)", name):
        with user_errors(f"{said}: "):
            return CifarResNet(int(match[1]), in_channels, num_classes)
    if name == "mobilenetv2":
        return CifarMobileNetV2(in_channels, num_classes)
    if name == "vgg16-bn":
        return CifarVGG16(in_channels, num_classes)
    if name.startswith("timm:"):
        return _make_timm(said, name.removeprefix("timm:"), in_channels, num_classes)
    if ":" in name:
        return _make_from_factory(said, name, in_channels, num_classes)
    raise UserError(f"--model must be {MODEL_HELP}; got {name!r}")


def check_output(model: nn.Module, name: str, image: torch.Size, num_classes: int) -> None:
    """Run one image [C, H, W] of zeros through the network, in eval mode.

    Raises:
        UserError: it does not take such an image or gives anything else than logits [1, num_classes].
    """
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UserError(f"--model {name} has no parameters")
    was_training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(torch.zeros(1, *image, device=parameter.device))
    except Exception as error:
        raise UserError(f"--model {name} does not take images of shape {tuple(image)}: {first_line(error)}") from error
    finally:
        model.train(was_training)
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != (1, num_classes):
        raise UserError(f"--model {name} must give logits of shape (1, {num_classes}) for one image, got {shape}")


def _make_timm(said: str, name: str, in_channels: int, num_classes: int) -> nn.Module:
    timm = needed("timm", said, "timm")
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=num_classes)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{said}: {first_line(error)}") from None
    return model


def _make_from_factory(said: str, name: str, in_channels: int, num_classes: int) -> nn.Module:
    module_name, _, factory_name = name.partition(":")
    if (here := os.getcwd()) not in sys.path:  # a console script does not search the working folder
        sys.path.insert(0, here)
    with user_errors(f"{said}: ", ImportError, AttributeError, ValueError):
        factory: Callable[..., object] = getattr(importlib.import_module(module_name), factory_name)
    if not callable(factory):
        raise UserError(f"{said}: {factory_name} is not callable")
    given = {"in_channels": in_channels, "num_classes": num_classes}
    try:
        parameters = inspect.signature(factory).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            given = {key: value for key, value in given.items() if key in parameters}
        model = factory(**given)
    except Exception as error:  # of the user's code
        call = f"called with {' and '.join(given) or 'nothing'}: {first_line(error)}"
        raise UserError(
            f"{said} does not work {call}; write a factory in a module of your own that takes in_channels and "
            "num_classes"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{said} must give a torch.nn.Module, got {type(model).__name__}")
    return model
