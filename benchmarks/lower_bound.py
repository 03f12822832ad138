"""What the lower bound of the 0-1 loss costs, beside the same bound written row by row.

    python benchmarks/lower_bound.py                     all φ, 10 and 1,000 classes, about half a minute on 1 core
    python benchmarks/lower_bound.py --rounds 200 --device cuda

A call is the value and its gradient with respect to the logits. The row-by-row form loops over the batch in Python
and takes margins, φ, exp, sum and log of each row in turn, as published code does. In every round each form makes its
calls, in turn; a ratio compares two times of the same round, so that a machine whose speed drifts does not decide.
Printed: the median time of both, the median ratio, its quartiles, and the bar it is held to.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bisam_ray.optim.losses import BOUNDS, GAMMA, Phi, lower_bound

PHI: dict[Phi, Callable[[Tensor, float], Tensor]] = {
    "tanh": lambda x, alpha: torch.tanh(alpha * x),
    "log": lambda x, alpha: 1 - torch.log(1 + torch.exp(GAMMA - x)),
    "ramp": lambda x, alpha: torch.clip(alpha * x, -1, 1),
    "erf": lambda x, alpha: torch.erf(math.sqrt(math.pi) / 2 * alpha * x),
}
BATCH, ALPHA = 128, 0.1
CLASSES = {10: (None, 20), 1000: (1 / 8, 10)}  # bar of ours / row by row, calls of ours in a round (row by row: 1)


def by_rows(logits: Tensor, target: list[int], phi: Phi, mu: float) -> Tensor:
    """(1/n) Σ_i [(1/µ) log Σ_j exp(µ φ(f_ij − f_iy)) − (log K)/µ], one row at a time."""
    total = logits.new_zeros(())
    for row, label in zip(logits, target, strict=True):
        margins = row - row[label]
        total = total + torch.log(torch.exp(mu * PHI[phi](margins, ALPHA)).sum()) / mu
    return total / len(target) - math.log(logits.shape[1]) / mu


def measure(phi: Phi, classes: int, rounds: int, calls: int, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds a call, one per round: ours, row by row."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(BATCH, classes, generator=generator)).to(device).requires_grad_()
    target = torch.randint(classes, (BATCH,), generator=generator).to(device)
    labels, mu = target.tolist(), BOUNDS[phi].mu
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def ours() -> tuple[Tensor, Tensor]:
        value = lower_bound(logits, target, phi, mu, ALPHA)
        return value.detach(), torch.autograd.grad(value, logits)[0]

    def rows() -> tuple[Tensor, Tensor]:
        value = by_rows(logits, labels, phi, mu)
        return value.detach(), torch.autograd.grad(value, logits)[0]

    def seconds(call: Callable[[], object], times: int) -> float:
        wait()
        began = time.perf_counter()
        for _ in range(times):
            call()
        wait()
        return (time.perf_counter() - began) / times

    torch.testing.assert_close(ours(), rows(), rtol=1e-3, atol=1e-6)  # the same number, or no comparison
    fast, slow = [], []
    for _ in range(rounds):
        fast.append(seconds(ours, calls))
        slow.append(seconds(rows, 1))
    return fast, slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    hardware = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{os.cpu_count()} CPUs {platform.machine()}, 1 thread"
    )
    print(f"{datetime.date.today()}  {hardware}  torch {torch.__version__}  batch {BATCH}")
    for classes, (bar, calls) in CLASSES.items():
        print(f"{classes} classes: time of a call, ours and row by row; ours / row by row")
        for phi in PHI:
            fast, slow = measure(phi, classes, options.rounds, calls, device)
            low, middle, high = statistics.quantiles([a / b for a, b in zip(fast, slow, strict=True)], n=4)
            verdict = "" if bar is None else f"   bar {bar:.4f} {'met' if middle <= bar else 'MISSED'}"
            print(
                f"  {phi:5} {1e3 * statistics.median(fast):6.3f} ms {1e3 * statistics.median(slow):7.3f} ms"
                f"   {middle:.4f}  [{low:.4f}, {high:.4f}]  n={options.rounds}{verdict}",
                flush=True,
            )


if __name__ == "__main__":
    main()
