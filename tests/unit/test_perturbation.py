"""Direction, exact restore, statistics."""

import pytest
import torch

from bisam_ray.optim import Perturbation, frozen_statistics
from bisam_ray.optim.perturbation import dot, global_norm

GEOMETRIES = [{"geometry": "l2"}, {"geometry": "adaptive"}, {"geometry": "subset", "beta": 0.5, "renormalise": True}]
PUBLISHED = {"geometry": "subset", "beta": 0.5}


def some(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def trainable(*shapes):
    return [torch.nn.Parameter(w) for w in some(*shapes)]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g["geometry"])
def test_the_perturbation_has_length_rho_in_its_geometry(geometry):
    params = trainable((4, 3), (3,))
    ball = Perturbation(params, **geometry)
    ball.aim(some((4, 3), (3,), seed=1), 0.3)
    epsilon = ball.epsilon()
    if geometry["geometry"] == "adaptive":
        epsilon = [epsilon[0] / (params[0].abs() + 0.01), epsilon[1]]
    assert torch.isclose(global_norm(epsilon), torch.tensor(0.3))


def test_the_published_subset_is_unbiased_and_longer_than_rho():
    """Every element is kept with probability β and divided by β: the mean over masks is SAM's perturbation."""
    params, ascent = trainable((40, 30)), some((40, 30), seed=1)
    sam, esam = Perturbation(params), Perturbation(params, **PUBLISHED)
    sam.aim(ascent, 0.3)
    drawn = []
    for seed in range(400):
        esam.aim(ascent, 0.3, seed)
        drawn.append(esam.epsilon()[0])
    share = (drawn[0] != 0).float().mean()
    assert 0.4 < share < 0.6
    assert global_norm(drawn[:1]).item() == pytest.approx(0.3 / 0.5**0.5, rel=0.1)
    error = torch.stack(drawn).mean(0) - sam.epsilon()[0]
    assert global_norm([error]) < 0.1 * 0.3
    esam.aim(ascent, 0.3, seed=7)
    assert torch.equal(esam.epsilon()[0], drawn[7])  # the mask is a function of its seed


@pytest.mark.parametrize("geometry", [*GEOMETRIES, PUBLISHED], ids=str)
@pytest.mark.parametrize("rho", [0.0, 0.1, 1e6, [0.1]])
def test_a_zero_gradient_perturbs_by_zero(geometry, rho):
    params = trainable((4, 3))
    ball = Perturbation(params, **geometry)
    assert ball.aim([torch.zeros(4, 3)], rho) == 0
    assert torch.equal(ball.epsilon()[0], torch.zeros(4, 3))


@pytest.mark.parametrize("exchange", [True, False])
def test_weights_come_back_bit_for_bit_even_when_the_step_fails(exchange):
    params = trainable((64, 64), (64,))
    before = [p.detach().clone() for p in params]
    pointers = [p.data_ptr() for p in params]
    ball = Perturbation(params, exchange=exchange)
    ball.aim(some((64, 64), (64,), seed=1), 0.5)

    def fails():
        with ball.there():
            assert not torch.equal(params[0], before[0])
            assert (params[0].data_ptr() == pointers[0]) is not exchange
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert [p.data_ptr() for p in params] == pointers


@pytest.mark.parametrize("geometry", [*GEOMETRIES, PUBLISHED], ids=str)
def test_the_derivative_of_the_perturbation(geometry):
    """∂ε/∂θ for a gradient a(θ) = a₀ + θȧ, against central differences."""
    params = [torch.nn.Parameter(w.double()) for w in some((4, 3), (3,))]
    a, slope = ([t.double() for t in some((4, 3), (3,), seed=s)] for s in (1, 2))
    ball = Perturbation(params, **geometry)

    def epsilon(theta):
        ball.aim([x + theta * y for x, y in zip(a, slope, strict=True)], 0.3, seed=5)
        return ball.epsilon()

    found = ball.derivative(a, slope, 0.3, seed=5)
    for derivative, high, low in zip(found, epsilon(1e-5), epsilon(-1e-5), strict=True):
        torch.testing.assert_close(derivative, (high - low) / 2e-5, rtol=1e-6, atol=1e-9)


def test_the_memory_layout_of_the_weights_is_kept():
    weight = torch.nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last).weight
    stride = weight.stride()
    ball = Perturbation([weight])
    ball.aim([torch.ones(4, 1, 3, 3)], 0.1)
    with ball.there():
        assert weight.stride() == stride


def test_dot_is_the_inner_product_whatever_the_layout():
    a = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    b = torch.randn(2, 3, 4, 4)
    assert torch.isclose(dot([a], [b]), (a * b).sum(), rtol=1e-4)


def test_frozen_statistics_nest_and_return():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3, track_running_stats=False))
    x = torch.randn(8, 3)
    moving = model(x)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with frozen_statistics(model), frozen_statistics(model):
        frozen = model(x)
    assert torch.equal(moving, frozen)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.track_running_stats for m in model] == [True, False]
    model(x)
    assert not torch.equal(model[0].running_mean, before["0.running_mean"])
