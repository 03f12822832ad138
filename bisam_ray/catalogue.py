"""Recipes: the configurations that ship with the package, a YAML file for each network and data set of a paper.

`recipes/PAPER/NAME.yaml` goes by the name PAPER/NAME wherever a configuration file is expected. Of its comments the
first line says what it is and the second where it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import Config, ConfigError, Data, load, resolve, suggest

FOLDER = Path(__file__).resolve().parent / "recipes"
SOURCE = "Source: "
TINY: dict[str, Any] = {
    "data.readers": 0,
    "data.download": False,
    "model.weights": None,
    "optim.perturbation_scope": "local",
    "train.epochs": 1,
    "train.save_steps": 0,
    "scale.workers": 1,
    "scale.min_workers": None,
    "scale.gpus_per_worker": 0,
    "scale.precision": "float32",
    "scale.accumulate": 1,
    "scale.compile": False,
}


def names() -> list[str]:
    """Of all recipes, sorted."""
    return sorted(path.relative_to(FOLDER).as_posix().removesuffix(".yaml") for path in FOLDER.glob("*/*.yaml"))


def find(name: str | Path) -> Path:
    """The file that a person means: one that exists, or else the recipe of that name.

    Raises:
        ConfigError: neither; with the nearest recipe.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    known = names()
    if str(name) in known:
        return FOLDER / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml"):
        return path  # reading it tells what is wrong, and which file is near
    near = suggest(str(name), known) or " (bisam-ray recipes lists them)"
    raise ConfigError(f"{name}: no such file or recipe{near}")


def listed() -> list[tuple[str, str]]:
    """(name, what it is, in one line) of every recipe."""
    return [(name, comments(name)[0]) for name in names()]


def table() -> list[dict[str, str]]:
    """What every recipe trains, and where it comes from: name, data, model, method, epochs, source."""
    return [row(name, resolve(load(find(name)))) for name in names()]


def row(name: str, config: Config) -> dict[str, str]:
    return {
        "recipe": name,
        "data": told(config.data),
        "model": config.model.name,
        "method": config.method,
        "epochs": str(config.train.epochs),
        "source": next(line.removeprefix(SOURCE) for line in comments(name) if line.startswith(SOURCE)),
    }


def told(data: Data) -> str:
    noise = f", {100 * data.label_noise:g} % {data.noise_kind} noise" if data.label_noise else ""
    return f"{data.name}{noise}{', a part' if data.limit else ''}"


def comments(name: str) -> list[str]:
    """The comment lines on top of a recipe."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def smoke(layer: Mapping[str, Any]) -> dict[str, Any]:
    """What to lay over a configuration (one layer, of api.layers) to make two steps of it, anywhere.

    The data are generated in the shape of the named set; digits, unicode and data sets of your own are used as they
    are. A network of transformers, whose weights would be downloaded, gives way to the tiny one.
    """
    config = resolve(layer)
    name, model = config.data.name, config.model.name
    made = name in ("digits", "unicode") or ":" in name or name.startswith("generated/")
    # both give two steps, of digits as of others; batch norm needs two examples in hyper, if that is used
    batch_size, limit = (7, 18) if config.optim.radius == "learned" else (4, 10)
    return {
        "data.name": name if made else f"generated/{name}",
        "data.batch_size": batch_size,
        "data.limit": limit,
        "model.name": "bert-tiny" if model.startswith("transformers/") else model,
        **TINY,
    }
