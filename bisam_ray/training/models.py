"""Networks by name, and their starting weights.

cnn                  two 3×3 convolutions (16, 32) and a hidden layer (64), batch norm everywhere
mlp                  two hidden layers (64, 64), batch norm
resnet20 32 56 110   the CIFAR networks of "Deep Residual Learning" (2016), projection shortcuts         (pytorchcv)
wrn28-2 wrn28-10     "Wide Residual Networks" (2016), without dropout                                    (pytorchcv)
pyramidnet110        "Deep Pyramidal Residual Networks" (2017), α = 270, the widest of its depth         (pytorchcv)
resnet18 resnet50    images up to 64 px: a 3×3 stem of stride 1 and no max-pool; above: ImageNet's       (torchvision)
densenet121          likewise; the small stem has no norm of its own                                     (torchvision)
vgg19bn              images up to 64 px: one linear layer after the convolutions; above: ImageNet's      (torchvision)
vit-small vit-base   patches of 4 px in images up to 64 px, of 16 px above                               (timm)
torchvision/NAME     any torchvision classifier, e.g. torchvision/resnet18
pytorchcv/NAME       any pytorchcv classifier, e.g. pytorchcv/resnet20_cifar10; α = 48 is pyramidnet110_a48_cifar10
timm/NAME            any timm classifier, e.g. timm/convnext_tiny or, with the tag of its weights, timm/resnet50.tv_in1k
bert-tiny, transformer-iwslt, transformer-tiny, transformers/NAME    for text: language.py        (transformers)
module:function      your own: function(input_shape, classes), of text (input_shape, classes, tokens), returns a
                     torch.nn.Module; of text, x (B, 2, T) are token ids and the sentence that each belongs to, 0 or 1

pytorchcv and timm come with `pip install '.[models]'`, transformers with '.[text]'. Grey images are repeated on three
channels.
"""

from __future__ import annotations

import importlib.util
import inspect
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..config import ConfigError, suggest
from . import language
from . import weights as starting
from .networks import LIBRARIES, NETWORKS, ToRGB, colour
from .plugins import load_function

if TYPE_CHECKING:
    from .text import Tokens


def build(
    name: str, input_shape: tuple[int, ...], classes: int, weights: str | None = None, tokens: Tokens | None = None
) -> nn.Module:
    """A network from inputs (N, *input_shape) to logits (N, classes).

    Args:
        name: one of NAMES, or `module:function`.
        input_shape: (C, H, W) of an image, (R, T) of a text, or the shape of any other example.
        classes: how many logits.
        weights: `hub` or a file, see training/weights.py; None: initialised from torch's global generator. A head of
            another size stays as initialised, which is told on stderr.
        tokens: the vocabulary of the texts, if these are the inputs.

    Raises:
        ConfigError: unknown, not installed, not for such inputs, or weights of another network.
    """
    check(name, weights)
    library, _, rest = name.partition("/")
    for_text = library_of(name) == "transformers" and (name in NETWORKS or bool(rest))
    if tokens is not None and not for_text and ":" not in name:
        raise ConfigError(f"model.name={name}: takes images, not text (nearest: bert-tiny)")
    if for_text:
        make = NETWORKS[name].build if name in NETWORKS else partial(LIBRARIES[library], rest)
        model = make(input_shape, classes, tokens)
    elif name in BUILT_IN:
        model = BUILT_IN[name](input_shape, classes)
    elif name in NETWORKS:
        model = colour(name, input_shape, partial(NETWORKS[name].build, input_shape, classes))
    elif library in LIBRARIES and rest:
        model = LIBRARIES[library](rest, input_shape, classes)
    else:
        make, given = load_function("model.name", name), (input_shape, classes, *([tokens] if tokens else []))
        try:
            inspect.signature(make).bind(*given)
        except TypeError as error:
            wanted = "(input_shape, classes, tokens), of text" if tokens else "(input_shape, classes)"
            raise ConfigError(f"model.name={name}: is called with {wanted}: {error}") from None
        model = make(*given)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model.name={name}: must return a torch.nn.Module, not {type(model).__name__}")
    if weights is not None:
        source = starting.download(published(name)) if weights == "hub" else starting.read(weights)
        inner = model[1] if isinstance(model, nn.Sequential) and isinstance(model[0], ToRGB) else model
        starting.put(inner, source, classes, f"model.weights={weights}", name)
    return model


def check(name: str, weights: str | None = None) -> None:
    """What can be known without building the network: its name, its library, and that its weights are there.

    Names of pytorchcv are left to `build`: the list of them takes seconds to import.

    Raises:
        ConfigError: unknown name, library not installed, no such file, nothing published, or the hub out of reach.
    """
    library, rest = library_of(name), name.partition("/")[2]
    if library in ("pytorchcv", "timm", "transformers"):
        need(library, name)
    if library == "transformers" and rest:
        language.check(rest)
    if library == "torchvision" and rest:
        from torchvision.models import list_models

        if rest not in list_models():
            raise ConfigError(f"model.name={name}: unknown{suggest(rest, list_models())}")
    if library == "timm" and rest:
        from timm.models import is_model, is_model_pretrained, list_models, list_pretrained

        if not (is_model_pretrained(rest) if "." in rest else is_model(rest)):
            known = list_pretrained() if "." in rest else list_models()
            raise ConfigError(f"model.name={name}: unknown{suggest(rest, known)}")
    if weights == "hub":
        if not published(name):
            having = ", ".join([*(n for n, network in NETWORKS.items() if network.published), "timm/NAME"])
            raise ConfigError(f"model.weights=hub: nothing is published for model.name={name}; there is for {having}")
        need("timm", name)
        starting.reach(published(name))
    elif weights is not None:
        starting.check_file(weights)


def library_of(name: str) -> str:
    """The library that a network comes from, as far as its name tells."""
    return NETWORKS[name].library if name in NETWORKS else name.partition("/")[0]


def published(name: str) -> str:
    """timm's name of the network, whose published weights fit; empty if there is none."""
    if name in NETWORKS:
        return NETWORKS[name].published
    return name.removeprefix("timm/") if name.startswith("timm/") else ""


def need(library: str, name: str) -> None:
    if importlib.util.find_spec(library) is None:
        extra = "text" if library == "transformers" else "models"
        raise ConfigError(f"model.name={name}: needs {library}, which is not installed: pip install '.[{extra}]'")


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


BUILT_IN = {"cnn": cnn, "mlp": mlp}
NAMES: tuple[str, ...] = (*BUILT_IN, *NETWORKS, *(f"{library}/NAME" for library in LIBRARIES))
