"""What a radius does over the course of a run, on development draws of digits with 40 % label noise.

    python benchmarks/radius_over_training.py            about 3 minutes on one core

1. Fixed radii, with and without warm-up: validation accuracy after 2, 5, 10 and 20 epochs. What an early stopping
   rule sees early, against what it should have waited for.
2. Learned radii, from several ρ₀ and under two upper bounds: where ρ ends, and the gap L_V − L_B' that drives it.

Mean over seeds 0–3 (seed, split_seed and noise_seed together); validation only, test is not read.
"""

from __future__ import annotations

import datetime
from statistics import fmean, stdev

from bisam_ray.config import resolve
from bisam_ray.training import engine

SEEDS, EPOCHS = 4, 20


def runs(layer: dict) -> list[list[dict[str, float]]]:
    """Metrics per epoch, one list per seed."""
    found = []
    for seed in range(SEEDS):
        draw = {"seed": seed, "data.split_seed": seed, "data.noise_seed": seed}
        config = resolve({"data.label_noise": 0.4, "train.epochs": EPOCHS}, layer, draw)
        found.append([record.metrics for record in engine.run(config)])
    return found


def main() -> None:
    print(f"{datetime.date.today()}  digits, 40 % label noise, {EPOCHS} epochs, n = {SEEDS}")
    print("\nvalidation accuracy after epoch      2      5     10     20 (sd)")
    for method in ("sam", "bisam-tanh"):
        for warmup in (0, 0.25):
            for rho in (0.05, 0.1, 0.2, 0.6, 1.2):
                curves = runs({"method": method, "optim.rho": rho, "optim.warmup": warmup})
                at = {e: [curve[e - 1]["val/accuracy"] for curve in curves] for e in (2, 5, 10, 20)}
                row = "  ".join(f"{fmean(values):.3f}" for values in at.values())
                print(f"  {method:11} ρ {rho:4}  warm-up {warmup:4}   {row} ({stdev(at[20]):.3f})", flush=True)
    print("\nlearned radius                        ρ at the end, per seed         gap, first and last epoch   val")
    for method in ("lets-sam", "lets-bisam-tanh", "lets-bisam-log"):
        for rho, bound in ((0.05, 1.0), (0.2, 1.0), (0.2, 5.0)):
            curves = runs({"method": method, "optim.rho": rho, "lets.rho_max": bound})
            ends = " ".join(f"{curve[-1]['sam/rho']:.2f}" for curve in curves)
            first, last = (fmean(curve[i]["lets/gap"] for curve in curves) for i in (0, -1))
            val = fmean(curve[-1]["val/accuracy"] for curve in curves)
            print(f"  {method:16} ρ₀ {rho:4}  ≤ {bound:g}   {ends:28} {first:+.2f} {last:+.2f}   {val:.3f}", flush=True)


if __name__ == "__main__":
    main()
