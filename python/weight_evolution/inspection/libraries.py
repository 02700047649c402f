"""Networks of timm and torchvision by name."""

from __future__ import annotations

from torch import nn

from ..tables import first_line
from ..training.errors import UserError, needed

_NAMES = {"timm": ("in_chans", "num_classes"), "torchvision": (None, "num_classes")}
"""How they call the channels of the images and the number of classes."""
_EXTRAS = {"timm": ("timm", "timm"), "torchvision": ("torchvision.models", "vision")}
"""The module, and the extra that brings it."""
LIBRARIES = tuple(_EXTRAS)
"""What stands before the colon."""


def library_model(library: str, name: str, options: dict[str, int], pretrained: bool) -> nn.Module:
    """``timm`` or ``torchvision``; ``options``: ``in_channels`` and ``num_classes``.

    Raises:
        UserError: the library is not installed, has no such network, or its weights cannot be fetched.
    """
    channels, classes = _NAMES[library]
    if channels is None and "in_channels" in options:
        raise UserError(f"--in-channels: networks of {library} have three; use timm:NAME or module:factory")
    named = {channels: options.get("in_channels"), classes: options.get("num_classes")}
    given = {key: value for key, value in named.items() if key is not None and value is not None}
    module, extra = _EXTRAS[library]
    models = needed(module, f"{library}:{name}", extra)
    model: nn.Module
    try:
        if library == "timm":
            model = models.create_model(name, pretrained=pretrained, **given)
        else:
            model = models.get_model(name, weights="DEFAULT" if pretrained else None, **given)
    except Exception as error:  # of the network, of their hubs, of an unknown name
        advice = "; without a network pass --random, or a file of weights with --model" if pretrained else ""
        raise UserError(f"{library}:{name}: {first_line(error)}{advice}") from None
    return model.eval()
