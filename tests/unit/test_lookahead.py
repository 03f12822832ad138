"""Lookahead and RAPP: what they are on paper, against the literal transcription, and as torch optimizers; and SAMPa's
transcription, which has no fast twin here."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bisam_ray.optim import reference as ref
from bisam_ray.optim import reference_schedules as schedules
from bisam_ray.optim.lookahead import RAPP, Lookahead, SlowWeights

Field = Callable[[Tensor], Tensor]
WRAPPERS = {"lookahead": Lookahead, "rapp": RAPP}
LITERAL = {"lookahead": schedules.lookahead_step, "rapp": schedules.rapp_step}
both = pytest.mark.parametrize("name", WRAPPERS)

BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.8, "dampening": 0.4, "weight_decay": 1e-2}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
}
every_base = pytest.mark.parametrize("base", BASES)


def fields(n: int, rho: float = 0.0) -> list[Field]:
    """Gradients of n convex functions of six variables, each at w + ρu: what n batches of SAM hand the optimizer."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(n):
        a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        c = torch.randn(6, generator=generator, dtype=torch.float64)

        def gradient(w: Tensor, a: Tensor = a, c: Tensor = c) -> Tensor:
            return a.T @ torch.tanh(a @ (w - c)) + (w - c) / 4

        def ascended(w: Tensor, gradient: Field = gradient) -> Tensor:
            g = gradient(w)
            return gradient(w + rho * g / g.norm())

        made.append(ascended if rho else gradient)
    return made


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    w = torch.linspace(-1, 1, 6, dtype=dtype)
    return [torch.nn.Parameter(w[:4].reshape(2, 2).clone()), torch.nn.Parameter(w[4:].clone())]


def flat(params: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in params])


def wrapped(name: str, base: str, params: Any, every: int = 5, outer_lr: float = 0.5) -> SlowWeights:
    cls, options = BASES[base]
    return WRAPPERS[name](cls(params, **options), every, outer_lr)


def step(opt: torch.optim.Optimizer, params: Sequence[Tensor], field: Field) -> None:
    g = field(flat(params)).to(params[0].dtype)
    for p, part in zip(params, g.split([p.numel() for p in params]), strict=True):
        p.grad = part.view_as(p).clone()
    opt.step()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# -- what they are on paper


@pytest.mark.parametrize("outer_lr", [0.3, 0.5, 1.0])
def test_rapp_with_one_trial_step_is_eg_plus(outer_lr: float) -> None:
    """z⁺ = z − λγF(z − γFz)."""
    params, (f, *_), gamma = parameters(), fields(1), BASES["sgd"][1]["lr"]
    opt = wrapped("rapp", "sgd", params, 2, outer_lr)
    for _ in range(10):
        z = flat(params)
        step(opt, params, f)
        step(opt, params, f)
        close(flat(params), z - outer_lr * gamma * f(z - gamma * f(z)), 1e-14)


@pytest.mark.parametrize("outer_lr", [0.3, 0.5, 1.0])
def test_lookahead_of_two_steps_is_the_mean_of_gda_and_eg_plus(outer_lr: float) -> None:
    """z⁺ = ½ (z − 2λγFz) + ½ (z − 2λγF(z − γFz)): both move by 2λγ, EG+ looks γ ahead."""
    params, (f, *_), gamma = parameters(), fields(1), BASES["sgd"][1]["lr"]
    opt = wrapped("lookahead", "sgd", params, 2, outer_lr)
    for _ in range(10):
        z = flat(params)
        step(opt, params, f)
        step(opt, params, f)
        gda, eg_plus = z - 2 * outer_lr * gamma * f(z), z - 2 * outer_lr * gamma * f(z - gamma * f(z))
        close(flat(params), (gda + eg_plus) / 2, 1e-14)


def growth(make: Callable[[torch.optim.Optimizer], torch.optim.Optimizer], gamma: float, every: int = 1) -> float:
    """By how much an outer step multiplies the distance to the saddle point of min_x max_y xy."""
    x, y = (torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.0, -0.5))
    opt = make(torch.optim.SGD([{"params": [x]}, {"params": [y], "maximize": True}], lr=gamma))
    before, outer_steps = math.hypot(x.item(), y.item()), 20
    for _ in range(outer_steps * every):
        opt.zero_grad()
        (x * y).backward()
        opt.step()
    return (math.hypot(x.item(), y.item()) / before) ** (1 / outer_steps)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_the_bilinear_game(gamma: float) -> None:
    """F(x, y) = (y, −x) has the eigenvalues ±i; the outer step is a polynomial of it, and contracts by its modulus.

    GDA           |1 − γi|                 > 1: diverges
    RAPP τ = 2    |1 − λγi (1 − γi)|       < 1 at λ = ½
    Lookahead     |1 − λ + λ (1 − γi)²|    < 1 ⟺ λ < 2/(4 + γ²): not at λ = ½
    """
    gda = growth(lambda base: base, gamma)
    assert gda > 1
    assert gda == pytest.approx(abs(1 - gamma * 1j), rel=1e-12)

    for every in (2, 5):
        rapp = growth(lambda base, every=every: RAPP(base, every, 0.5), gamma, every)
        trial = 1.0 + 0j
        for _ in range(every - 1):
            trial = 1 - gamma * 1j * trial
        assert rapp < 1
        assert rapp == pytest.approx(abs(1 - 0.5 * gamma * 1j * trial), rel=1e-12)

    edge = 2 / (4 + gamma**2)
    for outer_lr in (0.5 * edge, 0.99 * edge, 1.01 * edge, 0.5, 0.9):
        lookahead = growth(lambda base, outer_lr=outer_lr: Lookahead(base, 2, outer_lr), gamma, 2)
        assert lookahead == pytest.approx(abs(1 - outer_lr + outer_lr * (1 - gamma * 1j) ** 2), rel=1e-12)
        assert (lookahead < 1) == (outer_lr < edge), f"λ = {outer_lr}, edge {edge}"


# -- against the literal transcription


@pytest.mark.parametrize("every", [1, 2, 5])
@every_base
@both
def test_fifty_steps_of_the_reference(name: str, base: str, every: int) -> None:
    """On SAM's gradients, taken as the schedules take them: with the parameters pointing to other memory meanwhile."""
    cls, options = BASES[base]
    optimizer = ref.Optimizer("adamw" if cls is torch.optim.AdamW else "sgd", **options)
    params, batches = parameters(), fields(50, rho=0.1)
    opt = wrapped(name, base, params, every, 0.4)
    z, state = flat(params), ref.OptimizerState()
    for t, field in enumerate(batches):
        assert (opt.inner, opt.is_outer(), bool(opt.slow)) == (t % every, (t + 1) % every == 0, t % every > 0)
        weights = [p.data for p in params]
        for p in params:
            p.data = p.data.clone()
        g = field(flat(params))
        for p, w, part in zip(params, weights, g.split([4, 2]), strict=True):
            p.data.fill_(math.nan)
            p.data, p.grad = w, part.view_as(p).clone()
        opt.step()
        assert torch.equal(flat([p.grad for p in params]), g), "the caller's gradient is left alone"
        if (t + 1) % every == 0:
            z, state = LITERAL[name](optimizer, state, z, batches[t + 1 - every : t + 1], 0.4)
            close(flat(params), z)


@every_base
def test_lookahead_all_the_way_is_the_base_optimizer(base: str) -> None:
    """λ = 1, bit for bit."""
    ours, theirs = parameters(), parameters()
    cls, options = BASES[base]
    lookahead, plain = wrapped("lookahead", base, ours, 3, 1.0), cls(theirs, **options)
    for field in fields(12):
        step(lookahead, ours, field)
        step(plain, theirs, field)
        assert torch.equal(flat(ours), flat(theirs))


# -- as torch optimizers


@pytest.mark.parametrize("cut", [10, 13])
@every_base
@both
def test_a_resumed_run_is_the_same_run(name: str, base: str, cut: int) -> None:
    """Through a file, into fresh objects, within an inner loop (13 = 2·5 + 3) and between two: the same bits."""
    params, batches, saved = parameters(), fields(24), io.BytesIO()
    opt = wrapped(name, base, params)
    for t, field in enumerate(batches):
        if t == cut:
            torch.save([[p.detach() for p in params], opt.state_dict()], saved)
        step(opt, params, field)

    saved.seek(0)
    weights, state = torch.load(saved, weights_only=True)
    resumed = [torch.nn.Parameter(w) for w in weights]
    fresh = wrapped(name, base, resumed)
    fresh.load_state_dict(state)
    assert fresh.inner == cut % 5
    for field in batches[cut:]:
        step(fresh, resumed, field)
    assert torch.equal(flat(resumed), flat(params))


@both
def test_loading_copies_the_slow_weights_in_the_parameters_own_type(name: str) -> None:
    double, single = parameters(), parameters(torch.float32)
    opt, other = wrapped(name, "momentum", double), wrapped(name, "momentum", single)
    step(opt, double, fields(1)[0])
    state = opt.state_dict()
    other.load_state_dict(state)
    for z, p in zip(state["slow"], single, strict=True):
        assert other.slow[p].dtype == torch.float32
        close(other.slow[p], z.float())
        z.zero_()
        assert other.slow[p].any()


@both
def test_a_wrapped_optimizer_can_be_copied(name: str) -> None:
    """Together with its parameters; the copy then goes its own way, to the same place."""
    params, batches = parameters(), fields(8)
    opt = wrapped(name, "momentum", params)
    for field in batches[:3]:
        step(opt, params, field)
    copied, twins = copy.deepcopy((opt, params))
    for field in batches[3:]:
        step(opt, params, field)
        step(copied, twins, field)
    assert torch.equal(flat(twins), flat(params))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@both
def test_a_learning_rate_scheduler_may_hold_either(name: str) -> None:
    """Also after a checkpoint replaced the base's groups. The inner steps see every change of the learning rate."""
    ends, z = [], flat(parameters())
    for attach_to_base in (True, False):
        params, batches = parameters(), fields(10)
        opt = wrapped(name, "sgd", params, every=2)
        opt.load_state_dict(opt.state_dict())
        assert opt.param_groups is opt.base.param_groups
        scheduler = torch.optim.lr_scheduler.ExponentialLR(opt.base if attach_to_base else opt, 0.5)
        for t, field in enumerate(batches):
            step(opt, params, field)
            scheduler.step()
            assert opt.param_groups[0]["lr"] == 0.1 * 0.5 ** (t + 1)
            if t == 1:
                w = z - 0.1 * batches[0](z)
                end = z - 0.05 * 0.5 * batches[1](w)
                close(flat(params), end if name == "rapp" else 0.5 * z + 0.5 * (w - 0.05 * batches[1](w)))
        ends.append(flat(params))
    assert torch.equal(*ends)


@both
def test_groups_have_their_own_learning_rates(name: str) -> None:
    """Two groups in one optimizer are two optimizers, as long as their gradients do not mix."""
    one, two = parameters(), parameters()
    first, second = BASES["momentum"][1], {**BASES["momentum"][1], "lr": 0.01, "momentum": 0.5}
    sgd = torch.optim.SGD
    together = WRAPPERS[name](sgd([{"params": [one[0]], **first}, {"params": [one[1]], **second}]), 3, 0.5)
    apart = [WRAPPERS[name](sgd([p], **o), 3, 0.5) for p, o in zip(two, (first, second), strict=True)]
    for _ in range(7):
        for p in (*one, *two):
            p.grad = p.detach().sin()
        together.step()
        for opt in apart:
            opt.step()
    assert torch.equal(flat(one), flat(two))


@both
def test_a_group_may_join_within_an_inner_loop(name: str) -> None:
    """Its slow weights are what it joined with; at the outer step it returns to them like the others."""
    old, new = (torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    opt = WRAPPERS[name](torch.optim.SGD([old], lr=0.1), 3, 0.5)
    old.grad = torch.ones_like(old)
    opt.step()
    opt.add_param_group({"params": new, "lr": 0.2})
    for _ in range(2):
        old.grad, new.grad = torch.ones_like(old), torch.ones_like(new)
        opt.step()
    travelled = {"lookahead": (3 * 0.1, 2 * 0.2), "rapp": (0.1, 0.2)}[name]
    close(torch.cat([old, new]).detach(), 1 - 0.5 * torch.tensor(travelled, dtype=torch.float64))


@both
def test_a_parameter_without_a_gradient(name: str) -> None:
    """Stays if it never has one; if it loses one, RAPP's next step from z is z."""
    idle, moved = parameters()
    start, origin = idle.detach().clone(), moved.detach().clone()
    opt = wrapped(name, "sgd", [idle, moved], every=3)
    moved.grad = torch.ones_like(moved)
    opt.step()
    assert not torch.equal(moved.detach(), origin)
    opt.zero_grad()
    assert moved.grad is None
    opt.step()
    assert torch.equal(moved.detach(), origin) == (name == "rapp")
    opt.step()
    assert torch.equal(idle.detach(), start)


@both
def test_a_closure_is_called_once_with_gradients_enabled(name: str) -> None:
    w, calls = torch.nn.Parameter(torch.ones(2)), 0
    opt = WRAPPERS[name](torch.optim.SGD([w], lr=0.1), 2)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        loss = w.square().sum()
        loss.backward()
        return loss

    assert opt.step(closure).item() == 2
    assert calls == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0: must be at least 1"),
        ({"outer_lr": 0.0}, "outer_lr=0.0: must lie in (0, 1]"),
        ({"outer_lr": 1.5}, "outer_lr=1.5: must lie in (0, 1]"),
        ({"outer_lr": math.nan}, "outer_lr=nan: must lie in (0, 1]"),
    ],
)
@both
def test_refusals(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        WRAPPERS[name](torch.optim.SGD(parameters(), lr=0.1), **options)
    assert str(refused.value) == message


# -- SAMPa's transcription


def valley(w: Tensor, batch: Any) -> Tensor:
    """½ wᵀAw with A = QΛQᵀ, Λ = (1, 0.3): smooth, strongly convex, with its minimiser at 0 and no axis aligned."""
    rotated = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64) @ w
    return (torch.tensor([1.0, 0.3], dtype=torch.float64) * rotated.square()).sum() / 2


def path(
    loss: ref.Objective,
    lam: float | None,
    lr: Callable[[int], float],
    start: Tensor,
    steps: int,
    batches: Sequence[Any] = (None,),
) -> list[Tensor]:
    """The weights after every step of SAMPa with this λ, or of SAM; ρ = 0.1 throughout."""
    method = ref.Method(loss, loss, rho=0.1, lam=lam or 0.0)
    sam, sampa, visited = ref.State(start), schedules.sampa_state(method, start, batches[0]), []
    for t in range(steps):
        now = replace(method, optimizer=ref.Optimizer(lr=lr(t)))
        b, b_next = batches[t % len(batches)], batches[(t + 1) % len(batches)]
        if lam is None:
            sam, _ = ref.sam_step(now, sam, b)
        else:
            sampa, _ = schedules.sampa_step(now, sampa, b, b_next)
        visited.append(sam.w if lam is None else sampa.x)
    return visited


START = torch.tensor([1.5, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.5, None])
def test_a_fixed_radius_does_not_keep_sampa_from_the_minimiser(lam: float | None) -> None:
    """With all data in one batch and η_t ~ 1/t, ρ = 0.1 throughout. SAM (λ: None) gets there as well.

    It must: the gradient of a convex function is monotone, so ⟨∇f(w + ρu), ∇f(w)⟩ ≥ ‖∇f(w)‖² for u along ∇f(w), and
    every small step of SAM descends. What SAMPa has to show is that a direction from y, not from x, does no harm.
    """
    visited = path(valley, lam, lambda t: 5 / (10 + t), START, 1000)
    assert visited[30].norm() > 0.02
    assert visited[-1].norm() < 1e-3


def test_how_far_a_constant_step_stays_away() -> None:
    """At constant η neither can converge: at the minimiser itself the step is η∇f(ρu), or (1 − λ) of that for SAMPa.

    SAM ends in the cycle ±ηaρ/(2 − ηa) along the steepest eigenvector (curvature a = 1); SAMPa ends nearer, the more
    so the larger λ, and both in proportion to η.
    """

    def floor(lam: float | None, eta: float) -> float:
        visited = path(valley, lam, lambda _: eta, START, 800)
        return torch.stack([w.norm() for w in visited[-100:]]).mean().item()

    for eta in (0.5, 0.25):
        sam = floor(None, eta)
        assert sam == pytest.approx(eta * 0.1 / (2 - eta), rel=1e-6)
        for lam in (0.2, 0.5, 0.8):
            assert floor(lam, eta) < (1.2 - lam) * sam
    assert floor(0.5, 0.1) < 0.3 * floor(0.5, 0.5)


@pytest.mark.parametrize(("lam", "share"), [(None, 1.0), (0.0, 1.0), (0.2, 0.8), (0.8, 0.2)])
def test_where_minibatches_of_sam_stall(lam: float | None, share: float) -> None:
    """Where every batch ascends its own loss, SAM at a fixed radius stalls off the minimiser however small its steps.

    L₁ = a₁ (w − 1)²/2 and L₂ = a₂ (w + 1)²/2 with the minimiser w* = (a₁ − a₂)/(a₁ + a₂) between them: there u = −1
    on the first batch and 1 on the second, and the mean of ∇L_i(w + ρu_i) vanishes only at
    w* + ρ (a₁ − a₂)/(a₁ + a₂). In SAMPa only (1 − λ) of the step is taken at the perturbed weights: it stalls too, at
    (1 − λ) times the distance.
    """

    def loss(w: Tensor, batch: tuple[float, float]) -> Tensor:
        a, c = batch
        return a * (w - c).square().sum() / 2

    visited = path(loss, lam, lambda _: 2e-3, torch.zeros(1, dtype=torch.float64), 2500, [(3.0, 1.0), (1.0, -1.0)])
    away = torch.stack(visited[-100:]).mean().item() - 0.5
    assert away == pytest.approx(share * 0.1 * 0.5, abs=2.5e-3)


@pytest.mark.parametrize("optimizer", [{"momentum": 0.9}, {"name": "adamw", "weight_decay": 0.1}], ids=["sgd", "adamw"])
@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_the_hypergradient_of_sampa(lam: float, optimizer: dict[str, Any]) -> None:
    """dJ/dr = −Δ (1 − λ) (S ⊙ Hε)ᵀ (∇L_V − ∇L_B'), against differences of the upper level, after a few steps."""

    def loss(w: Tensor, c: float) -> Tensor:
        return torch.cosh(w - c).sum() + (w.sum() - c).square() / 2

    method = ref.Method(loss, loss, ref.Optimizer(lr=0.05, **optimizer), rho=0.2, lam=lam)
    state = schedules.sampa_state(method, START, 0.0)
    for t in range(3):
        state, _ = schedules.sampa_step(method, state, 0.1 * t, 0.1 * (t + 1))
    b, b_next, train, hyper, r = 0.3, 0.4, 0.7, -0.5, torch.tensor(math.log(0.2), dtype=torch.float64)

    after, _ = schedules.sampa_step(method, state, b, b_next)
    epsilon = 0.2 * ref.direction(method, state.x, state.a)[0]
    _, h = ref.gradient(loss, state.x + epsilon, b)
    s = ref.sensitivity(method.optimizer, state.optimizer, state.x, (1 - lam) * h + lam * after.k)
    d = ref.curvature_along(method, ref.Learning(curvature="exact"), state.x, epsilon, h, h, b)
    (held_out, along), (trained, against) = (ref.gradient(loss, after.x, batch) for batch in (hyper, train))
    exact = -(held_out - trained) * (1 - lam) * (s * d * (along - against)).sum()

    def j(x: float) -> Tensor:
        return schedules.sampa_upper_level(method, state, r + x, b, b_next, train, hyper)

    assert exact != 0
    close((8 * (j(1e-3) - j(-1e-3)) - (j(2e-3) - j(-2e-3))) / 12e-3, exact, 1e-8)
