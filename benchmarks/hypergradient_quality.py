"""How good are the cheap curvatures? Each hypergradient of a run, computed four ways from the same batches.

    python benchmarks/hypergradient_quality.py           about 6 minutes on 2 quiet cores

Along a run of LETS (20 epochs of digits; the learned radius follows `exact`), every step's dJ/d log ρ is computed with
curvature exact, finite_difference, secant and diagonal, and with the `response`: how h really changes when log ρ moves
by ±0.1. A network with ReLU and max pooling has kinks: h jumps there, which its second derivative does not know.
Printed, against exact and against the response: share of equal signs / correlation / median ratio of sizes, over all
steps of draws 0–3; and how much of the response is signal: its mean over a run divided by its standard deviation, times
√steps (a t-statistic), with the share of positive gaps. A positive hypergradient makes ρ smaller.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import platform
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

WAYS = ("exact", "response", "finite_difference", "secant", "diagonal")
METHODS = ("lets-sam", "lets-asam", "lets-bisam-tanh", "lets-bisam-log")
DRAWS, EPOCHS, NOISES = range(4), 20, (0.0, 0.4)
RESULT = Path(__file__).parent / "results" / "hypergradient_quality.txt"


def watched(config: Any, **parts: Any) -> list[tuple[float, ...]]:
    """Run the configuration; (gap, and dJ/d log ρ in each of the WAYS) of every step."""
    from bisam_ray.optim import LETS
    from bisam_ray.training import engine

    seen: list[tuple[float, ...]] = []

    class Watching(LETS):
        """LETS with curvature exact, which also computes the others."""

        def needs_gradient(self, ascends: bool = True) -> bool:
            return True

        def on_ascent(self, loss: Any, gradient: Any, ascends: bool = True) -> Any:
            rho = super().on_ascent(loss, gradient, ascends)
            self.g = [t.clone() for t in gradient]
            return rho

        def on_perturbed(self, perturbed: Any, share: float = 1.0) -> None:
            epsilon = perturbed.epsilon()
            exact = list(perturbed.product(epsilon))
            with torch.no_grad():
                h = [t.detach() for t in perturbed.h]
                up, down = self.moved(epsilon, 0.1), self.moved(epsilon, -0.1)
                norms = [torch.linalg.vector_norm(torch.cat([t.flatten() for t in v])) for v in (self.params, epsilon)]
                delta = float(2**-11.5 * (1 + norms[0]) / norms[1].clamp_min(1e-12))  # as Step.product takes it
                near = self.moved(epsilon, delta)
                self.along = [
                    exact,
                    [(a - b) / 0.2 for a, b in zip(up, down, strict=True)],
                    [(a - b) / delta for a, b in zip(near, h, strict=True)],
                    [a - b for a, b in zip(h, self.g, strict=True)],
                    [a * a * e for a, e in zip(h, epsilon, strict=True)],
                ]

        def moved(self, epsilon: list[Tensor], by: float) -> Any:
            """∇L_B(θ + (1 + by) ε); to be asked at θ + ε."""
            weights = [p.detach().clone() for p in self.params]
            torch._foreach_add_(self.params, [by * e for e in epsilon])
            _, found = self.gradient_of_the_batch()
            torch._foreach_copy_(self.params, weights)
            return found

        gradient_of_the_batch: Callable[[], Any]

        def finish(self, loss: Tensor, gradient: Any) -> None:
            assert self.hyper is not None
            assert self.curved is not None
            q = [torch.stack([(v * g).sum() for v, g in zip(c, gradient, strict=True)]).sum() for c in self.curved]
            gap = self.hyper[0] - loss
            slopes = -gap * (self.hyper[1] - torch.stack(q))
            seen.append((float(gap), *slopes.tolist()))
            self.hyper, self.curved = (self.hyper[0], self.hyper[1][:1]), self.curved[:1]
            super().finish(loss, gradient)

    original = engine.LETS, engine.schedule
    try:
        engine.LETS = Watching  # type: ignore[misc]

        def schedule(config: Any, params: Any, base: Any, evaluate: Any, radius: Any, **parts: Any) -> Any:
            step = original[1](config, params, base, evaluate, radius, **parts)
            here: list[Any] = []

            def remembering(batch: Any) -> Any:
                here[:] = [batch]
                return evaluate(batch)

            step.evaluate = remembering
            radius.gradient_of_the_batch = lambda: step.gradient(here[0])
            return step

        engine.schedule = schedule
        for _ in engine.run(config):
            pass
    finally:
        engine.LETS, engine.schedule = original  # type: ignore[misc]
    return seen


def one(case: tuple[str, float, float, int]) -> list[tuple[float, ...]]:
    from bisam_ray.config import resolve

    method, noise, rho, draw = case
    rho *= 10 if "asam" in method else 1
    layer = {"method": method, "optim.rho": rho, "lets.curvature": "exact", "lets.rho_max": 10.0}
    draws = {"seed": draw, "data.split_seed": draw, "data.noise_seed": draw}
    return watched(resolve({"data.label_noise": noise, "train.epochs": EPOCHS}, layer, draws))


def correlation(x: list[float], y: list[float]) -> float:
    return float(torch.corrcoef(torch.tensor([x, y], dtype=torch.float64))[0, 1])


def main() -> None:
    cases = list(product(METHODS, NOISES, (0.05, 0.2), DRAWS))
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        runs = dict(zip(cases, pool.map(one, cases, chunksize=1), strict=True))
    lines = [
        f"{datetime.date.today()}  digits, CNN, {EPOCHS} epochs, n = {len(DRAWS)} draws, {os.cpu_count()} CPUs "
        f"{platform.machine()}; equal signs / correlation / scale",
    ]
    for against in ("exact", "response"):
        others = [w for w in WAYS if w != against]
        lines += ["", f"against {against:8} noise   ρ₀  " + " ".join(f"{w:>19}" for w in others)]
        for method, noise, rho in product(METHODS, NOISES, (0.05, 0.2)):
            rows = [row for draw in DRAWS for row in runs[method, noise, rho, draw] if row[1] != 0]
            truth = [row[1 + WAYS.index(against)] for row in rows]
            cells = [compared(truth, [row[1 + WAYS.index(w)] for row in rows]) for w in others]
            start = rho * (10 if "asam" in method else 1)
            lines.append(f"{method:16} {noise:5.0%} {start:4g}  " + " ".join(cells))
    lines += [
        "",
        "signal           noise   ρ₀   t of exact, per run             t of the response, per run      gap > 0",
    ]
    for method, noise, rho in product(METHODS, NOISES, (0.05, 0.2)):
        each = [runs[method, noise, rho, draw] for draw in DRAWS]
        ts = ["  ".join(f"{t_statistic([row[i] for row in run]):+6.1f}" for run in each) for i in (1, 2)]
        gaps = fmean(row[0] > 0 for run in each for row in run)
        lines.append(
            f"{method:16} {noise:5.0%} {rho * (10 if 'asam' in method else 1):4g}   {'  '.join(ts)}   {gaps:.0%}"
        )
    text = "\n".join(lines)
    print(text)
    RESULT.write_text(text + "\n", encoding="utf-8")


def compared(truth: list[float], other: list[float]) -> str:
    signs = fmean((a > 0) == (b > 0) for a, b in zip(truth, other, strict=True))
    scale = median(abs(b / a) for a, b in zip(truth, other, strict=True) if a)
    return f"{signs:.2f} / {correlation(truth, other):5.2f} / {scale:.1g}".rjust(19)


def t_statistic(values: list[float]) -> float:
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean() / x.std() * len(x) ** 0.5)


if __name__ == "__main__":
    main()
