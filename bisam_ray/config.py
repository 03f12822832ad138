"""One run's configuration: typed, frozen, layered from presets, files and `key=value` overrides; no torch.

Precedence: defaults < the method's preset < files in order < a space's `fix` < a trial < `key=value`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """Bad input, told in one line that names the field, the value and what would do."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    name: str = "digits"
    """`digits`, or `module:function` returning (inputs, targets); see training/data.py."""
    batch_size: int = Field(64, ge=1)
    label_noise: float = Field(0.0, ge=0, le=1)
    """Share of the labels of train, hyper and val that is flipped to another class; test stays clean."""
    noise_kind: Literal["symmetric"] = "symmetric"
    noise_seed: int = Field(0, ge=0)
    split_seed: int = Field(0, ge=0)


class Model(Section):
    name: str = "cnn"
    """`cnn`, `mlp`, `torchvision/NAME`, `pytorchcv/NAME`, or `module:function`; see training/models.py."""


class Optim(Section):
    objective: Literal["none", "cross_entropy", "tanh", "log"]
    geometry: Literal["l2", "adaptive"] = "l2"
    radius: Literal["fixed", "learned"] = "fixed"
    rho: float | None = Field(None, ge=0)
    """The radius; the starting point ρ₀ when it is learned."""
    mu: float | None = Field(None, gt=0)
    alpha: float | None = Field(None, gt=0)
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of training over which the radius grows linearly from zero."""
    perturbation_scope: Literal["local", "global"] = "local"
    schedule: Literal["sequential"] = "sequential"
    base: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)


class Lets(Section):
    train_batch: Literal["next", "same"] = "next"
    curvature: Literal["secant", "diagonal"] = "secant"
    every: int = Field(1, ge=1)
    lr: float = Field(0.02, gt=0)
    rho_min: float = Field(1e-3, gt=0)
    rho_max: float = Field(1.0, gt=0)
    gap_ema: float = Field(0.0, ge=0, lt=1)


class Train(Section):
    epochs: int = Field(30, ge=1)


class Scale(Section):
    workers: int = Field(1, ge=1)
    gpus_per_worker: int = Field(0, ge=0)
    placement: Literal["pack", "spread"] = "pack"
    threads: int = Field(1, ge=1)


class Config(Section):
    method: str = "sam"
    seed: int = Field(0, ge=0)
    data: Data = Data()
    model: Model = Model()
    optim: Optim
    lets: Lets = Lets()
    train: Train = Train()
    scale: Scale = Scale()

    def digest(self) -> str:
        """Twelve hex digits that name the run: equal digests give bitwise equal runs."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


BISAM_TANH = {"objective": "tanh", "rho": 0.05, "mu": 10.0, "alpha": 0.1}
BISAM_LOG = {"objective": "log", "rho": 0.05, "mu": 1.0}
LEARNED = {"radius": "learned", "warmup": 0.25}  # without the warm-up a large early radius destroys the run
PRESETS: dict[str, dict[str, Any]] = {
    "sgd": {"objective": "none"},
    "sam": {"objective": "cross_entropy", "rho": 0.05},
    "asam": {"objective": "cross_entropy", "geometry": "adaptive", "rho": 0.5},
    "bisam-tanh": BISAM_TANH,
    "bisam-log": BISAM_LOG,
    "lets-sam": {"objective": "cross_entropy", "rho": 0.05, **LEARNED},
    "lets-asam": {"objective": "cross_entropy", "geometry": "adaptive", "rho": 0.5, **LEARNED},
    "lets-bisam-tanh": {**BISAM_TANH, **LEARNED},
    "lets-bisam-log": {**BISAM_LOG, **LEARNED},
}
DATASETS = ("digits",)  # training/data.py
MODELS = ("cnn", "mlp", "torchvision/NAME", "pytorchcv/NAME")  # training/models.py
BACKWARD = 2 / 3  # of a gradient's cost; optim/schedule.py counts by the same number
SHORTHANDS = {"data": "data.name", "model": "model.name"}


def resolve(*layers: Mapping[str, Any]) -> Config:
    """Merge layers (nested or dotted keys, later ones win) over the defaults and the method's preset.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or range, or settings that contradict each other.

    Example:
        >>> resolve({"method": "bisam-tanh"}, {"optim.rho": "1e-1"}).optim.rho
        0.1
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merge(merged, layer)
    method = merged.get("method", Config.model_fields["method"].default)
    if not isinstance(method, str) or method not in PRESETS:
        raise ConfigError(f"method={method}: unknown{suggest(str(method), PRESETS)}")
    complete: dict[str, Any] = {}
    merge(complete, {"method": method, "optim": PRESETS[method]})
    merge(complete, merged)
    try:
        config = Config.model_validate(complete)
    except ValidationError as error:
        raise ConfigError(told(error)) from None
    contradictions(config)
    return config


def merge(into: dict[str, Any], layer: Mapping[str, Any], prefix: str = "") -> None:
    """Write `layer` over `into`; keys may be dotted paths, and must be paths of the configuration."""
    for key, value in layer.items():
        path = f"{prefix}{key}"
        path = SHORTHANDS.get(path, path) if not isinstance(value, Mapping) else path
        kind = kind_of(path)
        if kind is None:
            raise ConfigError(f"{path}: unknown key{suggest(path, paths())}")
        if kind == "section":
            if not isinstance(value, Mapping):
                inner = [p for p in paths() if p.startswith(f"{path}.")]
                raise ConfigError(f"{path}={value}: a section, not a value; its keys: {', '.join(inner)}")
            merge(into, value, f"{path}.")
            continue
        section, _, name = path.rpartition(".")
        (into.setdefault(section, {}) if section else into)[name] = value


def paths() -> Iterator[str]:
    """Every config path, e.g. "optim.rho"."""
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from (f"{name}.{inner}" for inner in field.annotation.model_fields)
        else:
            yield name


def kind_of(path: str) -> Literal["section", "value"] | None:
    if path in set(paths()):
        return "value"
    field = Config.model_fields.get(path)
    return "section" if field is not None else None


def contradictions(config: Config) -> None:
    """Refuse, with the reason, what each field alone cannot show to be wrong."""
    optim, lets, method = config.optim, config.lets, config.method
    for section, name, known in (("data", config.data.name, DATASETS), ("model", config.model.name, MODELS)):
        family = name.partition("/")[0] + "/NAME" if "/" in name else name
        if ":" not in name and family not in known:
            raise ConfigError(f"{section}.name={name}: unknown{suggest(name, known)} (or your own, module:function)")
    if optim.objective == "none":
        for name in ("rho", "mu", "alpha"):
            if getattr(optim, name) is not None:
                raise ConfigError(
                    f"optim.{name}={getattr(optim, name)}: method {method} has no ascent step, so no {name}"
                )
        if optim.radius != "fixed" or optim.warmup:
            raise ConfigError(f"optim.radius: method {method} has no radius to learn or to warm up")
        return
    if optim.rho is None:
        raise ConfigError(f"optim.rho: method {method} needs a radius")
    if optim.mu is not None and optim.objective == "cross_entropy":
        raise ConfigError(f"optim.mu={optim.mu}: method {method} has no mu (bisam-tanh and bisam-log have)")
    if optim.alpha is not None and optim.objective != "tanh":
        raise ConfigError(f"optim.alpha={optim.alpha}: method {method} has no alpha (bisam-tanh has)")
    if optim.radius == "learned":
        if optim.base != "sgd":
            raise ConfigError(f"optim.base={optim.base}: a learned radius needs optim.base=sgd")
        if not lets.rho_min <= optim.rho <= lets.rho_max:
            raise ConfigError(
                f"optim.rho={optim.rho}: a learned radius starts within lets.rho_min={lets.rho_min} and "
                f"lets.rho_max={lets.rho_max}"
            )
    if optim.nesterov and not optim.momentum:
        raise ConfigError("optim.nesterov=True: needs optim.momentum > 0")


def gradients_per_step(config: Config) -> float:
    """Gradient evaluations per step, as a step counts them: a backward pass without its forward pass is ⅔."""
    optim, lets = config.optim, config.lets
    if optim.objective == "none":
        return 1.0
    if optim.radius == "fixed":
        return 2.0
    cost = 2.0 + (1 if lets.train_batch == "next" else 2) / lets.every  # L_V, and L_B' when it is not the next batch
    if optim.objective != "cross_entropy":  # ∇L_B(θ) does not come with the ascent gradient
        begins, ends = lets.curvature == "secant", lets.train_batch == "next"
        cost += BACKWARD * (1 if begins and ends and lets.every == 1 else (begins + ends) / lets.every)
    return cost


def load(path: str | Path) -> dict[str, Any]:
    """One YAML mapping from a file.

    Raises:
        ConfigError: no such file, not YAML, empty, or not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        near = suggest(path.name, (p.name for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: {reason}{near}") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}: not valid YAML{where}") from None
    if not content:
        raise ConfigError(f"{path}: empty; expected a mapping such as 'method: sam'")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content


def overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`key=value` words as one layer; values are YAML."""
    layer: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{pair}: expected key=value, for instance optim.rho=0.1")
        try:
            layer[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{pair}: the value is not valid YAML") from None
    return layer


def dump(config: Config) -> str:
    """The configuration as YAML that `load` and `resolve` turn into the same configuration."""
    return yaml.safe_dump(config.model_dump(exclude_none=True), sort_keys=False)


def suggest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean …?" with the nearest of the known words, or the list of them when it is short."""
    known = list(known)
    leaves = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    near = near or [leaves[m] for m in difflib.get_close_matches(word.rpartition(".")[2], leaves, n=1, cutoff=0.6)]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known and len(known) <= 12 else ""


def told(error: ValidationError) -> str:
    """The first thing pydantic found wrong, in one line."""
    first = error.errors()[0]
    path, value = ".".join(map(str, first["loc"])), first.get("input")
    context = first.get("ctx", {})
    if first["type"] == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{path}={value}: expected one of {', '.join(choices)}{near_choice(value, choices)}"
    if first["type"] == "missing":
        return f"{path}: missing"
    if first["type"] == "extra_forbidden":
        return f"{path}: unknown key{suggest(path, paths())}"
    message = first["msg"][0].lower() + first["msg"][1:]
    bound = next((context[k] for k in ("ge", "le", "gt", "lt") if k in context), None)
    nearest = ""
    if isinstance(bound, int | float) and isinstance(value, int | float) and math.isfinite(bound):
        nearest = f" (nearest: {bound})" if "ge" in context or "le" in context else ""
    return f"{path}={value!r}: {message}{nearest}".replace("'", "")


def near_choice(value: Any, choices: list[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
