"""The bounds are bounds, and equal their definition in value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bisam_ray.optim import cross_entropy, lower_bound, reference

PHIS = ("tanh", "log")
GAMMA = math.log(math.e - 1)


def draw(n: int, k: int, scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits, torch.randint(k, (n,), generator=generator)


def zero_one(logits: Tensor, target: Tensor) -> Tensor:
    margins = logits - logits.gather(1, target[:, None])
    return (margins.amax(1) > 0).double()


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits)[0]


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


@pytest.mark.parametrize(
    ("phi", "mu", "alpha"), [("tanh", 10, 0.1), ("tanh", 3, 0.7), ("log", 1, 0.1), ("log", 5, 9.0)]
)
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
        if phi == "tanh":
            bounded, slope = torch.tanh(alpha * margins), alpha * (1 - torch.tanh(alpha * margins) ** 2)
        else:
            bounded, slope = 1 - torch.log1p(torch.exp(GAMMA - margins)), torch.sigmoid(GAMMA - margins)
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


@pytest.mark.parametrize(("phi", "mu"), [("tanh", 10.0), ("log", 1.0)])
def test_default_mu(phi: str, mu: float) -> None:
    logits, target = draw(6, 4, 2.0)
    assert torch.equal(lower_bound(logits, target, phi), lower_bound(logits, target, phi, mu=mu, alpha=0.1))
    assert not torch.equal(lower_bound(logits, target, phi), lower_bound(logits, target, phi, mu=2 * mu))


def test_default_phi_is_tanh() -> None:
    logits, target = draw(6, 4, 2.0)
    assert torch.equal(lower_bound(logits, target), lower_bound(logits, target, "tanh"))


@pytest.mark.parametrize("phi", PHIS)
def test_logits_are_not_modified(phi: str) -> None:
    logits, target = draw(6, 4, 2.0)
    kept, version = logits.clone(), logits._version
    lower_bound(logits.requires_grad_(), target, phi).backward()
    assert torch.equal(logits.detach(), kept)
    assert logits._version == version


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


def cosine_with_cross_entropy(scale: float, mu: float, alpha: float) -> float:
    logits, target = draw(2000, 10, scale)
    logits.requires_grad_()
    bound = gradient(lower_bound(logits, target, "tanh", mu, alpha), logits)
    return torch.cosine_similarity(
        bound.flatten(), gradient(cross_entropy(logits, target), logits).flatten(), dim=0
    ).item()


def test_tanh_with_small_alpha_is_the_cross_entropy() -> None:
    """mu·alpha = 1, alpha → 0: mu·Q + log K → the cross entropy, and the directions agree."""
    assert cosine_with_cross_entropy(3.0, 1e3, 1e-3) > 1 - 1e-8
    assert cosine_with_cross_entropy(0.5, 10, 0.1) == pytest.approx(0.99998, abs=2e-5)
    assert cosine_with_cross_entropy(3.0, 10, 0.1) == pytest.approx(0.966, abs=0.01)
    logits, target = draw(50, 10, 3.0)
    value = 1e4 * lower_bound(logits, target, "tanh", 1e4, 1e-4) + math.log(10)
    torch.testing.assert_close(value, cross_entropy(logits, target), rtol=1e-5, atol=0)


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
        ({"phi": "sigmoid"}, ["sigmoid", "tanh", "log"]),
        ({"mu": 0.0}, ["mu"]),
        ({"mu": -1.0}, ["mu", "-1"]),
        ({"alpha": 0.0}, ["alpha"]),
        ({"alpha": -0.1}, ["alpha", "-0.1"]),
    ],
)
def test_bad_arguments_are_named(arguments: dict, names: list[str]) -> None:
    logits, target = draw(2, 3, 1.0)
    with pytest.raises(ValueError, match=".*".join(names)):
        lower_bound(logits, target, **arguments)
