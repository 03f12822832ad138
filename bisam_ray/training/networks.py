"""The networks of libraries: any by its own name, and those of the papers, with the stem that suits the images.

Only the library in question is imported, pytorchcv by the file of the network: all of it takes seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..config import ConfigError
from . import language

SMALL = 64  # px: up to here a network gets the stem that suits CIFAR


class ToRGB(nn.Module):
    """Repeats a grey image on three channels, for networks made for colour."""

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)


def colour(name: str, input_shape: tuple[int, ...], network: Callable[[], nn.Module]) -> nn.Module:
    """A network for colour images, behind ToRGB where they are grey."""
    if len(input_shape) != 3 or input_shape[0] not in (1, 3):
        raise ConfigError(f"model.name={name}: needs grey or colour images, not shape {input_shape}")
    return network() if input_shape[0] == 3 else nn.Sequential(ToRGB(), network())


def small(input_shape: tuple[int, ...]) -> bool:
    return max(input_shape[1:]) <= SMALL


def torchvision(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torchvision.models import get_model

    return colour(f"torchvision/{name}", input_shape, partial(get_model, name, weights=None, num_classes=classes))


def pytorchcv(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from pytorchcv.model_provider import get_model

    try:
        return get_model(name, in_channels=input_shape[0], in_size=tuple(input_shape[1:]), num_classes=classes)
    except ValueError as error:
        raise ConfigError(f"model.name=pytorchcv/{name}: {error}") from None


def timm(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from timm import create_model
    from timm.models import get_pretrained_cfg

    options: dict[str, Any] = {}
    if getattr(get_pretrained_cfg(name), "fixed_input_size", False):  # a transformer is made for one size of image
        options["img_size"] = tuple(input_shape[1:])
    try:
        return colour(f"timm/{name}", input_shape, partial(create_model, name, num_classes=classes, **options))
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        size = "×".join(map(str, input_shape[1:]))
        why = str(error).partition("\n")[0]
        raise ConfigError(f"model.name=timm/{name}: not to be had for images of {size} px ({why})") from None


def resnet_cifar(blocks: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from pytorchcv.models.resnet_cifar import get_resnet_cifar

    return any_size(get_resnet_cifar(num_classes=10, blocks=blocks, bottleneck=False), classes)


def wrn(width: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from pytorchcv.models.wrn_cifar import get_wrn_cifar

    return any_size(get_wrn_cifar(num_classes=10, blocks=28, width_factor=width), classes)


def pyramidnet(alpha: int, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from pytorchcv.models.pyramidnet_cifar import get_pyramidnet_cifar

    return any_size(get_pyramidnet_cifar(num_classes=10, blocks=110, alpha=alpha, bottleneck=False), classes)


def any_size(network: Any, classes: int) -> nn.Module:
    """pytorchcv's networks are for 32×32 and 10 or 100 classes: here the last pooling takes what there is."""
    network.features.final_pool = nn.AdaptiveAvgPool2d(1)
    network.output = nn.Linear(network.output.in_features, classes)
    return network


def resnet(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torchvision.models import get_model

    network = get_model(name, weights=None, num_classes=classes)
    if small(input_shape):
        network.conv1, network.maxpool = small_stem(), nn.Identity()
    return network


def densenet(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torchvision.models import densenet121

    network = densenet121(weights=None, num_classes=classes)
    if small(input_shape):
        network.features.conv0 = small_stem()
        network.features.norm0 = network.features.relu0 = network.features.pool0 = nn.Identity()
    return network


def small_stem() -> nn.Conv2d:
    conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def vgg(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    from torchvision.models.vgg import cfgs, make_layers, vgg19_bn

    if min(input_shape[1:]) < 32:  # halved five times
        raise ConfigError(
            f"model.name=vgg19bn: needs images of at least 32×32 px, not {input_shape[1]}×{input_shape[2]}"
        )
    if not small(input_shape):
        return vgg19_bn(weights=None, num_classes=classes)
    features, head = make_layers(cfgs["E"], batch_norm=True), nn.Linear(512, classes)
    for layer in features:
        if isinstance(layer, nn.Conv2d):  # as torchvision does, inside a class that has three linear layers
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.get_parameter("bias"))
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(OrderedDict(features=features, pool=pool, flatten=nn.Flatten(), classifier=head))


def vit(name: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """timm's attention is fused: for a second derivative (lets.curvature=exact) run the forward pass under
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`, the only kernel that has one."""
    from timm import create_model

    height, width = input_shape[1:]
    patch = 4 if small(input_shape) else 16
    if height % patch or width % patch or not height * width:
        near = " or ".join(str(side // patch * patch or patch) for side in sorted({height, width}))
        raise ConfigError(
            f"model.name={name}: sides of {height}×{width} px are no multiples of {patch} (nearest: {near})"
        )
    return create_model(VIT[name], img_size=(height, width), patch_size=patch, num_classes=classes)


class Network(NamedTuple):
    """Where a network comes from, how it is built for images (·, H, W), and what timm calls its published weights.

    Those of transformers are built for texts (R, T), and are told their tokens.
    """

    library: str
    build: Callable[..., nn.Module]
    published: str = ""


LIBRARIES: dict[str, Callable[..., nn.Module]] = {
    "torchvision": torchvision,
    "pytorchcv": pytorchcv,
    "timm": timm,
    "transformers": language.published,
}
VIT = {"vit-small": "vit_small_patch16_224", "vit-base": "vit_base_patch16_224"}
NETWORKS = {
    "resnet20": Network("pytorchcv", partial(resnet_cifar, 20)),
    "resnet32": Network("pytorchcv", partial(resnet_cifar, 32)),
    "resnet56": Network("pytorchcv", partial(resnet_cifar, 56)),
    "resnet110": Network("pytorchcv", partial(resnet_cifar, 110)),
    "resnet18": Network("torchvision", partial(resnet, "resnet18"), "resnet18"),
    "resnet50": Network("torchvision", partial(resnet, "resnet50"), "resnet50"),
    "vgg19bn": Network("torchvision", vgg),
    "densenet121": Network("torchvision", densenet, "densenet121"),
    "wrn28-2": Network("pytorchcv", partial(wrn, 2)),
    "wrn28-10": Network("pytorchcv", partial(wrn, 10)),
    "pyramidnet110": Network("pytorchcv", partial(pyramidnet, 270)),
    **{name: Network("timm", partial(vit, name), published) for name, published in VIT.items()},
    "bert-tiny": Network("transformers", partial(language.bert, "bert-tiny", 2, 128, 2)),
    "transformer-iwslt": Network(
        "transformers", partial(language.transformer, "transformer-iwslt", 6, 512, 1024, 4, 0.3)
    ),
    "transformer-tiny": Network("transformers", partial(language.transformer, "transformer-tiny", 2, 64, 128, 2, 0.1)),
}
