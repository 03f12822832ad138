"""The product of all methods: its axes, a covering of all pairs of their values, and points at random.

The axes are read off the configuration: every field of a method that takes words is one, so that a new word, or a new
such field, enters the contract by itself. `WITH` says what goes beside a word, `OTHERS` adds fields that take numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from bisam_ray.config import SHAPES, Config, ConfigError, Lets, Optim, Scale, Section, resolve

TABLE, FUNCTION = str(Path(__file__).with_name("radius.csv")), "contract_plugin:radius"  # of the fraction of training
ROWS = ((0.0, 0.0), (0.5, 1.0), (1.0, 0.6))
QUICK = {"model.name": "mlp", "train.epochs": 3, "data.batch_size": 112, "data.label_noise": 0.1}
EPOCH_STEPS = 1000 // 112  # eight: neither three nor five divides it, so that epochs end between two ascents

Layer = dict[str, Any]
Point = dict[str, int]  # axis → the number of its value

WITH: dict[tuple[str, Any], list[Layer]] = {
    ("geometry", "subset"): [
        {"optim.beta": 0.6},
        {"optim.beta": 0.6, "optim.gamma": 0.5},
        {"optim.beta": 0.6, "optim.renormalise": True},
    ],
    ("radius", "scheduled"): [{"optim.rho_schedule": name} for name in (*SHAPES, ROWS, TABLE, FUNCTION)],
    ("schedule", "parallel"): [{}, {"optim.lam": 0.5}],
    ("between", "plain"): [{}, {"optim.every": 3}],
    ("between", "direction"): [{"optim.every": 3}],
    ("between", "descent"): [{"optim.every": 3}],
    ("base", "sgd"): [
        {"optim.lr": 0.1, "optim.momentum": 0},
        {"optim.lr": 0.1, "optim.momentum": 0.8, "optim.dampening": 0.4},
        {"optim.lr": 0.03, "optim.nesterov": True},
    ],
    ("base", "adam"): [{"optim.lr": 0.01}],
    ("base", "adamw"): [{"optim.lr": 0.01}, {"optim.lr": 0.01, "optim.betas": (0.8, 0.98), "optim.eps": 1e-6}],
}
OTHERS: dict[str, list[Layer]] = {
    "warmup": [{}, {"optim.warmup": 0.3}],
    "lr_warmup": [{}, {"optim.lr_warmup": 0.3}],
    "ascent_fraction": [{}, {"optim.ascent_fraction": 0.25}],
    "clip": [{}, {"optim.clip": 0.5}],
    "label_smoothing": [{}, {"optim.label_smoothing": 0.1}],
    "accumulate": [{}, {"scale.accumulate": 2}],
    "lets.every": [{}, {"lets.every": 3}],
    "lets.gap_ema": [{}, {"lets.gap_ema": 0.5}],
}
HELD = {
    *("optim.rho", "optim.mu", "optim.alpha", "optim.xi", "optim.weight_decay", "optim.outer_every", "optim.outer_lr"),
    *("lets.lr", "lets.rho_min", "lets.rho_max"),
}  # at one value


def words(annotation: Any) -> list[str]:
    """The words of a field's type, wherever in it they are."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in words(part)]


def axis(section: type[Section], name: str) -> list[Layer]:
    """One layer of the configuration for every word of a field and what goes beside it; its default first."""
    field, path = section.model_fields[name], f"{section.__name__.lower()}.{name}"
    found: list[Any] = words(field.annotation)
    if get_origin(field.annotation) is tuple:
        found = [tuple(found[:n]) for n in range(len(found) + 1)]
    found.sort(key=lambda word: word != field.default)
    return [{path: word, **beside} for word in found for beside in WITH.get((name, word), [{}])]


AXES = {
    **{f"lets.{name}": axis(Lets, name) for name, field in Lets.model_fields.items() if words(field.annotation)},
    **{name: axis(Optim, name) for name, field in Optim.model_fields.items() if words(field.annotation)},
    "precision": axis(Scale, "precision"),
    **OTHERS,
}
AXES["objective"] = [{"optim.objective": "cross_entropy"}] + [
    layer for layer in AXES["objective"] if layer["optim.objective"] not in ("cross_entropy", "none")
]
AXES["perturbation_scope"] += [{"optim.perturbation_scope": 16}]
# every value goes with one of these at least, or with nothing
STARTS = [
    {},
    {"optim.radius": "learned"},
    {"optim.radius": "learned", "lets.curvature": "exact", "optim.objective": "tanh"},
    {"optim.radius": "learned", "lets.curvature": "finite_difference", "optim.objective": "tanh"},
]


def layer(point: Point) -> Layer:
    """What a point writes into the configuration."""
    return {k: v for name, number in point.items() for k, v in AXES[name][number].items()}


@cache
def checked(items: tuple[tuple[str, int], ...]) -> Config | None:
    point = dict(items)
    if layer(point)["optim.radius"] != "learned" and any(n for name, n in items if name.startswith("lets.")):
        return None  # accepted, and the same run as without
    try:
        return resolve(QUICK, layer(point))
    except ConfigError:
        return None


def accepted(point: Point) -> Config | None:
    """The configuration of a point, or None where it is refused, or where nothing would read its lets.*."""
    return checked(tuple(sorted(point.items())))


def pairs(point: Point) -> set[frozenset[tuple[str, int]]]:
    """Every two values of a point."""
    return {frozenset(pair) for pair in combinations(point.items(), 2)}


def starts() -> Iterator[Point]:
    for start in STARTS:
        yield {
            name: next((i for i, v in enumerate(values) if start.items() & v.items()), 0)
            for name, values in AXES.items()
        }


def covering() -> tuple[list[Point], set[frozenset[tuple[str, int]]]]:
    """Accepted points in which every pair of values occurs that can; and the pairs that cannot.

    Greedy: a pair that is missing is put on a start, whose other axes then turn, one after the other, to the accepted
    value that brings the most missing pairs.
    """
    order = random.Random(0)
    missing = {frozenset(((a, i), (b, j))): None for a, b in combinations(AXES, 2)
               for i in range(len(AXES[a])) for j in range(len(AXES[b]))}  # fmt: skip
    points: list[Point] = []
    refused = set()
    while missing:
        pair = next(iter(missing))
        point = next((p for start in starts() if accepted(p := start | dict(pair))), None)
        if point is None:
            refused.add(pair)
            del missing[pair]
            continue
        settled = dict(pair)
        for name in order.sample(list(AXES), len(AXES)):
            if name in settled:
                continue
            gains = {
                i: sum(frozenset(((name, i), other)) in missing for other in settled.items())
                for i in order.sample(range(len(AXES[name])), len(AXES[name]))
            }
            best = sorted(gains, key=lambda i: -gains[i])
            settled[name] = next(i for i in best if i == point[name] or accepted(point | {name: i}))
            point[name] = settled[name]
        points.append(point)
        for found in pairs(point):
            missing.pop(found, None)
    return points, refused


def wandered(seed: int) -> Point:
    """An accepted point at random: every axis turned, in random order, to a random value that is accepted."""
    order = random.Random(seed)
    point = order.choice(list(starts()))
    for name in order.sample(list(AXES), len(AXES)):
        values = order.sample(range(len(AXES[name])), len(AXES[name]))
        point[name] = next(i for i in values if i == point[name] or accepted(point | {name: i}))
    return point


def told(point: Point) -> str:
    """A point's name: its values that are not the first ones."""
    chosen = [AXES[name][i] for name, i in point.items() if i]
    words = [f"{path.rpartition('.')[2]}={value}" for values in chosen for path, value in values.items()]
    return " ".join(words).replace(TABLE, Path(TABLE).name) or "sam"
