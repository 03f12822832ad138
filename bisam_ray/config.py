"""One run's configuration: typed, frozen, layered from presets, files and `key=value` overrides; no torch.

Precedence: defaults < the method's preset < files in order < a space's `fix` < a trial < `key=value`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class ConfigError(ValueError):
    """Bad input, told in one line that names the field, the value and what would do."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def listed(value: Any) -> Any:
    """`a,b` for [a, b], as one writes it on the command line."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def pair(value: Any) -> Any:
    value = listed(value)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("two numbers are needed, such as 0.9,0.999")
    return value


Decay = Annotated[float, Field(ge=0, lt=1)]  # of a moving average


class Data(Section):
    name: str = "digits"
    """One of DATASETS, or `module:function` returning (inputs, targets); see training/data.py."""
    root: str = "~/data"
    """Where the files of a named data set lie, or are downloaded to."""
    download: bool = False
    limit: int | None = Field(None, ge=10)
    """So many of the training examples only, drawn by split_seed; test stays whole."""
    augment: Annotated[tuple[Literal["crop", "flip", "cutout"], ...], BeforeValidator(listed)] = ()
    """Of train and hyper, per example; see training/augment.py."""
    standardise: Literal["data", "imagenet", "half"] | None = None
    """Stored images: by the statistics of what is trained on (of images in memory, unless told otherwise), of ImageNet
    (of files), or (x − ½) / ½ of values in [0, 1], which timm's ViT weights were trained with."""
    readers: int = Field(2, ge=0)
    """Processes that decode the images of a set too large for the memory, per worker."""
    tokenizer: str | None = None
    """Of text: a name or path that transformers knows, or `train`: made from the training text; else the network's."""
    vocabulary: int = Field(10_000, ge=100)
    """Subwords of `tokenizer=train`."""
    length: int = Field(128, ge=4)
    """Longest text, in tokens; what is longer is cut off."""
    beam: int = Field(5, ge=1)
    """Width of the search that translates."""
    bucket: int = Field(0, ge=0)
    """Texts of like length come together, out of so many batches; 0: as they are drawn."""
    batch_size: int = Field(64, ge=1)
    label_noise: float = Field(0.0, ge=0, le=1)
    """Share of the labels of train, hyper and val that is flipped to another class; test stays clean."""
    noise_kind: Literal["symmetric", "asymmetric"] = "symmetric"
    """To any other class, uniformly, or to the one that a class is mistaken for."""
    noise_seed: int = Field(0, ge=0)
    split_seed: int = Field(0, ge=0)
    fold: int = Field(0, ge=0)
    """Which part of what is not test is val; test is the same in every fold. Digits: 0 to 3 are disjoint."""


class Model(Section):
    name: str = "cnn"
    """One of MODELS, or `module:function`; see training/models.py. On text bert-tiny, on iwslt14 transformer-iwslt."""
    weights: str | None = None
    """To start from: `hub` (what timm publishes), or a FILE.pth, .pt or .safetensors."""


class Optim(Section):
    objective: Literal["none", "cross_entropy", "tanh", "log", "ramp", "erf"]
    """What is ascended: nothing, the cross entropy (SAM), or a lower bound of the 0-1 loss (BiSAM)."""
    mu: float | None = Field(None, gt=0)
    alpha: float | None = Field(None, gt=0)
    geometry: Literal["l2", "adaptive", "subset"] = "l2"
    xi: float = Field(0.01, ge=0)
    """Adaptive: how far a weight that is exactly zero may still move."""
    beta: float | None = Field(None, gt=0, le=1)
    """Subset: the share of the weights that is perturbed."""
    gamma: float | None = Field(None, gt=0, le=1)
    """Subset: the share of the batch, those whose loss rises most, that is descended."""
    renormalise: bool = False
    """Subset: perturbations of length rho, not of rho/√beta as published."""
    radius: Literal["fixed", "scheduled", "learned"] = "fixed"
    rho: float | None = Field(None, ge=0)
    """The radius; the starting point ρ₀ when it is learned; the factor of a schedule (κ of `theorem`)."""
    rho_schedule: str | tuple[tuple[float, float], ...] | None = None
    """`cosine`, `lr`, `theorem`, or rows [s, factor] of the fraction s of training, linear in between: they multiply
    rho. A recorded FILE.csv or `module:function` gives ρ itself."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of training over which the radius grows linearly from zero."""
    perturbation_scope: Literal["local", "global"] | Annotated[int, Field(ge=1)] = "local"
    """Whose examples share a perturbation: those of a process, all, or every m examples (m-sharpness)."""
    schedule: Literal["sequential", "parallel"] = "sequential"
    """`parallel` is SAMPa: on an even number of workers its two gradients are computed at once."""
    lam: float | None = Field(None, ge=0, le=1)
    """SAMPa: the weight λ of the extrapolated gradient."""
    every: int = Field(1, ge=1)
    """An ascent at every k-th step."""
    between: Literal["plain", "direction", "descent"] = "plain"
    """The other steps: plain, or perturbed along the last ascent or the last descent gradient."""
    ascent_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the batch that the ascent gradient sees."""
    wrapper: Literal["none", "lookahead", "rapp"] = "none"
    outer_every: int = Field(5, ge=1)
    outer_lr: float = Field(0.5, gt=0, le=1)
    base: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0)
    lr_schedule: Literal["cosine", "linear", "inverse_sqrt", "constant"] = "cosine"
    lr_warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of training over which the learning rate grows linearly from zero."""
    momentum: float = Field(0.9, ge=0, lt=1)
    dampening: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    betas: Annotated[tuple[Decay, Decay], BeforeValidator(pair)] = (0.9, 0.999)
    """Adam and AdamW: β₁ and β₂, the decay of their moving averages."""
    eps: float = Field(1e-8, gt=0)
    """Adam and AdamW: what is added to √v̂."""
    weight_decay: float = Field(5e-4, ge=0)
    decay: Literal["all", "weights"] = "all"
    """What decays: everything, or neither biases nor the parameters of norms."""
    clip: float | None = Field(None, gt=0)
    """Largest norm of the descent gradient."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)

    @field_validator("rho_schedule", mode="before")
    @classmethod
    def rows(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        try:
            return tuple((float(fraction), float(factor)) for fraction, factor in value)
        except (TypeError, ValueError):
            raise ValueError("rows of two numbers are needed, such as [[0, 0], [0.25, 1], [1, 1]]") from None


class Lets(Section):
    train_batch: Literal["next", "same"] = "next"
    curvature: Literal["secant", "diagonal", "exact", "finite_difference"] = "secant"
    goal: Literal["gap", "validation"] = "gap"
    """The upper level: ½(L_V − L_B')², as published, or L_V."""
    every: int = Field(1, ge=1)
    lr: float = Field(0.05, gt=0)
    rho_min: float = Field(1e-3, gt=0)
    rho_max: float = Field(1.0, gt=0)
    gap_ema: float = Field(0.0, ge=0, lt=1)
    groups: Literal["one", "kind", "tensor"] = "one"
    """One radius; one for weights and one for biases and norm parameters; one for every parameter tensor."""
    learn: Annotated[tuple[Literal["mu", "alpha"], ...], BeforeValidator(listed)] = ()
    """What is learned beside the radius."""


class Train(Section):
    epochs: int = Field(30, ge=1)
    val_examples: int | None = Field(None, ge=16)
    """So many of val are looked at after an epoch, where a look is dear; at the end all are. Left out: all."""
    save_steps: int = Field(0, ge=0)
    """Steps after which several workers save a checkpoint, also within an epoch; 0: after epochs only. (One worker
    saves as time goes by.) Their batch-norm statistics are averaged then: rounding depends on it."""


class Scale(Section):
    workers: int = Field(1, ge=1)
    min_workers: int | None = Field(None, ge=1)
    """Go on with as few when nodes are lost, and with more again when they come; left out: wait for all of them. After
    a run that was killed in the same cluster it starts up to three minutes later: so long Ray holds what that one had.
    """
    gpus_per_worker: float = Field(0.0, ge=0)
    """A share such as 0.25: four runs on a GPU, each with a quarter of its memory. Workers of a run take whole ones."""
    placement: Literal["pack", "spread"] = "pack"
    threads: int = Field(1, ge=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward passes (autocast); float16 comes with a loss scaler. Weights and updates stay float32."""
    accumulate: int = Field(1, ge=1)
    """Parts into which a batch is cut in every pass, to save memory."""
    compile: bool = False
    """torch.compile the network."""

    @field_validator("gpus_per_worker")
    @classmethod
    def whole_gpus(cls, gpus: float, others: ValidationInfo) -> float:
        nearest = {"nearest": max(1, round(gpus))}
        if gpus > 1 and gpus % 1:
            raise PydanticCustomError("gpus", "more than one GPU must be a whole number (nearest: {nearest})", nearest)
        if gpus % 1 and others.data.get("workers", 1) > 1:
            raise PydanticCustomError(
                "gpus", "the workers of one run cannot share a GPU, NCCL refuses (nearest: {nearest})", nearest
            )
        return gpus


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


SAM: dict[str, Any] = {"objective": "cross_entropy", "rho": 0.05}
ASAM: dict[str, Any] = {"objective": "cross_entropy", "geometry": "adaptive", "rho": 0.5}
BOUND = {"rho": 0.05, "mu": 10.0, "alpha": 0.1}
BISAM: dict[str, dict[str, Any]] = {
    "tanh": {"objective": "tanh", **BOUND},
    "log": {"objective": "log", "rho": 0.05, "mu": 1.0},
    "ramp": {"objective": "ramp", **BOUND},
    "erf": {"objective": "erf", **BOUND},
}
# ρ₀ = .2, a warm-up and lets.lr = .05: benchmarks/lets_study.py
LEARNED = {"radius": "learned", "rho": 0.2, "warmup": 0.25}  # a large early one slows a run or traps a deep network
ESAM = {"geometry": "subset", "beta": 0.6, "gamma": 0.5}
SAMPA = {"schedule": "parallel", "lam": 0.2, "rho": 0.1}
PRESETS: dict[str, dict[str, Any]] = {
    "sgd": {"objective": "none"},
    "sam": SAM,
    "asam": ASAM,
    **{f"bisam-{phi}": preset for phi, preset in BISAM.items()},
    "lets-sam": {**SAM, **LEARNED},
    "lets-asam": {**ASAM, **LEARNED, "rho": 2.0},
    **{f"lets-bisam-{phi}": {**preset, **LEARNED} for phi, preset in BISAM.items()},
    "esam": {**SAM, **ESAM},
    "bisam-log-esam": {**BISAM["log"], **ESAM},
    "sampa": {**SAM, **SAMPA},
    "sampa-bisam-log": {**BISAM["log"], **SAMPA},
    "lookahead-sgd": {"objective": "none", "wrapper": "lookahead"},
    "lookahead-sam": {**SAM, "wrapper": "lookahead"},
    "lookahead-bisam-log": {**BISAM["log"], "wrapper": "lookahead"},
    "rapp-sam": {**SAM, "wrapper": "rapp"},
    "rapp-bisam-log": {**BISAM["log"], "wrapper": "rapp"},
}
LETS_PRESETS: dict[str, dict[str, Any]] = {"lets-asam": {"rho_max": 10.0}}  # its radii are ten times larger
DATASETS = (
    "digits", "digits32", "unicode", "cifar10", "cifar100", "svhn", "imagenet", "imagenet100", "flowers102", "pets",
    "glue/NAME", "iwslt14", "generated/NAME",
)  # training/data.py, training/datasets.py  # fmt: skip
MODELS = (
    "cnn", "mlp", "resnet20", "resnet32", "resnet56", "resnet110", "resnet18", "resnet50", "vgg19bn", "densenet121",
    "wrn28-2", "wrn28-10", "pyramidnet110", "vit-small", "vit-base", "bert-tiny", "transformer-iwslt",
    "transformer-tiny", "torchvision/NAME", "pytorchcv/NAME", "timm/NAME", "transformers/NAME",
)  # training/models.py  # fmt: skip
TEXT, LANGUAGE = ("glue/", "iwslt14", "unicode"), ("transformer", "bert-tiny")  # how their names begin
CLASSLESS = ("glue/stsb", "iwslt14")
SCORES = {"glue/cola": "MCC", "glue/stsb": "Pearson r", "iwslt14": "BLEU"}  # the others' is the accuracy
SHAPES = ("cosine", "lr", "theorem")  # training/engine.py
ALPHA = ("tanh", "ramp", "erf")  # objectives that have an α; optim/losses.py
ASCENT_ONLY = (
    "rho", "mu", "alpha", "radius", "rho_schedule", "warmup", "geometry", "beta", "gamma", "renormalise", "schedule",
    "lam", "every", "between", "ascent_fraction", "perturbation_scope",
)  # fmt: skip
BACKWARD, HESSIAN_PRODUCT = 2 / 3, 2.0  # of a gradient's cost; optim/step.py counts by the same numbers
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
    merge(complete, {"method": method, "optim": PRESETS[method], "lets": LETS_PRESETS.get(method, {})})
    if reads_text(merged):
        merge(complete, on_text(method, merged))
    merge(complete, merged)
    tokenize(complete)
    try:
        config = Config.model_validate(complete)
    except ValidationError as error:
        raise ConfigError(told(error)) from None
    contradictions(config)
    return config


def reads_text(layer: Mapping[str, Any]) -> bool:
    """Whether the data are text, as far as names tell: of one's own they are what the network reads."""
    data, model = (str(layer.get(section, {}).get("name")) for section in ("data", "model"))
    return data.removeprefix("generated/").startswith(TEXT) or (":" in data and model.startswith(LANGUAGE))


def on_text(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset is on text: around AdamW, and LETS starts at the published radius and follows the validation loss.

    The network is one that reads text, unless it is named. The published gap is smallest where nothing is learned, and
    on text ρ grows until that is so (benchmarks/text_radius.py). The learning rate is that of fine-tuning for a
    published network.
    """
    translates = str(given["data"].get("name")).removeprefix("generated/") == "iwslt14"
    model = given.get("model", {}).get("name") or ("transformer-iwslt" if translates else "bert-tiny")
    optim: dict[str, Any] = {}
    if given.get("optim", {}).get("base") != "sgd":
        published = str(model).startswith("transformers/")
        optim = {"base": "adamw", "lr": 2e-5 if published else 1e-3, "lr_schedule": "linear", "lr_warmup": 0.1}
    if PRESETS[method].get("radius") == "learned":
        optim["rho"] = PRESETS[method.removeprefix("lets-")]["rho"]
    return {"model": {"name": model}, "optim": optim, "lets": {"goal": "validation"}}


def tokenize(complete: dict[str, Any]) -> None:
    """Text that is not told its tokenizer has that of the network; generated text needs none."""
    data = complete.get("data", {})
    if reads_text(complete) and data.get("tokenizer") is None and not str(data["name"]).startswith("generated/"):
        library, _, rest = str(complete.get("model", {}).get("name")).partition("/")
        data["tokenizer"] = rest if library == "transformers" and rest else "train"


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


@functools.cache
def paths() -> tuple[str, ...]:
    """Every config path, e.g. "optim.rho"."""
    found: list[str] = []
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += (f"{name}.{inner}" for inner in field.annotation.model_fields)
        else:
            found.append(name)
    return tuple(found)


def kind_of(path: str) -> Literal["section", "value"] | None:
    if path in paths():
        return "value"
    field = Config.model_fields.get(path)
    return "section" if field is not None else None


def contradictions(config: Config) -> None:
    """Refuse, with the reason, what each field alone cannot show to be wrong."""
    optim, lets, scale, method = config.optim, config.lets, config.scale, config.method
    for section, name, known in (("data", config.data.name, DATASETS), ("model", config.model.name, MODELS)):
        family = name.partition("/")[0] + "/NAME" if "/" in name else name
        if ":" not in name and family not in known:
            raise ConfigError(f"{section}.name={name}: unknown{suggest(name, known)} (or your own, module:function)")
    language(config)
    if optim.nesterov and (not optim.momentum or optim.dampening):
        raise ConfigError("optim.nesterov=True: needs optim.momentum > 0 and optim.dampening=0")
    if config.data.batch_size % (scale.workers * scale.accumulate) and scale.accumulate > 1:
        raise ConfigError(f"scale.accumulate={scale.accumulate}: does not divide the batch of a worker")
    if optim.objective == "none":
        without_ascent(config)
        return
    if optim.rho is None:
        raise ConfigError(f"optim.rho: method {method} needs a radius")
    bound = optim.objective != "cross_entropy"
    if optim.mu is not None and not bound:
        raise ConfigError(f"optim.mu={optim.mu}: method {method} has no mu (bisam-tanh and bisam-log have)")
    if optim.alpha is not None and optim.objective not in ALPHA:
        raise ConfigError(f"optim.alpha={optim.alpha}: method {method} has no alpha (bisam-tanh has)")
    if optim.geometry == "subset":
        if optim.beta is None:
            raise ConfigError("optim.beta: geometry=subset needs the share of the weights to perturb, such as 0.6")
    elif optim.beta is not None or optim.gamma is not None or optim.renormalise:
        name = next(n for n in ("beta", "gamma", "renormalise") if getattr(optim, n))
        raise ConfigError(f"optim.{name}={getattr(optim, name)}: belongs to optim.geometry=subset")
    if (optim.rho_schedule is not None) != (optim.radius == "scheduled"):
        raise ConfigError(
            f"optim.rho_schedule={optim.rho_schedule}: goes with optim.radius=scheduled, not {optim.radius} "
            "(cosine, lr, theorem, FILE.csv or module:function)"
        )
    shape = optim.rho_schedule
    if isinstance(shape, str) and not (shape in SHAPES or ":" in shape or shape.endswith(".csv")):
        raise ConfigError(
            f"optim.rho_schedule={shape}: unknown{suggest(shape, SHAPES)} (or rows, FILE.csv, or module:function)"
        )
    if optim.between != "plain" and optim.every == 1:
        raise ConfigError(f"optim.between={optim.between}: with optim.every=1 there is no step in between")
    selects = optim.gamma is not None and optim.gamma < 1
    if selects and (optim.ascent_fraction < 1 or optim.between != "plain"):
        raise ConfigError(
            f"optim.gamma={optim.gamma}: examples are selected by the rise of their loss: the ascent must see them all "
            "(optim.ascent_fraction=1, optim.between=plain)"
        )
    if optim.schedule == "parallel":
        in_parallel(config)
    elif optim.lam is not None:
        raise ConfigError(f"optim.lam={optim.lam}: belongs to optim.schedule=parallel (sampa)")
    if isinstance(optim.perturbation_scope, int):
        share, m = config.data.batch_size // scale.workers, optim.perturbation_scope
        if share % m and (m % share or scale.workers % (m // share)):
            raise ConfigError(
                f"optim.perturbation_scope={m}: must divide the {share} examples of a worker, or be a multiple of them "
                f"that divides the {config.data.batch_size} of a step"
            )
    if optim.radius != "learned":
        return
    if not lets.rho_min <= optim.rho <= lets.rho_max:
        raise ConfigError(
            f"optim.rho={optim.rho}: a learned radius starts within lets.rho_min={lets.rho_min} and "
            f"lets.rho_max={lets.rho_max}"
        )
    if selects and lets.curvature == "secant":
        raise ConfigError(
            f"optim.gamma={optim.gamma}: the two gradients of lets.curvature=secant must see the same examples; "
            "take diagonal, finite_difference or exact, or optim.gamma=1"
        )
    if (lets.learn or lets.groups != "one") and lets.curvature not in ("exact", "finite_difference"):
        raise ConfigError(
            f"lets.curvature={lets.curvature}: lets.learn and lets.groups need exact or finite_difference"
        )
    if (lets.learn and not bound) or ("alpha" in lets.learn and optim.objective not in ALPHA):
        raise ConfigError(f"lets.learn={', '.join(lets.learn)}: objective {optim.objective} does not have them all")
    if lets.curvature == "exact" and scale.precision == "float16":
        raise ConfigError("lets.curvature=exact: second derivatives overflow in float16 (scale.precision=bfloat16)")
    if lets.curvature == "exact" and scale.compile:
        raise ConfigError("lets.curvature=exact: a compiled network cannot be differentiated twice (scale.compile)")


def language(config: Config) -> None:
    """Refuse what does not go with text, or with what is no text."""
    data, model = config.data.name.removeprefix("generated/"), config.model.name
    text = data.startswith(TEXT)
    if ":" not in model and ":" not in data:
        translates = model.startswith("transformer-")
        if text != model.startswith(LANGUAGE):
            reads, kind = ("images", "text") if text else ("text", "no text")
            raise ConfigError(
                f"model.name={model}: reads {reads}, and data.name={config.data.name} is {kind} (nearest: "
                f"{('transformer-tiny' if data == 'iwslt14' else 'bert-tiny') if text else 'cnn'})"
            )
        if text and translates != (data == "iwslt14"):
            told = "translates (nearest: bert-tiny)" if translates else "does not translate (nearest: transformer-tiny)"
            raise ConfigError(f"model.name={model}: {told}")
    if text and model.startswith("transformers/") and config.data.tokenizer == "train":
        raise ConfigError(f"data.tokenizer=train: model.name={model} reads with its own (leave it out)")
    if config.data.label_noise and data in CLASSLESS:
        raise ConfigError(f"data.label_noise={config.data.label_noise}: data.name={data} has no classes (nearest: 0)")
    if data == "glue/stsb" and config.optim.objective in BISAM:
        raise ConfigError(
            f"optim.objective={config.optim.objective}: data.name={data} is a regression; BiSAM bounds the 0-1 loss, "
            "which that has not (nearest: cross_entropy, here the squared error: method=sam)"
        )


def score_of(data: str) -> str:
    """What decides on a data set, and what is recorded as accuracy there."""
    return SCORES.get(data.removeprefix("generated/"), "accuracy")


def without_ascent(config: Config) -> None:
    """Refuse what belongs to a perturbation where there is none."""
    optim, default = config.optim, Optim(objective="none")
    for name in ASCENT_ONLY:
        if getattr(optim, name) != getattr(default, name):
            raise ConfigError(
                f"optim.{name}={getattr(optim, name)}: method {config.method} has no ascent step, so no {name}"
            )


def in_parallel(config: Config) -> None:
    """Refuse what SAMPa cannot do: its ascent gradient is the one of the step before, at y, not at x."""
    optim, lets, workers = config.optim, config.lets, config.scale.workers
    default = Optim(objective="none")
    for name in ("every", "ascent_fraction", "perturbation_scope"):
        if getattr(optim, name) != getattr(default, name):
            raise ConfigError(
                f"optim.{name}={getattr(optim, name)}: SAMPa takes its ascent gradient from the step before, for free; "
                f"{name} would change nothing"
            )
    if optim.gamma is not None and optim.gamma < 1:
        raise ConfigError(f"optim.gamma={optim.gamma}: SAMPa never sees the losses at x that a selection compares")
    if lets.learn and optim.radius == "learned":
        raise ConfigError("lets.learn: not with optim.schedule=parallel, whose ascent gradient is of the step before")
    if workers % 2 and workers > 1:
        raise ConfigError(f"scale.workers={workers}: SAMPa's two roles need an even number (nearest: {workers + 1})")
    if workers > 1 and optim.radius == "learned" and lets.curvature != "secant":
        raise ConfigError(f"lets.curvature={lets.curvature}: SAMPa on several workers learns by the secant only")


def gradients_per_step(config: Config, steps: int = 240, tensors: int = 10) -> float:
    """Gradient evaluations per step, the mean of the first `steps`, as a step counts them (optim/schedule.py).

    A backward pass without its forward pass is ⅔ of a gradient. `tensors`: how many the network has, each with a
    radius of its own under lets.groups=tensor. SAMPa's first step pays for a gradient at y₀.
    """
    optim, lets = config.optim, config.lets
    if optim.objective == "none":
        return 1.0
    bound, parallel = optim.objective != "cross_entropy", optim.schedule == "parallel"
    learned, gamma = optim.radius == "learned", optim.gamma or 1.0
    numbers = {"one": 1, "kind": 2, "tensor": tensors}[lets.groups] + len(lets.learn)
    products = numbers * {"secant": 0, "diagonal": 0, "exact": HESSIAN_PRODUCT, "finite_difference": 1}[lets.curvature]
    total, perturbations, pending = parallel * (1 + BACKWARD * bound), 0, False
    for step in range(steps):
        ascends = step % optim.every == 0
        if not ascends and optim.between == "plain":
            total, pending = total + 1, False  # its gradient is ∇L_B(θ)
            continue
        starts = learned and perturbations % lets.every == 0
        if pending or (starts and lets.curvature == "secant"):  # ∇L_B(θ): a pass of its own, or shared with the ascent
            total += 1 if parallel or not ascends or optim.ascent_fraction < 1 else BACKWARD if bound else 0
        total += ascends * optim.ascent_fraction + gamma + (gamma < 1) * (1 - BACKWARD)
        total += BACKWARD * (ascends * len(lets.learn) + (parallel and bound))
        total += starts * (1 + products + (lets.goal == "gap" and lets.train_batch == "same"))
        perturbations += 1
        pending = starts and lets.goal == "gap" and lets.train_batch == "next"
    return total / steps


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
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    bound = next((context[k] for k in ("ge", "le", "gt", "lt") if k in context), None)
    nearest = ""
    if isinstance(bound, int | float) and isinstance(value, int | float) and math.isfinite(bound):
        nearest = f" (nearest: {bound})" if "ge" in context or "le" in context else ""
    return f"{path}={value!r}: {message}{nearest}".replace("'", "")


def near_choice(value: Any, choices: list[str]) -> str:
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
