"""How much the radius matters: a smooth curve of validation accuracy over ρ, and the plateau on which any ρ will do.

Used are the trials of a search that ran to the end, controls included. Trials stopped early have no final value, and
would be low for that alone; replicates of a fixed radius have other draws of the data. What else was searched (µ, α, …)
is as the searcher chose it, mostly good values: it is averaged over, and adds to the scatter about the curve.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .early import full_length
from .ledger import Run, Study
from .selection import regret
from .series import number, val_accuracy
from .wording import percent

if TYPE_CHECKING:
    import numpy as np

LEAST = 6  # trials below which no curve is drawn
NARROW = 2.0  # largest ρ over smallest, below which there is no range to speak of
MOST = 200  # trials that are fitted; of more, every k-th in the order of ρ
GRID = 81  # points of the curve, even in log ρ
DRAWS = 1_000  # of the curve, from its posterior
FLOOR = 8.0  # lower than this many s below the best, an accuracy says no more than "bad"
AMPLITUDE = (1.0, 100.0)  # bounds of the curve's variance, over s²
LENGTH = (0.7, 3.0)  # bounds of its length scale in ln ρ: what doubles the radius is close, a hundredfold is far
NOISE = (0.5, 2.0)  # bounds of the scatter's variance, over s²


class Point(NamedTuple):
    """The curve at one radius: posterior mean, and where 95 % of its values lie (accuracies; no run's noise in it)."""

    rho: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Plateau:
    """The radii around the best at which one loses less than a run's noise; an open end is that of what was tried."""

    low: float
    high: float
    open_low: bool
    open_high: bool


@dataclass(frozen=True)
class Sensitivity:
    """Accuracy over the radius, of one method in one arm's search.

    curve    empty when there is none to draw; `reason` says why, as it does when there is no plateau
    noise    standard deviation s of one run's accuracy, from selection.regret, or else as fitted (NaN: no curve)
    best     the radius with the highest mean (NaN: no curve)
    floor    accuracies below it were raised to it before the fit: there the curve means "at most this"
    """

    arm: str
    method: str
    n: int
    curve: list[Point]
    plateau: Plateau | None
    noise: float = math.nan
    best: float = math.nan
    floor: float = -math.inf
    reason: str | None = None
    others: tuple[str, ...] = ()
    """The other searched parameters."""

    @property
    def sentence(self) -> str:
        """What to remember, in a sentence."""
        if self.plateau is None:
            return self.reason or ""
        at = self.plateau
        low = f"{at.low:.2g}" + (" (the smallest tried)" if at.open_low else "")
        high = f"{at.high:.2g}" + (" (the largest tried)" if at.open_high else "")
        told = f"Any ρ in [{low}, {high}] is within noise: it loses less than {100 * self.noise:.1f} points"
        return f"{told}, what one run differs by from another ({self.n} full-length trials)."


def sensitivities(study: Study) -> list[Sensitivity]:
    """One for each arm and method whose fixed radius was searched, in the order in which they began.

    Of a replayed path ρ is the peak, which says nothing of fixed radii.
    """
    trials = [run for run in study.of(phase="search") if radius(run) > 0]
    trials = [run for run in trials if run.begin.get("radius_policy") != "replayed"]
    return [sensitivity(study, *pair) for pair in dict.fromkeys((run.arm, method(run)) for run in trials)]


def sensitivity(study: Study, arm: str, of: str) -> Sensitivity:
    """The curve and the plateau of one method in one arm's search, or the reason why there is none."""
    trials = [run for run in full_length(study, arm) if radius(run) > 0 and method(run) == of]
    rhos, values = [radius(run) for run in trials], [val_accuracy(run) for run in trials]
    keys = dict.fromkeys(key for run in trials for key in run.begin.get("suggested") or {})
    others = tuple(key for key in keys if key not in ("optim.rho", "method"))
    n = len(trials)
    if n < LEAST:
        reason = f"{n} full-length trial{'' if n == 1 else 's'}: too few for a curve over ρ, which takes {LEAST}."
        return Sensitivity(arm, of, n, [], None, reason=reason, others=others)
    if max(rhos) < NARROW * min(rhos):
        reason = f"All full-length trials have ρ between {min(rhos):.2g} and {max(rhos):.2g}: too narrow a range."
        return Sensitivity(arm, of, n, [], None, reason=reason, others=others)
    known = regret(study, arm)
    if known is None and max(values) == min(values):
        reason = f"All {n} full-length trials have the same {study.score}, {percent(values[0])}."
        return Sensitivity(arm, of, n, [], None, reason=reason, others=others)
    curve, plateau, noise, floor = fitted(rhos, values, known.noise if known else None)
    best, reason = max(curve, key=lambda point: point.mean).rho, ""
    if plateau is None:
        reason = f"The {n} full-length trials do not tell which ρ is good: even the best, {best:.2g}, may lose more "
        reason += f"than a run's noise of {100 * noise:.1f} points."
    return Sensitivity(arm, of, n, curve, plateau, noise, best, floor, reason or None, others)


def prepare() -> None:
    """Import what `fitted` needs."""
    import sklearn.gaussian_process  # noqa: F401


def fitted(
    rhos: Sequence[float], values: Sequence[float], noise: float | None
) -> tuple[list[Point], Plateau | None, float, float]:
    """Gaussian process regression of accuracy y on x = ln ρ, y = f(x) + ε, ε ~ N(0, σ²), and the plateau of f.

    f has a squared-exponential kernel; amplitude, length scale and σ² maximise the marginal likelihood within bounds
    that s sets. The plateau is the interval around argmax E[f] where the expected loss E[max f − f(x)] < s, over draws
    from the posterior: where little is known the loss is large, so that a gap in what was tried ends it. The
    curve ends with the smallest and the largest ρ tried.

    In simulated searches (100 each; s = .017, told as .8–1.4 times that; humps, narrow and wide, collapse at large ρ,
    saturation, steep walls) every ρ of the stated plateau truly lost < 2 s in 87 % with 6 trials, 91 % with 9, 94 %
    with 16 and 97 % with 30, at worst (steep walls) in 69, 83, 88 and 92 %. The true optimum lay in it in 89, 94, 95
    and 97 %, at worst (collapse) in 72, 86, 88 and 88 %.

    Args:
        rhos: radii > 0.
        values: accuracies.
        noise: s; None: unknown, then σ is taken for it.

    Returns:
        Curve; plateau (None: even at argmax E[f] the expected loss is ≥ s); s; floor.
    """
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    order = np.argsort(rhos, kind="stable")
    order = order[:: math.ceil(len(order) / MOST)]
    x, y = np.log(np.asarray(rhos, float)[order]), np.asarray(values, float)[order]
    unit = noise or float(y.std()) / 2
    floor = float(y.max()) - FLOOR * unit
    y = np.maximum(y, floor)
    mean, z = float(y.mean()), (y - y.mean()) / unit
    least, most = AMPLITUDE
    kernel = ConstantKernel(float(np.clip(z.var(), 1.1 * least, 0.9 * most)), AMPLITUDE) * RBF(1.5, LENGTH)
    scatter = WhiteKernel(1.0, NOISE if noise else (0.01, 4.0))
    with warnings.catch_warnings():  # parameters at their bounds are expected
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = GaussianProcessRegressor(kernel + scatter, n_restarts_optimizer=1, random_state=0).fit(x[:, None], z)
    curved, scattered = found.kernel_.k1, float(found.kernel_.k2.noise_level)
    smooth = GaussianProcessRegressor(curved, alpha=scattered, optimizer=None).fit(x[:, None], z)
    grid = np.linspace(x.min(), x.max(), GRID)
    middle, covariance = smooth.predict(grid[:, None], return_cov=True)
    half = 1.96 * np.sqrt(np.maximum(np.diag(covariance), 0))
    s = noise or math.sqrt(scattered) * unit

    rho, middle_y, half_y = np.exp(grid), mean + unit * middle, unit * half
    rows = zip(rho, middle_y, middle_y - half_y, middle_y + half_y, strict=True)
    curve = [Point(*map(float, row)) for row in rows]
    within = unit * expected_loss(middle, covariance) < s
    best = int(middle.argmax())
    if not within[best]:
        return curve, None, s, floor
    first = last = best
    while first > 0 and within[first - 1]:
        first -= 1
    while last < GRID - 1 and within[last + 1]:
        last += 1
    return curve, Plateau(float(rho[first]), float(rho[last]), first == 0, last == GRID - 1), s, floor


def expected_loss(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """E[max f − f(x)] at every point of a grid, by draws of f; the generator's seed is 0."""
    import numpy as np

    sizes, directions = np.linalg.eigh(covariance)
    root = directions * np.sqrt(np.maximum(sizes, 0))
    draws = mean[:, None] + root @ np.random.default_rng(0).standard_normal((len(mean), DRAWS))
    return (draws.max(0) - draws).mean(1)


def radius(run: Run) -> float:
    """The radius that the search suggested; NaN: it searched none."""
    rho = number((run.begin.get("suggested") or {}).get("optim.rho"))
    return rho if 0 < rho < math.inf else math.nan


def method(run: Run) -> str:
    """The method of a trial: a space may search it, too."""
    return run.begin.get("method") or (run.begin.get("config") or {}).get("method") or run.arm
