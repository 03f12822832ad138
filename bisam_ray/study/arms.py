"""The arms of a comparison: for each method the ways to come by a radius.

    fixed      the published radius
    warm-up    the same, growing from zero over the first quarter of training
    searched   the method's space, searched
    learned    LETS
    around     one run of LETS (the probe), then a search of constant radii around what it learned, with its warm-up
    replayed   the probe's ρ(t), replayed open-loop on all of the training data; its peak is searched

and SGD once. µ and α are searched wherever the space has them. The probe is made once, on the draw of the data on which
the searches are made, and charged to both arms that use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import PRESETS, Config, ConfigError, resolve, suggest
from .ledger import Run
from .spaces import Space

KINDS = ("fixed", "warm-up", "searched", "learned", "around", "replayed")
SPACES = {"sam": "rho"}  # of a method that is given in place of a space; others are named like it
METHODS = ("sam", "asam", "bisam-tanh", "bisam-log")  # compared unless others are named
WARMUP = 0.25
WIDE = 3.0  # the searches around a learned radius go from a third of it to three times it
STARTS = (1.0, 2.0, 4.0)  # ρ₀ of the restarts of a learned arm, as multiples of the preset's
RHO = "optim.rho"


FOLLOWING = ("around", "replayed")


@dataclass(frozen=True)
class Arm:
    """One way to get a network: what it runs on every replicate.

    policy: none | fixed | searched | learned | around | replayed. The last two have the method's own `space`, which
    `derived` turns into theirs once the probe is made.
    """

    name: str
    policy: str
    layer: Mapping[str, Any]
    family: str
    space: Space | None = None

    @property
    def probes(self) -> bool:
        """Whether its search waits for a learned radius."""
        return self.policy in FOLLOWING


def space_of(name: str) -> str:
    """The space for a name that may be a method's."""
    return SPACES.get(name, name.replace("-", "_") if name in PRESETS else name)


def kinds_of(names: Iterable[str]) -> tuple[str, ...]:
    """Kinds as they are named on the command line.

    Raises:
        ConfigError: an unknown one.
    """
    chosen = [name.strip() for name in names]
    for name in chosen:
        if name not in KINDS:
            raise ConfigError(f"--arms {name}: unknown{suggest(name, KINDS)}; there are {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in chosen)


def arms_of(spaces: Sequence[Space], also: Iterable[str] = (), kinds: Sequence[str] = KINDS) -> list[Arm]:
    """SGD; for each space its method in every way of `kinds` that it has; and the methods in `also` as they are."""
    arms = [Arm("sgd", "none", {"method": "sgd"}, "sgd")]
    methods = [space.methods for space in spaces]
    for space in spaces:
        alone = len(space.methods) == 1
        label = space.method if alone and methods.count(space.methods) == 1 else space.name
        for method in space.methods:
            preset, layer = PRESETS[method], {"method": method}
            if preset["objective"] == "none" or preset.get("radius") == "learned":
                arms += of_method(method)
                continue
            learns = f"lets-{method}" in PRESETS
            follows = alone and learns and follows_a_radius(space)
            arms += [
                arm
                for arm in (
                    Arm(method, "fixed", layer, method),
                    Arm(f"{method} warm-up", "fixed", {**layer, "optim.warmup": WARMUP}, method),
                    Arm(f"{label} searched", "searched", space.fix, method if alone else space.name, space),
                    Arm(f"lets-{method}", "learned", {"method": f"lets-{method}"}, method) if learns else None,
                    Arm(f"{label} around", "around", space.fix, method, space) if follows else None,
                    Arm(f"{label} replayed", "replayed", space.fix, method, space) if follows else None,
                )
                if arm is not None and kind(arm) in kinds
            ]
        if "searched" in kinds and not any(arm.space is space for arm in arms):  # of a method without a fixed radius
            arms.append(Arm(f"{label} searched", "searched", space.fix, family(space.method), space))
    for method in also:
        arms += of_method(method)
    return list({arm.name: arm for arm in arms}.values())


def kind(arm: Arm) -> str:
    """Of KINDS, or none."""
    return "warm-up" if arm.policy == "fixed" and arm.layer.get("optim.warmup") else arm.policy


def of_method(method: str) -> list[Arm]:
    """A preset as it is."""
    preset = PRESETS[method]
    policy = "none" if preset["objective"] == "none" else preset.get("radius", "fixed")
    return [Arm(method, policy, {"method": method}, family(method))]


def family(method: str) -> str:
    """A method without where its radius comes from."""
    return method.removeprefix("lets-")


def follows_a_radius(space: Space) -> bool:
    """Whether the space can be searched around a radius: it searches one, and no other part of the radius policy."""
    domains = space.search.get(RHO, ())
    return (
        len(domains) == 1
        and domains[0].when is None
        and not {"optim.radius", "optim.rho_schedule"}
        & {
            *space.search,
            *space.fixed,
        }
    )


def probe_of(arm: Arm | Run) -> str:
    """The name of the run that learns the radius which an arm follows."""
    return f"probe-lets-{arm.family}"


def learned_radius(probe: Run) -> list[tuple[float, float]]:
    """(fraction of training, ρ) of a finished run, at the middle of every epoch."""
    epochs = resolve(probe.begin["config"]).train.epochs
    return [((epoch["epoch"] - 0.5) / epochs, epoch["sam/rho"]) for epoch in probe.epochs if "sam/rho" in epoch]


def derived(arm: Arm, probe: Run) -> Space:
    """The space of an arm that follows a learned radius.

    around     constant radii about the geometric mean of what was learned after the warm-up
    replayed   ρ(s) = ρ · shape(s), shape being what was learned over its peak, at most 1; ρ about that peak
    """
    assert arm.space is not None
    path, warmup = learned_radius(probe), resolve(probe.begin["config"]).optim.warmup
    search = {key: domains for key, domains in arm.space.search.items() if key != "optim.warmup"}
    fix = {**arm.space.fixed, "optim.warmup": warmup}
    if arm.policy == "around":
        later = [rho for s, rho in path if s > warmup] or [path[-1][1]]
        centre = math.exp(math.fsum(map(math.log, later)) / len(later))
    else:
        centre = max(rho for _, rho in path)
        rows = [[round(s, 6), three(rho / centre)] for s, rho in path]
        fix |= {
            "optim.warmup": 0.0,  # it is in the shape
            "optim.radius": "scheduled",
            "optim.rho_schedule": [[0.0, 0.0], *rows] if warmup else rows,
        }
    centre = three(centre)
    start = {key: value for key, value in (arm.space.start[0] if arm.space.start else {}).items() if key in search}
    content = {
        "name": f"{arm.space.name}_{arm.policy}",
        "fix": fix,
        "search": {**search, RHO: {"log": [three(centre / WIDE), three(centre * WIDE)]}},
        "start": [{**start, RHO: centre}],
    }
    return Space.model_validate(content)


def three(value: float) -> float:
    """With three digits."""
    return float(f"{value:.3g}")


def start_of(base: Config, restart: int) -> float | None:
    """ρ₀ of a learned arm's restart, within its bounds."""
    if base.optim.rho is None:
        return None
    rho = base.optim.rho * STARTS[restart % len(STARTS)]
    return min(max(rho, base.lets.rho_min), base.lets.rho_max)
