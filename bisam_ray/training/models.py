"""Networks by name.

cnn                  two 3×3 convolutions (16, 32) and a hidden layer (64), batch norm everywhere
mlp                  two hidden layers (64, 64), batch norm
torchvision/NAME     any torchvision classifier, e.g. torchvision/resnet18
pytorchcv/NAME       any pytorchcv classifier, e.g. pytorchcv/resnet20_cifar10 (pip install pytorchcv)
module:function      your own: function(input_shape, classes) returns a torch.nn.Module
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ConfigError, suggest
from .plugins import load_function


def build(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """A network from inputs (N, *input_shape) to logits (N, classes); weights from torch's global generator."""
    if name in BUILT_IN:
        return BUILT_IN[name](input_shape, classes)
    library, _, rest = name.partition("/")
    if library in LIBRARIES and rest:
        return LIBRARIES[library](rest, input_shape, classes)
    model = load_function("model.name", name)(input_shape, classes)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model.name={name}: must return a torch.nn.Module, not {type(model).__name__}")
    return model


def cnn(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise ConfigError(f"model.name=cnn: needs images (C, H, W) of at least 4×4, not inputs of shape {input_shape}")
    channels, height, width = input_shape

    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(
        *stage(channels, 16),
        *stage(16, 32),
        nn.Flatten(),
        *hidden(32 * (height // 4) * (width // 4), 64),
        nn.Linear(64, classes),
    )


def mlp(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    size = int(torch.tensor(input_shape).prod())
    return nn.Sequential(nn.Flatten(), *hidden(size, 64), *hidden(64, 64), nn.Linear(64, classes))


def hidden(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


class ToRGB(nn.Module):
    """Repeats a grey image on three channels, for networks made for colour."""

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)


def torchvision(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise ConfigError(f"model.name=torchvision/{name}: unknown{suggest(name, list_models())}")
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise ConfigError(f"model.name=torchvision/{name}: needs grey or colour images, not shape {input_shape}")
    model = get_model(name, weights=None, num_classes=classes)
    return model if input_shape[0] == 3 else nn.Sequential(ToRGB(), model)


def pytorchcv(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    try:
        from pytorchcv.model_provider import get_model
    except ModuleNotFoundError:
        raise ConfigError(f"model.name=pytorchcv/{name}: needs 'pip install pytorchcv'") from None
    try:
        return get_model(name, in_channels=input_shape[0], in_size=tuple(input_shape[1:]), num_classes=classes)
    except ValueError as error:
        raise ConfigError(f"model.name=pytorchcv/{name}: {error}") from None


BUILT_IN = {"cnn": cnn, "mlp": mlp}
LIBRARIES = {"torchvision": torchvision, "pytorchcv": pytorchcv}
