"""Does SAM's perturbation raise the loss without raising the error, and does BiSAM's raise the error?

    python benchmarks/failure_mode.py            208 runs; continues when started again

BiSAM argues that SAM spends its perturbation on the surrogate: the cross entropy rises, in part on examples that are
wrong already, while the 0-1 loss need not rise; an ascent on a lower bound of the 0-1 loss should raise that. Measured,
after every epoch of a run, on two training batches B and on the test split H (clean labels; nothing is chosen by it):

    ΔL = L(w + ε) − L(w)      ΔE = E(w + ε) − E(w)      cross entropy L and error E, on B that ε was made from and on H

    share of wrong    how much of ΔL on B comes from examples of B that were wrong at w already
    silent            share of the perturbations that raise the loss of B and not its error

1. At the same weights, those of an SGD run and of a SAM run (ρ = .2): every method's ε for the same batches, all of the
   same Euclidean length ρ (ASAM's too). `tanh, sharp` is a tighter bound than the published one: µ 30, α .3.
2. Along each method's own run at that radius (ASAM: ten times that, its usual scale).

Passes are as in training: batch norm with the statistics of the batch. Digits, CNN, 16 epochs, label noise 0 and 40 %,
draws 100–107. One line of JSON for each run in results/failure_mode.jsonl: means over every two epochs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import harness

RECORDS = harness.RESULTS / "failure_mode.jsonl"
EPOCHS, DRAWS, NOISES, RADII, BATCHES, PAIR = 16, range(100, 108), (0.4, 0.0), (0.05, 0.2, 0.6), 2, 2
METHODS = ("sam", "asam", "bisam-tanh", "bisam-log")
SHARP = "bisam-tanh, sharp"
ASCENTS: dict[str, dict[str, Any]] = {
    "sam": {},
    "asam": {},
    "bisam-tanh": {"phi": "tanh", "mu": 10.0, "alpha": 0.1},
    SHARP: {"phi": "tanh", "mu": 30.0, "alpha": 0.3},
    "bisam-log": {"phi": "log", "mu": 1.0},
}
SHARED = ("sgd", "sam ρ 0.2")  # trajectories along which all methods are compared
LOSS, ERROR, WRONG, SILENT, HELD_LOSS, HELD_ERROR = MEASURES = (
    "loss", "error", "wrong", "silent", "held_loss", "held_error",
)  # fmt: skip
Draws = dict[int, list[float]]  # draw → values over training


def own_radius(method: str, rho: float) -> float:
    return 10 * rho if method == "asam" else rho


def jobs(epochs: int, draws: range) -> Iterator[harness.Record]:
    """One for each trajectory; `probes`: the perturbations tried along it, as method, radii, Euclidean or not."""
    everything = [(method, RADII, True) for method in ASCENTS]
    for draw in draws:
        for noise in NOISES:
            yield {**harness.job("path", "sgd", noise, draw, {"method": "sgd"}, epochs), "probes": everything}
            for method in METHODS:
                for rho in RADII:
                    arm, radius = f"{method} ρ {own_radius(method, rho):g}", own_radius(method, rho)
                    made = harness.job("path", arm, noise, draw, {"method": method, "optim.rho": radius}, epochs)
                    yield {**made, "probes": everything if arm in SHARED else [(method, (radius,), False)]}


def one(job: harness.Record) -> str:
    """A run, probed after every epoch, as a line of JSON."""
    import torch

    from bisam_ray.config import resolve
    from bisam_ray.optim import Perturbation, cross_entropy, frozen_statistics, lower_bound
    from bisam_ray.optim.perturbation import global_norm
    from bisam_ray.training import data, engine, models

    draw = {"seed": job["draw"], "data.split_seed": job["draw"], "data.noise_seed": job["draw"]}
    config = resolve({"data.label_noise": job["noise"], "train.epochs": job["epochs"]}, job["layer"], draw)
    splits = data.load(config.data)
    fit, held = splits.fitting(False)[0], splits.test
    batches = data.Stream(len(fit), config.data.batch_size, data.mixed(job["draw"], 99))  # not those it trains on
    model = models.build("cnn", tuple(fit.x.shape[1:]), splits.classes).to(memory_format=torch.channels_last)
    params = list(model.parameters())
    balls = {geometry: Perturbation(params, geometry) for geometry in ("l2", "adaptive")}

    def losses(part: data.Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy and error of every example."""
        with torch.no_grad():
            logits = model(part.x)
        return cross_entropy(logits, part.y, reduction="none"), (logits.argmax(-1) != part.y).float()

    def ascent(method: str, part: data.Split) -> list[torch.Tensor]:
        bound = ASCENTS[method]
        logits = model(part.x)
        value = lower_bound(logits, part.y, **bound) if bound else cross_entropy(logits, part.y)
        return list(torch.autograd.grad(value, params))

    def rises(part: data.Split, before: Any) -> list[float]:
        """What the perturbation that a ball aims at raises."""
        changes = [
            [new - old for new, old in zip(losses(split), was, strict=True)]
            for split, was in zip((part, held), before, strict=True)
        ]
        (loss, error), (held_loss, held_error) = ([float(c.mean()) for c in pair] for pair in changes)
        wrong = float((changes[0][0] * before[0][1]).mean())
        return [loss, error, wrong, float(loss > 0 and error <= 0), held_loss, held_error]

    kept: dict[str, list[list[float]]] = {f"{m} {rho:g}": [] for m, radii, _ in job["probes"] for rho in radii}
    levels: list[list[float]] = []
    for record in engine.run(config):
        model.load_state_dict(record.state()["model"])
        model.train()
        with frozen_statistics(model):
            at_held = losses(held)
            for k in range(BATCHES):
                rows = batches.batch(BATCHES * record.epoch + k)
                part = data.Split(fit.x[rows], fit.y[rows])
                before = (losses(part), at_held)
                levels.append([float(v.mean()) for pair in before for v in pair])
                for method, radii, euclidean in job["probes"]:
                    a, ball = ascent(method, part), balls["adaptive" if method == "asam" else "l2"]
                    ball.aim(a, 1.0)
                    unit = float(global_norm(ball.epsilon())) if euclidean else 1.0
                    for rho in radii:
                        ball.aim(a, rho / unit)
                        with ball.there():
                            kept[f"{method} {rho:g}"].append(rises(part, before))
    line = {k: job[k] for k in ("stage", "arm", "noise", "draw")}
    named = {name: dict(zip(MEASURES, paired(rows), strict=True)) for name, rows in kept.items()}
    return json.dumps({**line, "level": paired(levels), "probes": named}, ensure_ascii=False)


def paired(rows: list[list[float]]) -> list[list[float]]:
    """For every measure, its means over the batches of every PAIR epochs."""
    size = BATCHES * PAIR
    return [
        [float(f"{fmean(column[i : i + size]):.3g}") for i in range(0, len(column), size)]
        for column in zip(*rows, strict=True)
    ]


def along(records: list[harness.Record], arm: str, noise: float, probe: str, measure: str) -> Draws:
    found = [r for r in records if (r["arm"], r["noise"]) == (arm, noise)]
    return {r["draw"]: r["probes"][probe][measure] for r in found}


def means(found: Draws, last: bool = False) -> dict[int, float]:
    """Over training, or over its last quarter."""
    return {d: fmean(v[len(v) * 3 // 4 :] if last else v) for d, v in found.items()}


def ratio(left: dict[int, float], right: dict[int, float]) -> tuple[float, float, float] | None:
    """Geometric mean of left / right over the draws and its 95 % interval; None where one is not positive."""
    if min(*left.values(), *right.values()) <= 0:
        return None
    mean, half = harness.interval(math.log(left[d] / right[d]) for d in left)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def shown(found: tuple[float, float, float] | None) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]" if found else "-"


HEAD = (
    f"  {'ρ':>4} {'perturbation':18}{'ΔL on B':>8}{'ΔE on B':>9}{'of wrong':>9}{'silent':>8}{'ΔL on H':>9}"
    f"{'ΔE on H':>9}   {'ΔL on B ÷ SAM':20}{'ΔE on B ÷ SAM':20}{'ΔE on H ÷ SAM':20}"
)


def row(records: list[harness.Record], arm: str, noise: float, name: str, base: tuple[str, str], last: bool) -> str:
    """One perturbation along one run; `base`: run and perturbation of SAM that it is divided by."""
    value = {m: means(along(records, arm, noise, name, m), last) for m in MEASURES}
    sam = {m: means(along(records, base[0], noise, base[1], m), last) for m in MEASURES}
    mean = {m: fmean(v.values()) for m, v in value.items()}
    method, rho = name.rsplit(" ", 1)
    text = f"  {rho:>4} {method:18}{mean[LOSS]:8.3f}{100 * mean[ERROR]:9.2f}{mean[WRONG] / mean[LOSS]:9.0%}"
    text += f"{mean[SILENT]:8.0%}{mean[HELD_LOSS]:9.3f}{100 * mean[HELD_ERROR]:9.2f}"
    if (arm, name) != base:
        text += "   " + "".join(f"{shown(ratio(value[m], sam[m])):20}" for m in (LOSS, ERROR, HELD_ERROR))
    return text.rstrip()


def tables(records: list[harness.Record]) -> list[str]:
    lines = []
    for noise in NOISES:
        for arm in SHARED:
            for last in (False, True):
                when = "last quarter of training" if last else "all of training"
                lines += ["", f"label noise {noise:.0%}, at the weights of the {arm} run, same length ρ; {when}", HEAD]
                for rho in RADII:
                    for method in ASCENTS:
                        lines.append(row(records, arm, noise, f"{method} {rho:g}", (arm, f"sam {rho:g}"), last))
        lines += ["", f"label noise {noise:.0%}, along each method's own run; all of training", HEAD]
        for rho in RADII:
            base = (f"sam ρ {rho:g}", f"sam {rho:g}")
            for method in METHODS:
                radius = f"{own_radius(method, rho):g}"
                lines.append(row(records, f"{method} ρ {radius}", noise, f"{method} {radius}", base, False))
    return lines


def verdict(records: list[harness.Record]) -> list[str]:
    """The two claims, in sentences; a case is one of two runs × three radii."""
    lines = ["", "What was found (cases: the SGD run's weights at ρ " + ", ".join(f"{r:g}" for r in RADII)]
    lines[-1] += ", then the SAM run's; differences by 95 % intervals, paired, not corrected)"
    cases = [(arm, rho) for arm in SHARED for rho in RADII]
    for noise in NOISES:

        def of(method: str, measure: str, noise: float = noise) -> list[dict[int, float]]:
            return [means(along(records, arm, noise, f"{method} {rho:g}", measure)) for arm, rho in cases]

        raised = [harness.interval(found.values()) for found in of("sam", ERROR)]
        lines.append(
            f"Label noise {noise:.0%}: SAM's perturbation raises the error of its batch in "
            f"{sum(mean > half for mean, half in raised)} of {len(cases)} cases, by "
            f"{', '.join(f'{100 * mean:.1f}' for mean, _ in raised)} points; silent are "
            f"{', '.join(f'{fmean(found.values()):.0%}' for found in of('sam', SILENT))} of them."
        )
        for method in (m for m in ASCENTS if m != "sam"):
            for measure, what in (
                (LOSS, "loss of the batch"),
                (ERROR, "error of the batch"),
                (HELD_ERROR, "error of H"),
            ):
                found = [harness.paired(*pair) for pair in zip(of(method, measure), of("sam", measure), strict=True)]
                more, less = sum(m > half for m, half in found), sum(-m > half for m, half in found)
                unit = "" if measure == LOSS else " points"
                shown = ", ".join(f"{m:+.3f}" if measure == LOSS else f"{100 * m:+.1f}" for m, _ in found)
                lines.append(
                    f"  {method:18}{what:18} more than SAM in {more}, less in {less}, no difference shown in "
                    f"{len(found) - more - less}: {shown}{unit}"
                )
    return lines


def figure(records: list[harness.Record], rho: float = 0.2, arm: str = "sgd") -> Any:
    """Over training, at the weights of the SGD run: what each perturbation raises, and from which examples."""
    plt = harness.plotting()
    colours = {**harness.COLOURS, SHARP: "#56b4e9"}
    markers = {**harness.MARKERS, SHARP: "D"}
    panels = (
        ("loss of the batch rises by", lambda v: v[LOSS]),
        ("error of the batch rises by, points", lambda v: [100 * x for x in v[ERROR]]),
        ("part of the loss's rise from\nexamples that were wrong already, %",
         lambda v: [100 * w / loss for w, loss in zip(v[WRONG], v[LOSS], strict=True)]),
        ("error of held-out data rises by, points", lambda v: [100 * x for x in v[HELD_ERROR]]),
    )  # fmt: skip
    fig, axes = plt.subplots(2, len(panels), figsize=(13, 6.4), layout="constrained", sharex=True)
    for line, noise in zip(axes, NOISES, strict=True):
        for ax, (title, value) in zip(line, panels, strict=True):
            for method in ASCENTS:
                runs = [r for r in records if (r["arm"], r["noise"]) == (arm, noise)]
                curves = [value(r["probes"][f"{method} {rho:g}"]) for r in runs]
                epochs = [PAIR * (i + 0.75) for i in range(len(curves[0]))]
                rows = [harness.interval(at) for at in zip(*curves, strict=True)]
                low, high = ([m + s * h for m, h in rows] for s in (-1, 1))
                ax.fill_between(epochs, low, high, color=colours[method], alpha=0.15, linewidth=0)
                size = 2.2 if method == "sam" else 1.0  # tanh lies upon it
                style = {"linewidth": 1.2 * size, "markersize": 4 * size**0.7, "markeredgewidth": 0}
                ax.plot(
                    epochs, [m for m, _ in rows], color=colours[method], marker=markers[method], label=method, **style
                )
            ax.set_xticks([0, EPOCHS // 2, EPOCHS])
            ax.yaxis.set_major_locator(plt.MaxNLocator(4))
            ax.axhline(0, color="black", linewidth=0.6)
            if noise == NOISES[0]:
                ax.set_title(title, fontsize=9)
            else:
                ax.set_xlabel("epoch")
        line[0].set_ylabel(f"label noise {noise:.0%}")
    harness.legend(fig, [axes[0][0]], len(ASCENTS))
    fig.suptitle(
        f"Perturbations of the same length ρ = {rho:g} at the same weights, those of an SGD run; 95 % intervals over "
        f"{len(DRAWS)} draws",
        fontsize=10,
    )
    return fig


def main() -> None:
    options = harness.options(__doc__)
    if not options.report:
        harness.make(RECORDS, jobs(EPOCHS, DRAWS), options.processes, work=one)
    records = harness.load(RECORDS)
    text = [
        "Rises of loss and error (points), on the batch B that the perturbation is made from and on held-out data H;",
        "of wrong: part of ΔL on B from examples that were wrong already; silent: raises the loss of B, not its error;",
        "÷ SAM: geometric mean of each draw's ratio, 95 % t-interval ('-': not positive in every draw), uncorrected.",
        *tables(records),
        *verdict(records),
        "",
        f"digits, CNN, {EPOCHS} epochs, {harness.where(len({r['draw'] for r in records}))} draws",
    ]
    harness.save("failure_mode", "\n".join(text), figure(records))


if __name__ == "__main__":
    main()
