"""The bounds are bounds, and equal their definition in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from bisam_ray.optim import reference
from bisam_ray.optim.losses import BOUNDS, Phi, cross_entropy, lower_bound

PHIS = tuple(BOUNDS)
WITH_ALPHA = tuple(phi for phi, bound in BOUNDS.items() if bound.uses_alpha)
LEARNED = [
    (phi, learned)
    for phi, bound in BOUNDS.items()
    for learned in ((), ("mu",), ("alpha",), ("mu", "alpha"))
    if bound.uses_alpha or "alpha" not in learned
]
GAMMA = math.log(math.e - 1)
ROOT = math.sqrt(math.pi) / 2

# φ and φ', written out
DEFINITION: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Tensor, float], Tensor]]] = {
    "tanh": (lambda x, a: torch.tanh(a * x), lambda x, a: a * (1 - torch.tanh(a * x) ** 2)),
    "log": (lambda x, a: 1 - torch.log1p(torch.exp(GAMMA - x)), lambda x, a: torch.sigmoid(GAMMA - x)),
    "ramp": (lambda x, a: torch.clip(a * x, -1, 1), lambda x, a: a * ((a * x).abs() < 1).to(x)),
    "erf": (lambda x, a: torch.erf(ROOT * a * x), lambda x, a: a * torch.exp(-((ROOT * a * x) ** 2))),
}


def draw(n: int, k: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits, torch.randint(k, (n,), generator=generator)


def zero_one(logits: Tensor, target: Tensor) -> Tensor:
    margins = logits - logits.gather(1, target[:, None])
    return (margins.amax(1) > 0).double()


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


def test_every_bound_has_a_name_and_a_definition() -> None:
    assert get_args(Phi) == PHIS == tuple(DEFINITION)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("alpha", [0.1, 1.0, 7.0])
def test_phi_is_below_the_step(phi: str, alpha: float) -> None:
    """φ(0) = 0, φ(x) ≤ 1[x > 0], non-decreasing; slope α at 0 where α counts. Up to the constant φ may leave out."""
    grid = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    values, origin = (BOUNDS[phi].phi(x, alpha) for x in (grid.clone(), torch.zeros(1, dtype=torch.float64)))
    values = values - origin
    torch.testing.assert_close(values, DEFINITION[phi][0](grid, alpha), rtol=1e-12, atol=1e-14)
    assert (values <= (grid > 1e-9).double() + 1e-14).all()
    assert (values.diff() >= -1e-15).all()
    if BOUNDS[phi].uses_alpha:
        step = torch.tensor([1e-6], dtype=torch.float64)
        assert ((BOUNDS[phi].phi(step, alpha) - origin) / 1e-6).item() == pytest.approx(alpha, rel=1e-9)
    else:
        assert torch.equal(BOUNDS[phi].phi(grid.clone(), 2 * alpha) - origin, values)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("mu", [0.3, 1.0, 30.0])
@pytest.mark.parametrize("k", [2, 3, 10, 100])
def test_equal_logits_are_worth_zero(phi: str, mu: float, k: int) -> None:
    """phi(0) = 0, and the constant (log K)/mu is subtracted."""
    value = lower_bound(torch.full((2, k), 7.0, dtype=torch.float64), torch.tensor([0, k - 1]), phi, mu)
    assert value.item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("k", [2, 3, 10, 100])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 10.0, 1e3])
def test_never_above_the_zero_one_loss(phi: str, k: int, scale: float) -> None:
    logits, target = draw(200, k, scale)
    for mu in (None, 0.01, 1.0, 100.0):
        for alpha in (0.01, 0.1, 5.0):
            bound = lower_bound(logits, target, phi, mu, alpha, reduction="none")
            # the tolerance is rounding error of (log K)/mu, nothing else
            assert (bound - zero_one(logits, target)).max() <= 1e-13 / min(mu or 1, 1)


@pytest.mark.parametrize("phi", PHIS)
def test_tight_where_it_should_be(phi: str) -> None:
    """Large mu and saturated margins: the bound is the 0-1 loss of wrong examples."""
    logits, target = draw(100, 10, 1e4)
    bound = lower_bound(logits, target, phi, mu=1e4, alpha=1.0, reduction="none")
    wrong = zero_one(logits, target) == 1
    assert 0 < wrong.sum() < 100
    assert (bound[wrong] - 1).abs().max() < 1e-3
    assert bound[~wrong].abs().max() < 1e-3


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize(("mu", "alpha"), [(10, 0.1), (1, 0.1), (3, 0.7), (5, 9.0)])
@pytest.mark.parametrize("k", [2, 5, 40])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_equals_its_definition(phi: str, mu: float, alpha: float, k: int, scale: float) -> None:
    logits, target = draw(7, k, scale)
    logits.requires_grad_()
    value = lower_bound(logits, target, phi, mu, alpha)
    expected = reference.lower_bound(logits, target, phi, mu, alpha)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    actual = gradient(value, logits)
    torch.testing.assert_close(actual, gradient(expected, logits), rtol=1e-10, atol=1e-15)

    with torch.no_grad():
        margins = logits - logits.gather(1, target[:, None])
        bounded, slope = (f(margins, alpha) for f in DEFINITION[phi])
        closed = torch.softmax(mu * bounded, 1) * slope
        closed.scatter_(1, target[:, None], 0.0)
        closed.scatter_(1, target[:, None], -closed.sum(1, keepdim=True))
    torch.testing.assert_close(actual, closed / len(logits), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("phi", PHIS)
def test_reductions(phi: str) -> None:
    logits, target = draw(6, 4, 2.0)
    each = lower_bound(logits, target, phi, reduction="none")
    assert each.shape == (6,)
    torch.testing.assert_close(lower_bound(logits, target, phi), each.mean(), rtol=1e-15, atol=0)
    for i in range(6):
        alone = lower_bound(logits[i : i + 1], target[i : i + 1], phi)
        torch.testing.assert_close(alone, each[i], rtol=1e-14, atol=0)


@pytest.mark.parametrize(("phi", "mu"), [("tanh", 10.0), ("log", 1.0), ("ramp", 10.0), ("erf", 10.0)])
def test_default_mu(phi: str, mu: float) -> None:
    logits, target = draw(6, 4, 2.0)
    assert torch.equal(lower_bound(logits, target, phi), lower_bound(logits, target, phi, mu=mu, alpha=0.1))
    assert not torch.equal(lower_bound(logits, target, phi), lower_bound(logits, target, phi, mu=2 * mu))


def test_default_phi_is_tanh() -> None:
    logits, target = draw(6, 4, 2.0)
    assert torch.equal(lower_bound(logits, target), lower_bound(logits, target, "tanh"))


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("learnable", [False, True])
def test_inputs_are_not_modified(phi: str, learnable: bool) -> None:
    logits, target = draw(6, 4, 2.0)
    inputs = (logits.requires_grad_(), target, *(scalars(3.0, 0.7) if learnable else ()))
    kept, versions = [t.detach().clone() for t in inputs], [t._version for t in inputs]
    lower_bound(logits, target, phi, *inputs[2:]).backward()
    assert all(torch.equal(t.detach(), k) for t, k in zip(inputs, kept, strict=True))
    assert [t._version for t in inputs] == versions


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(phi: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, 1e4, 1e4], [1e4, 1e4, 1e4]], dtype=dtype)
    logits.requires_grad_()
    for mu in (None, 1.0, 100.0):
        for alpha in (0.1, 10.0):
            each = lower_bound(logits, torch.zeros(4, dtype=torch.int64), phi, mu, alpha, reduction="none")
            assert each.isfinite().all()
            assert (each <= torch.tensor([0, 1, 1, 0]) + 1e-5).all()
            assert gradient(each.sum(), logits).isfinite().all()


@pytest.mark.parametrize("phi", PHIS)
def test_wrong_examples_lose_their_weight(phi: str) -> None:
    """The point of BiSAM: a hopeless example has no gradient, one just right does."""
    logits = torch.tensor([[0.0, 200.0], [0.1, 0.0]], dtype=torch.float64, requires_grad=True)
    bound = lower_bound(logits, torch.zeros(2, dtype=torch.int64), phi)
    hopeless, right = gradient(bound, logits).norm(dim=1)
    assert hopeless < 1e-10
    assert right > 1e-2


def test_ramp_drops_saturated_examples_exactly() -> None:
    """An example all of whose margins have |αx| > 1 gets a gradient of zero, not a small one."""
    logits = torch.tensor([[0.0, 10.1], [10.1, 0.0], [9.9, 0.0]], requires_grad=True)
    bound = lower_bound(logits, torch.zeros(3, dtype=torch.int64), "ramp", alpha=0.1)
    assert gradient(bound, logits).abs().amax(1).gt(0).tolist() == [False, False, True]


def cosine_with_cross_entropy(scale: float, phi: str, mu: float, alpha: float) -> float:
    logits, target = draw(2000, 10, scale)
    logits.requires_grad_()
    bound = gradient(lower_bound(logits, target, phi, mu, alpha), logits)
    return torch.cosine_similarity(
        bound.flatten(), gradient(cross_entropy(logits, target), logits).flatten(), dim=0
    ).item()


@pytest.mark.parametrize("phi", WITH_ALPHA)
def test_a_small_alpha_is_the_cross_entropy(phi: str) -> None:
    """mu·alpha = 1, alpha → 0: mu·Q + log K → the cross entropy, and the directions agree."""
    assert cosine_with_cross_entropy(3.0, phi, 1e3, 1e-3) > 1 - 1e-8
    logits, target = draw(50, 10, 3.0)
    value = 1e4 * lower_bound(logits, target, phi, 1e4, 1e-4) + math.log(10)
    torch.testing.assert_close(value, cross_entropy(logits, target), rtol=1e-5, atol=0)


def test_the_default_tanh_is_nearly_the_cross_entropy() -> None:
    assert cosine_with_cross_entropy(0.5, "tanh", 10, 0.1) == pytest.approx(0.99998, abs=2e-5)
    assert cosine_with_cross_entropy(3.0, "tanh", 10, 0.1) == pytest.approx(0.966, abs=0.01)


def scalars(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_tensors_are_worth_their_numbers(phi: str, reduction: str) -> None:
    logits, target = draw(6, 4, 2.0)
    logits.requires_grad_()
    expected = lower_bound(logits, target, phi, 3.0, 0.7, reduction)
    for kinds in ((True, True), (True, False), (False, True)):
        mu, alpha = (t if kind else t.item() for t, kind in zip(scalars(3.0, 0.7), kinds, strict=True))
        value = lower_bound(logits, target, phi, mu, alpha, reduction)
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=1e-15)
        actual, wanted = (
            gradient(v.sum(), logits) for v in (value, lower_bound(logits, target, phi, 3.0, 0.7, reduction))
        )
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(("phi", "learned"), LEARNED)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_differentiable_twice(phi: str, learned: tuple[str, ...], reduction: str) -> None:
    """In the logits and in what is learned of mu and alpha, mixed derivatives included: central differences."""
    logits, target = draw(4, 3, 2.0)
    numbers = {"mu": 3.0, "alpha": 0.3}

    def function(f: Tensor, *values: Tensor) -> Tensor:
        return lower_bound(f, target, phi, **numbers | dict(zip(learned, values, strict=True)), reduction=reduction)

    inputs = (logits.requires_grad_(), *scalars(*(numbers[name] for name in learned)))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_tensors_are_not_looked_at() -> None:
    """No value of a tensor is asked for: on the meta device there is none, on another one it would be a wait."""
    logits = torch.empty(6, 4, device="meta", requires_grad=True)
    target = torch.empty(6, dtype=torch.int64, device="meta")
    mu, alpha = (torch.empty((), device="meta", requires_grad=True) for _ in range(2))
    for phi in PHIS:
        lower_bound(logits, target, phi, mu, alpha).backward()
    assert mu.grad is not None
    assert alpha.grad is not None


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("learnable", [False, True])
def test_nothing_larger_than_the_logits_is_kept_for_backward(phi: str, learnable: bool) -> None:
    logits, target = torch.randn(16, 1000, requires_grad=True), torch.randint(1000, (16,))
    mu, alpha = (torch.tensor(v, requires_grad=True) if learnable else v for v in (10.0, 0.1))
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lower_bound(logits, target, phi, mu, alpha).backward()
    assert max(tensor.nbytes for tensor in kept) == logits.nbytes
    # and few of that size: what φ and the soft maximum need, plus the factors of µ and α if they are learned
    large = {tensor.data_ptr() for tensor in kept if tensor.nbytes == logits.nbytes} - {logits.data_ptr()}
    assert len(large) <= (4 if learnable else 3)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_nothing(phi: str, dtype: torch.dtype) -> None:
    logits, target = draw(64, 100, 3.0)
    logits = logits.to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    value, expected = (lower_bound(f, target, phi) for f in (logits, exact))
    assert value.dtype is torch.float32
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    actual, wanted = gradient(value, logits), gradient(expected, exact)
    assert actual.dtype is dtype
    torch.testing.assert_close(actual.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy(smoothing: float) -> None:
    logits, target = draw(9, 5, 2.0)
    value = cross_entropy(logits, target, smoothing)
    builtin = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(value, builtin, rtol=1e-14, atol=0)
    torch.testing.assert_close(value, reference.cross_entropy(logits, target, smoothing), rtol=1e-13, atol=0)
    each = cross_entropy(logits, target, smoothing, reduction="none")
    assert each.shape == (9,)
    torch.testing.assert_close(each.mean(), value, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"phi": "sigmoid"}, ["sigmoid", *PHIS]),
        ({"mu": 0.0}, ["mu"]),
        ({"mu": -1.0}, ["mu", "-1"]),
        ({"mu": math.inf}, ["mu", "inf"]),
        ({"mu": math.nan}, ["mu", "nan"]),
        ({"alpha": 0.0}, ["alpha"]),
        ({"alpha": -0.1}, ["alpha", "-0.1"]),
    ],
)
def test_bad_arguments_are_named(arguments: dict, names: list[str]) -> None:
    logits, target = draw(2, 3, 1.0)
    with pytest.raises(ValueError, match=".*".join(names)):
        lower_bound(logits, target, **arguments)
