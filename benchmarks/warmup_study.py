"""Why does a radius warm-up matter: where does a large early radius do its harm?

    python benchmarks/warmup_study.py            about 8 minutes on one core

What a configuration can express runs in the engine; schedules and altered steps run in `train`, which repeats the
engine bit for bit where nothing is altered (a row of the table says whether it still does).

Seeds 0–7 (seed, split_seed and noise_seed together); validation only, whose labels are as noisy as those of train: a
perfect classifier scores .600. Differences are paired, ± a 95 % t-interval. Writes results/warmup_study.txt and .svg.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib.pyplot as plt
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from bisam_ray.config import Config, resolve
from bisam_ray.optim.batchnorm import frozen_statistics
from bisam_ray.optim.losses import cross_entropy
from bisam_ray.optim.perturbation import Perturbation, dot, global_norm
from bisam_ray.training import data, engine, models
from bisam_ray.training.task import Classification

HERE = Path(__file__).resolve()
MLP = {d: {"model.name": f"{HERE.stem}:mlp_{d}"} for d in (1, 2, 4, 6)}
SEEDS, RHO, STEPS = range(8), 1.2, 150  # STEPS: of diagnostics
Tensors = list[Tensor]
RED, BLUE = "#c0392b", "#2471a3"
SEEN = ("cos(h,g)", "L(w)", "L(w+ε)", "rise/ρ‖g‖", "‖ε‖/‖w‖", "of head", "‖w‖", "dead")
lines: list[str] = []


def cnn(norm: Callable[[int], nn.Module], shape: tuple[int, ...], classes: int) -> nn.Module:
    """The built-in cnn with another norm layer; the engine finds it as warmup_study:NAME."""
    first = [nn.Conv2d(1, 16, 3, padding=1), norm(16), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(16, 32, 3, padding=1), norm(32), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(128, 64), norm(64), nn.ReLU(), nn.Linear(64, classes))


def mlp(depth: int, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The built-in mlp with `depth` hidden layers instead of two."""
    layers = [m for _ in range(depth) for m in models.hidden(64, 64)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, classes))


no_norm, group_norm = partial(cnn, lambda width: nn.Identity()), partial(cnn, partial(nn.GroupNorm, 4))
mlp_1, mlp_2, mlp_4, mlp_6 = (partial(mlp, depth) for depth in (1, 2, 4, 6))


def train(
    config: Config,
    rho: Callable[[float, float], float] | None = None,  # f, ‖w‖ / ‖w at the start‖ → the radius
    lr: Callable[[float], float] | None = None,  # the fraction f of training → a factor of the learning rate
    ascent: Callable[[Tensors], Tensors] | None = None,  # g → what is ascended instead
    descent: Callable[[float, Tensors, Tensors], Tensors] | None = None,  # f, g, h → what is descended instead
    rescale: float = 1.0,  # normalised layers c times larger, lr · c², decay / c²: as plain SGD the same training
    probe: list[dict[str, float]] | None = None,  # receives diagnostics of the first STEPS steps, then the run stops
) -> list[float]:
    """SAM as the engine runs it, with the alterations asked for; validation accuracy after every epoch."""
    optim, seed, splits = config.optim, config.seed, data.load(config.data)
    fit, _ = splits.fitting(False)
    epoch_steps = len(fit) // config.data.batch_size
    total = epoch_steps * config.train.epochs
    batches = data.Stream(len(fit), config.data.batch_size, data.mixed(seed, 3))
    torch.manual_seed(data.mixed(seed, 5))
    model = models.build(config.model.name, (*fit.x.shape[1:],), splits.classes).to(memory_format=torch.channels_last)
    params = list(model.parameters())
    weights = [p.data for p in params]
    factors = [rescale if w.dim() > 1 and w is not weights[-2] else 1.0 for w in weights]
    torch._foreach_mul_(weights, factors)
    groups = [{"params": [p], "weight_decay": optim.weight_decay / c**2} for p, c in zip(params, factors, strict=True)]
    base = torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=True)
    ball, initial, curve = Perturbation(params), global_norm(weights), []

    for step in range(total if probe is None else STEPS + 1):
        f = step / total
        for group, c in zip(base.param_groups, factors, strict=True):
            group["lr"] = optim.lr * 0.5 * (1 + math.cos(math.pi * f)) * (lr(f) if lr else 1) * c**2
        x, y = (part[batches.batch(step)] for part in (fit.x, fit.y))
        loss = cross_entropy(model(x), y)
        g = list(torch.autograd.grad(loss, params))
        if probe is not None and step % 5 == 0:  # what the full radius would do here, whatever the step takes
            reached, h = ahead(model, ball, g, optim.rho, (x, y))
            sizes = [float(e.norm() / w.norm()) for e, w in zip(ball.epsilon(), weights, strict=True) if w.dim() > 1]
            seen = (dot(h, g) / (global_norm(h) * global_norm(g)), loss.detach(), reached,
                    (reached - loss.detach()) / (optim.rho * global_norm(g)), max(sizes[:-1]), sizes[-1],
                    global_norm(weights), dead_units(model, fit.x))  # fmt: skip
            probe.append({"step": step, **dict(zip(SEEN, map(float, seen), strict=True))})
        radius = optim.rho * (min(1.0, f / optim.warmup) if optim.warmup else 1.0)
        radius = rho(f, float(global_norm(weights) / initial)) if rho else radius
        _, h = ahead(model, ball, ascent(g) if ascent else g, radius, (x, y))
        for p, gradient in zip(params, descent(f, g, h) if descent else h, strict=True):
            p.grad = gradient
        base.step()
        if (step + 1) % epoch_steps == 0:
            curve.append(Classification().assess(model, splits.val).accuracy)
    return curve


def ahead(model: nn.Module, ball: Perturbation, a: Tensors, rho: float, batch: Any) -> tuple[Tensor, Tensors]:
    """L(w + ε) with ε = ρa/‖a‖, and its gradient h."""
    ball.aim(a, rho)
    with ball.there(), frozen_statistics(model):
        loss = cross_entropy(model(batch[0]), batch[1])
        return loss.detach(), list(torch.autograd.grad(loss, ball.params))


@torch.no_grad()
def dead_units(model: nn.Sequential, x: Tensor) -> float:
    """Share of the ReLU units (channels) that fire on no training example; batch statistics, as in training."""
    fires: Tensors = []
    with frozen_statistics(model):
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                fires.append((x > 0).transpose(0, 1).flatten(1).any(1))
    return 1 - torch.cat(fires).float().mean().item()


def say(text: str) -> None:
    lines.append(text)
    print(text, flush=True)


def configs(layer: dict[str, Any]) -> list[Config]:
    common = {"data.label_noise": 0.4, "train.epochs": 20} | ({} if "method" in layer else {"optim.rho": RHO})
    return [resolve(common, layer, {"seed": s, "data.split_seed": s, "data.noise_seed": s}) for s in SEEDS]


def arm(name: str, layer: dict[str, Any], against: list[float] | None = None, **change: Any) -> list[float]:
    """Run all seeds, say a row, return the final accuracies; without a change in the engine, else in `train`."""
    unaltered = ([r.metrics["val/accuracy"] for r in engine.run(c)] for c in configs(layer))
    curves = [train(c, **change) for c in configs(layer)] if change else list(unaltered)
    final = [curve[-1] for curve in curves]
    row = f"  {name:53}{fmean(c[1] for c in curves):.3f}  {fmean(final):.3f} ({stdev(final):.3f})"
    if against is not None:
        row += "  {:+.3f} ± {:.3f}".format(*interval([a - b for a, b in zip(final, against, strict=True)]))
    say(row)
    return final


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval."""
    return fmean(values), float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def pair(name: str, layer: dict[str, Any]) -> tuple[list[float], list[float]]:
    without = arm(name, layer)
    return without, arm(f"{name}, warm-up", {**layer, "optim.warmup": 0.25}, without)


def resized(direction: Tensors, size: Tensors) -> Tensors:
    return list(torch._foreach_mul(direction, global_norm(size) / global_norm(direction)))


def diagnostics(name: str, layer: dict[str, Any], **change: Any) -> list[dict[str, float]]:
    """Every fifth of the first steps, mean over the seeds."""
    probes: list[list[dict[str, float]]] = [[] for _ in SEEDS]
    for seed in SEEDS:
        train(configs(layer)[seed], probe=probes[seed], **change)
    mean = [{k: fmean(p[i][k] for p in probes) for k in at} for i, at in enumerate(probes[0])]
    for at in (mean[step // 5] for step in (0, 10, 25, 75, 150)):
        say(f"  {name:36}{at['step']:10.0f}" + "".join(f"{v:12.2f}" for k, v in at.items() if k != "step"))
    return mean


def main() -> None:
    torch.set_num_threads(1)
    say(f"{datetime.date.today()}  digits, 20 epochs, 40 % label noise, SAM ρ = {RHO} unless said; n = {len(SEEDS)}")
    say("\nvalidation accuracy after epoch                          2     20 (sd)     a warm-up's difference")
    arm("SGD", {"method": "sgd"})
    pair("ρ 0.6", {"optim.rho": 0.6})
    without, warm = pair("ρ 1.2", {})
    pair("ρ 2.4", {"optim.rho": 2.4})
    pair("bisam-tanh, ρ 1.2", {"method": "bisam-tanh", "optim.rho": RHO})
    arm("no label noise, SGD", {"method": "sgd", "data.label_noise": 0.0})
    pair("no label noise, ρ 1.2", {"data.label_noise": 0.0})
    pair("no label noise, ρ 2.4", {"optim.rho": 2.4, "data.label_noise": 0.0})
    deep = {d: pair(f"mlp of {d} hidden layers", layer)[0] for d, layer in MLP.items()} | {0: without}
    for norm, layer in ((n, {"model.name": f"{HERE.stem}:{n}"}) for n in ("no_norm", "group_norm")):
        arm(f"{norm}, SGD", {"method": "sgd", **layer})
        pair(f"{norm}, ρ 0.3", {"optim.rho": 0.3, **layer})
    pair("lr × 0.25", {"optim.lr": 0.0125})
    pair("lr × 2", {"optim.lr": 0.1})
    say("\nρ 1.2 without warm-up, altered                           2     20 (sd)     difference to the unaltered")
    bars = {"without warm-up": without, "warm-up": warm}

    def alter(name: str, depth: int = 0, epochs: int = 20, **change: Any) -> None:
        bars[name] = arm(name, {"train.epochs": epochs, **MLP.get(depth, {})}, deep[depth], **change)

    alter("nothing altered, but in the loop of this script", lr=lambda f: 1.0)
    alter("learning-rate warm-up instead", lr=lambda f: min(1.0, f / 0.25))
    alter("80 epochs", epochs=80)
    alter("80 epochs, mlp of 4", depth=4, epochs=80)
    alter("plain steps in epoch 1, then at once 1.2", rho=lambda f, growth: RHO * (f >= 0.05))
    alter("plain steps in quarter 1, then at once 1.2", rho=lambda f, growth: RHO * (f >= 0.25))
    alter("1.2 in quarter 1, then 0.6", rho=lambda f, growth: RHO if f < 0.25 else 0.6)
    alter("1.2 in quarter 1, then plain steps, mlp of 4", depth=4, rho=lambda f, growth: RHO * (f < 0.25))
    alter("1.2 in quarter 2, else 0.6", rho=lambda f, growth: RHO if 0.25 <= f < 0.5 else 0.6)
    alter("radius proportional to ‖w‖", rho=lambda f, growth: RHO * growth)
    alter("smaller ‖ε‖/‖w‖: layers × 4, their lr × 16", rescale=4.0)
    alter("random ε of size 1.2", ascent=lambda g: [torch.randn_like(t) for t in g])
    for i, layer in ((3, "second convolution"), (6, "hidden layer"), (9, "head")):
        alter(f"ε of size 1.2 that spares the {layer}", ascent=lambda g, i=i: [*g[:i], g[i] * 0, *g[i + 1 :]])
    alter("quarter 1: direction of h, size of g", descent=lambda f, g, h: resized(h, g) if f < 0.25 else h)
    alter("quarter 1: direction of g, size of h", descent=lambda f, g, h: resized(g, h) if f < 0.25 else h)
    alter("the latter, mlp of 4", depth=4, descent=lambda f, g, h: resized(g, h) if f < 0.25 else h)

    say(f"\nwhat ρ = {RHO} does on the step's batch" + f"{'step':>10}" + "".join(f"{name:>12}" for name in SEEN))
    ramp = {"optim.warmup": 0.25}
    arms = {"cnn": {}, "cnn, warm-up": ramp, "mlp of 4": MLP[4], "mlp of 4, warm-up": {**MLP[4], **ramp}}
    curves = {name: diagnostics(name, layer) for name, layer in arms.items()}
    diagnostics("cnn, layers × 4, their lr × 16", {}, rescale=4.0)
    (HERE.parent / f"results/{HERE.stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(curves, bars, HERE.parent / f"results/{HERE.stem}.svg")


@plt.rc_context({"svg.hashsalt": "warmup", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
def draw(curves: dict[str, list[dict[str, float]]], bars: dict[str, list[float]], path: Path) -> None:
    figure = plt.figure(figsize=(11, 8.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.7))
    titles = {"cos(h,g)": f"cosine of ∇L(w+ε), ρ = {RHO}, and ∇L(w)", "L(w)": "L(w)", "L(w+ε)": f"L(w+ε), ρ = {RHO}"}
    for axes, (key, title) in zip(top.subplots(1, 3), titles.items(), strict=True):
        axes.set(title=title, xlabel="step of a run")
        for i, (name, curve) in enumerate(curves.items()):
            colour, style = (RED, BLUE)[i % 2], ("-", "--")[i // 2]
            axes.plot([at["step"] for at in curve], [at[key] for at in curve], style, color=colour, label=name)
        if key != "cos(h,g)":
            axes.axhline(math.log(10), color="grey", lw=0.8, label="log K")
    axes.legend(frameon=False)
    axes = bottom.add_subplot(xlabel="validation accuracy at the end (40 % of its labels are wrong), 95 % interval")
    for name, values in reversed(bars.items()):
        mean, half = interval(values)
        axes.barh(name, mean, xerr=half, color={"warm-up": BLUE, "without warm-up": RED}.get(name, "#b8c2cc"))
    axes.axvline(fmean(bars["warm-up"]), color=BLUE, lw=0.8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
