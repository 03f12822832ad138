"""Two other ways to the same run: through closures, and interrupted in the middle."""

from __future__ import annotations

import gc
import io
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bisam_ray.optim import LETS, RAPP, SAM, Lookahead, Sequential
from bisam_ray.optim.sampa import Parallel

from .network import BASES, METHODS, STEPS, Batch, Evaluation, batches, flat, network, same

WARMUP = {"warmup": 0.25, "total_steps": STEPS}


def listed(seed: int) -> list[Batch]:
    stream = batches(seed, 6)
    return [next(stream) for _ in range(STEPS + 1)]


TRAIN, HELD_OUT = listed(1), listed(2)


# -- closures


def closure(evaluate: Evaluation, batch: Batch, which: str = "descent") -> Callable[[], Tensor]:
    def run() -> Tensor:
        loss = getattr(evaluate(batch), which)
        loss.backward()
        return loss

    return run


LEARNED = {
    "next": {},
    "same": {"train_batch": "same", "gap_ema": 0.5},
    "validation": {"goal": "validation", **WARMUP},
    "every": {"every": 3, **WARMUP},
}


CLOSURES = list(product(METHODS, LEARNED))


@pytest.mark.parametrize("case", range(len(CLOSURES)), ids=["-".join(c) for c in CLOSURES])
def test_a_learned_radius_with_closures(case: int) -> None:
    """`SAM(lets=…)` is Sequential with LETS: the same radii, weights and losses at every step."""
    method, upper = CLOSURES[case]
    curvature = ("secant", "diagonal")[(case + case // 4) % 2]  # with each method and with each upper level twice
    objective, geometry, rho = METHODS[method]
    cls, options = BASES["momentum" if curvature == "secant" else "adam"]
    lets = {"curvature": curvature, "lr": 0.05, **LEARNED[upper]}
    ours, theirs = network(), network()
    opt = SAM(ours.parameters(), cls, rho=rho, adaptive=geometry == "adaptive", lets=lets, **options)
    params = list(theirs.parameters())
    base = cls(params, **options)
    step = Sequential(params, base, Evaluation(theirs, objective), LETS(params, base, rho, **lets), geometry=geometry)
    evaluate = Evaluation(ours, objective)
    for t in range(STEPS):
        stats = step(TRAIN[t], hyper=lambda t=t: HELD_OUT[t])
        ascent = {} if objective == "cross_entropy" else {"ascent_closure": closure(evaluate, TRAIN[t], "ascent")}
        loss = opt.step(closure(evaluate, TRAIN[t]), hyper_closure=closure(evaluate, HELD_OUT[t]), **ascent)
        same(loss, stats.perturbed_loss, f"loss at step {t}")
        same(opt.radius.rho, step.radius.rho, f"rho after step {t}")
        same(flat(ours), flat(theirs), f"parameters after step {t}")
    assert abs(float(opt.radius.rho) / rho - 1) > 0.002


# -- interrupted


def base(name: str, params: list[Tensor]) -> torch.optim.Optimizer:
    if name in BASES:
        cls, options = BASES[name]
        return cls(params, **options)
    wrapper = {"lookahead": Lookahead, "rapp": RAPP}[name]
    return wrapper(torch.optim.SGD(params, lr=0.1, momentum=0.8), every=5, outer_lr=0.5)


RUNS: dict[str, dict[str, Any]] = {
    "next": {},
    "next-every": {"lets": {"every": 4, "gap_ema": 0.5, **WARMUP}, "objective": "log"},
    "same": {"lets": {"train_batch": "same"}, "base": "adam", "geometry": "adaptive"},
    "groups-mu-alpha": {
        "lets": {"curvature": "exact", "groups": [0, 1, 0, 1], "learn": {"mu": 10.0, "alpha": 0.1}},
        "objective": "tanh",
    },
    "direction": {"every": 3, "between": "direction"},
    "descent": {"every": 3, "between": "descent", "base": "nesterov"},
    "plain": {"every": 3, "objective": "tanh"},
    "m-sharpness": {"scope": 3, "every": 3, "between": "direction", "base": "adamw"},
    "esam": {"geometry": "subset", "beta": 0.6, "gamma": 0.5, "lets": {"curvature": "diagonal"}},
    "lookahead": {"base": "lookahead"},
    "rapp": {"base": "rapp", "objective": "log"},
    "sampa": {"lam": 0.2, "base": "nesterov"},
    "sampa-bisam": {"lam": 0.2, "objective": "log", "base": "adam"},
}


class Whole:
    """A run with everything of it that is saved."""

    def __init__(self, options: dict[str, Any]) -> None:
        options = dict(options)
        objective, name = options.pop("objective", "cross_entropy"), options.pop("base", "momentum")
        lets = {"lr": 0.05, **options.pop("lets", {})}
        self.model: nn.Module = network()
        params = list(self.model.parameters())
        self.base = base(name, params)
        self.radius = LETS(params, self.base, 0.1, **lets)
        evaluate = Evaluation(self.model, objective, source=self.radius)
        self.step = (Parallel if "lam" in options else Sequential)(params, self.base, evaluate, self.radius, **options)

    def go(self, steps: range) -> list[Tensor]:
        """Weights and learned logarithms after every step."""
        seen = []
        for t in steps:
            following = {"following": lambda t=t: TRAIN[t + 1]} if isinstance(self.step, Parallel) else {}
            self.step(TRAIN[t], hyper=lambda t=t: HELD_OUT[t], **following)
            seen.append(torch.cat([flat(self.model), self.radius.log]))
        return seen

    def parts(self) -> list[Any]:
        return [self.model, self.base, self.radius, self.step]


@pytest.mark.parametrize("cut", [10, 13])
@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_same_run(name: str, cut: int) -> None:
    """Through a file and into fresh objects, with a hypergradient or an outer step pending: the same bits."""
    uninterrupted = Whole(RUNS[name]).go(range(20))
    first, saved = Whole(RUNS[name]), io.BytesIO()
    first.go(range(cut))
    torch.save([part.state_dict() for part in first.parts()], saved)
    saved.seek(0)
    resumed = Whole(RUNS[name])
    with torch.no_grad():
        for p in resumed.model.parameters():
            p.fill_(float("nan"))
    for part, state in zip(resumed.parts(), torch.load(saved, weights_only=True), strict=True):
        part.load_state_dict(state)
    for t, (found, expected) in enumerate(zip(resumed.go(range(cut, 20)), uninterrupted[cut:], strict=True), cut):
        assert torch.equal(found, expected), f"step {t}"


# -- memory

# copies of the parameters that outlive a step, beside parameters and base optimizer: w + ε always; S ⊙ d, which waits
# for the next batch; the gradient that later steps climb; SAMPa's k, and its a where that is another one
KEPT = {"same": 1, "next": 2, "plain": 2, "esam": 2, "direction": 3, "sampa": 3, "sampa-bisam": 4}


@pytest.mark.parametrize("name", KEPT)
def test_what_a_step_leaves_behind(name: str) -> None:
    """No copy of the parameters outlives a step but those that have a reason."""

    def alive() -> set[int]:
        gc.collect()
        return {o.data_ptr() for o in gc.get_objects() if type(o) is Tensor and o.shape == (3, 6)}

    before = alive()
    run = Whole(RUNS[name])
    run.go(range(13))
    used = {v.data_ptr() for state in run.base.state.values() for v in state.values() if isinstance(v, Tensor)}
    assert len(alive() - before - used) == KEPT[name]
