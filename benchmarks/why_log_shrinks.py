"""Why does LETS raise the radius of SAM and of BiSAM with φ = tanh, and hardly that of φ = log?

    python benchmarks/why_log_shrinks.py        about 3 minutes on 2 quiet cores

One trajectory, three ascent directions: while SAM trains (ρ = .2, warm-up a quarter, 20 epochs, 40 % label noise),
every step asks at the same weights, for the same batches B, V, B', what each objective's own u would have told LETS:

    dJ/d log ρ = −Δ · S · (h((1 + .1)ρu) − h((1 − .1)ρu))/.2 · (∇L_V − ∇L_B')      h on B, Δ and gradients at θ⁺

and which examples of B it comes from: those whose label was flipped, or the clean ones. Mean over the steps of each
quarter of training and draws 0–7, with a 95 % t-interval over the draws; a negative one raises ρ. Also the share of the
squared ascent gradient that flipped examples have, and the cosine of u with SAM's.
"""

from __future__ import annotations

import datetime
import math
import multiprocessing
import os
import platform
from statistics import fmean
from typing import Any

import harness
import torch
from torch import Tensor

DRAWS, EPOCHS, NOISE, RHO, LR, MOMENTUM, QUARTERS = range(8), 20, 0.4, 0.2, 0.05, 0.9, 4
OBJECTIVES = {"cross entropy (SAM)": None, "tanh, µ 10, α .1": "tanh", "log, µ 1": "log"}


def one(draw: int) -> list[list[dict[str, float]]]:
    """Per quarter of training and objective, means over its steps."""
    from bisam_ray.config import resolve
    from bisam_ray.optim import Perturbation, cross_entropy, frozen_statistics, lower_bound
    from bisam_ray.optim.perturbation import dot, global_norm
    from bisam_ray.training import data, models

    torch.set_num_threads(1)
    settings = {"data.split_seed": draw, "data.noise_seed": draw}
    splits = data.load(resolve({"data.label_noise": NOISE}, settings).data)
    clean = data.load(resolve(settings).data).train.y
    flipped = splits.train.y != clean
    torch.manual_seed(draw)
    model = models.build("cnn", (1, 8, 8), 10).to(memory_format=torch.channels_last).train()
    params = list(model.parameters())
    sgd = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, weight_decay=5e-4)
    steps = EPOCHS * (1000 // 64)
    train, hyper = data.Stream(850, 64, data.mixed(draw, 3)), data.Stream(150, 64, data.mixed(draw, 4))
    ball = Perturbation(params)

    def gradient(x: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        losses = cross_entropy(model(x), y, reduction="none")
        loss = (losses if mask is None else losses * mask).mean()
        return loss.detach(), torch.autograd.grad(loss, params)

    def ascent(phi: str | None, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Any:
        logits = model(x)
        if phi is None:
            values = cross_entropy(logits, y, reduction="none")
        else:
            values = lower_bound(logits, y, phi, reduction="none")  # type: ignore[arg-type]
        return torch.autograd.grad((values if mask is None else values * mask).mean(), params)

    found: list[list[list[dict[str, float]]]] = [[[] for _ in OBJECTIVES] for _ in range(QUARTERS)]
    for step in range(steps):
        for group in sgd.param_groups:
            group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows, after = train.batch(step), train.batch(step + 1)
        x, y, wrong = splits.train.x[rows], splits.train.y[rows], flipped[rows].float()
        rho = RHO * min(1.0, step / (0.25 * steps))
        model(x)  # the statistics of the step, at its weights
        with frozen_statistics(model):
            seen, sam = [], None
            for phi in OBJECTIVES.values():
                a = ascent(phi, x, y)
                sam = a if sam is None else sam
                part = ascent(phi, x, y, wrong)
                entry = {
                    "flipped share of ‖a‖²": float(dot(part, a) / dot(a, a)),
                    "cosine with SAM": float(dot(a, sam) / global_norm(a) / global_norm(sam)),
                }
                answers = []
                for mask in (wrong, 1 - wrong):
                    sides = []
                    for scale in (1.1, 0.9):
                        ball.aim(a, scale * rho)
                        with ball.there():
                            sides.append(gradient(x, y, mask)[1])
                    answers.append([(u - d) / 0.2 for u, d in zip(*sides, strict=True)])
                seen.append((entry, answers))
            ball.aim(sam, rho)
            with ball.there():
                _, h = gradient(x, y)
            for p, g in zip(params, h, strict=True):
                p.grad = g
            sgd.step()
            held = hyper.batch(step)
            loss_v, at_v = gradient(splits.hyper.x[held], splits.hyper.y[held])
            loss_b, at_b = gradient(splits.train.x[after], splits.train.y[after])
        q = [v - b for v, b in zip(at_v, at_b, strict=True)]
        for i, (entry, answers) in enumerate(seen):
            parts = [-float(loss_v - loss_b) * sgd.param_groups[0]["lr"] * float(dot(d, q)) for d in answers]
            entry.update({"flipped": parts[0], "clean": parts[1], "all": sum(parts)})
            found[step * QUARTERS // steps][i].append(entry)
    return [[{k: sum(e[k] for e in es) / len(es) for k in es[0]} for es in quarter] for quarter in found]


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        runs = pool.map(one, DRAWS, chunksize=1)
    lines = [
        f"{datetime.date.today()}  digits, {NOISE:.0%} label noise, CNN, SAM at ρ = {RHO}, n = {len(DRAWS)} draws, "
        f"{os.cpu_count()} CPUs {platform.machine()}",
        f"{'quarter':8}{'ascent objective':22}{'10⁵ dJ/d log ρ [95 %]':28}{'of clean':>22}{'of flipped':>22}"
        f"{'flipped share of a':>20}{'cosine':>8}",
    ]
    for quarter in range(QUARTERS):
        for i, name in enumerate(OBJECTIVES):
            cells = []
            for key in ("all", "clean", "flipped"):
                mean, half = harness.interval(1e5 * run[quarter][i][key] for run in runs)
                cells.append(f"{mean:+7.2f} [{mean - half:+.2f}, {mean + half:+.2f}]")
            shown = ("flipped share of ‖a‖²", "cosine with SAM")
            share, cosine = (fmean(run[quarter][i][k] for run in runs) for k in shown)
            lines.append(
                f"{quarter + 1:<8}{name:22}{cells[0]:28}{cells[1]:>22}{cells[2]:>22}{share:20.2f}{cosine:8.2f}"
            )
    text = "\n".join(lines)
    print(text)
    (harness.RESULTS / "why_log_shrinks.txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
