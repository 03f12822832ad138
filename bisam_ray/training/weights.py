"""Weights to start from: what timm publishes (`hub`), or a state dict in a file.

Files are .pth or .pt (read with weights_only=True) or .safetensors. A state dict may lie under "state_dict", "model" or
"state", as in checkpoints, a bisam-ray checkpoint among them, and its keys may begin with what DistributedDataParallel
and torch.compile put there.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import ConfigError, suggest

KINDS = (".pth", ".pt", ".safetensors")
NESTED = ("state_dict", "model", "state")
PREFIXES = ("module.", "_orig_mod.", "1.")  # the last one is what follows ToRGB in training/models.py


def check_file(named: str) -> None:
    """Raises: ConfigError when there is no such file, or it cannot be one of weights."""
    path = Path(named).expanduser()
    if path.suffix not in KINDS:
        raise ConfigError(
            f"model.weights={named}: hub, or a file that ends in {', '.join(KINDS)}{suggest(named, ['hub'])}"
        )
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*") if p.suffix in KINDS] if path.parent.is_dir() else []
        raise ConfigError(f"model.weights={named}: no such file{suggest(path.name, beside)}")
    if path.suffix == ".safetensors" and importlib.util.find_spec("safetensors") is None:
        raise ConfigError(f"model.weights={named}: needs safetensors, which is not installed: pip install '.[models]'")


def read(named: str) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU.

    Raises:
        ConfigError: not readable, or no state dict in it.
    """
    path = Path(named).expanduser()
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # both readers fail in a dozen ways on what is cut off or not their own
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise ConfigError(f"model.weights={named}: not readable as weights ({why or type(error).__name__})") from None
    while isinstance(content, Mapping) and (inner := next((k for k in NESTED if is_mapping(content.get(k))), None)):
        content = content[inner]
    if not isinstance(content, Mapping) or not content or not all(map(is_entry, content.items())):
        found = (
            f"a mapping with {', '.join(map(str, list(content)[:4]))}"
            if is_mapping(content)
            else type(content).__name__
        )
        raise ConfigError(f"model.weights={named}: no state dict in it, but {found}")
    return dict(content)


def is_entry(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def reach(published: str) -> None:
    """Raises: ConfigError when timm publishes no weights of that name, or they are neither here nor within reach."""
    from huggingface_hub import constants, try_to_load_from_cache

    name = repository(published)
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(name, f, cache_dir=constants.HF_HUB_CACHE), str) for f in files):
        return
    if constants.HF_HUB_OFFLINE or not answers(constants.ENDPOINT):
        why = "is switched off by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "cannot be reached"
        url = f"{constants.ENDPOINT}/{name}/resolve/main/{files[0]}"
        raise ConfigError(f"model.weights=hub: the hub {why}; bring {url} here and take model.weights=FILE.safetensors")


def repository(published: str) -> str:
    from timm.models import get_pretrained_cfg, list_pretrained

    found = getattr(get_pretrained_cfg(published), "hf_hub_id", None)
    if not found:
        near = suggest(f"timm/{published}", [f"timm/{name}" for name in list_pretrained()])
        raise ConfigError(f"model.weights=hub: timm publishes none for model.name=timm/{published}{near}")
    return str(found)


def answers(url: str) -> bool:
    """Whether a server answers within ten seconds; the hub's own client goes on asking for a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def download(published: str) -> dict[str, Tensor]:
    """The state dict that timm publishes, from the hub's cache if it is there.

    Raises:
        ConfigError: not to be had.
    """
    from timm.models import load_state_dict_from_hf

    log = logging.getLogger("huggingface_hub")
    level, name = log.level, repository(published)
    log.setLevel(logging.ERROR)  # it tells every new attempt
    try:
        return load_state_dict_from_hf(name, weights_only=True)
    except Exception as error:  # whatever the network, the hub or its permissions have to say
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"model.weights=hub: {name} not downloaded ({why}); bring the file here and take model.weights=FILE"
        ) from None
    finally:
        log.setLevel(level)


def put(network: nn.Module, state: dict[str, Tensor], classes: int, field: str, name: str) -> None:
    """Load a state dict into a network, all of it but a head of another size.

    Args:
        network: its logits are `classes`.
        state: of the same network, maybe made for other classes or, of timm's, for another size of image.
        field, name: for messages: where the weights come from, what the network is called.

    Raises:
        ConfigError: another mismatch; names the first key.
    """
    own = network.state_dict()
    for prefix in PREFIXES * 2:  # compiled and parallel, in either order
        if all(key.startswith(prefix) for key in state) and not all(key.startswith(prefix) for key in own):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    module = type(network).__module__
    resample = getattr(sys.modules[module], "checkpoint_filter_fn", None) if module.startswith("timm.") else None
    if resample is not None:  # position embeddings of another size of image, patches, names of old files
        try:
            state = resample(state, network)
        except Exception as error:
            raise ConfigError(f"{field}: not for model.name={name} ({str(error).partition(chr(10))[0]})") from None
    head = head_of(network, classes)
    left = []
    for key, value in own.items():
        there = state.get(key)
        if there is not None and there.shape == value.shape:
            continue
        if key.rpartition(".")[0] == head and (there is None or (there.dim() and there.shape[1:] == value.shape[1:])):
            left.append(key)
        elif there is None:
            if not key.endswith("num_batches_tracked"):  # not yet there in old files
                raise ConfigError(f"{field}: without {key}, which model.name={name} has{suggest(key, state)}")
        else:
            raise ConfigError(f"{field}: {key} is {tuple(there.shape)}, of model.name={name} {tuple(value.shape)}")
    foreign = next((key for key in state if key not in own), None)
    if foreign is not None:
        raise ConfigError(f"{field}: has {foreign}, which model.name={name} has not{suggest(foreign, own)}")
    network.load_state_dict({key: value for key, value in state.items() if key not in left}, strict=False)
    if left:
        print(f"{field}: not taken from it, but initialised: {', '.join(left)}", file=sys.stderr, flush=True)


def head_of(network: nn.Module, classes: int) -> str | None:
    """The name of the last linear layer (or convolution) that has an output per class."""
    layers = ((name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
    return next((name for name, layer in reversed(list(layers)) if len(layer.weight) == classes), None)
