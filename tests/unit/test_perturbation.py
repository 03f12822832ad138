"""Direction, exact restore, statistics."""

import pytest
import torch

from bisam_ray.optim import frozen_statistics
from bisam_ray.optim.perturbation import dot, global_norm, perturbation, perturbed


def some(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("geometry", ["l2", "adaptive"])
def test_the_perturbation_has_length_rho_in_its_geometry(geometry):
    params, ascent = some((4, 3), (3,)), some((4, 3), (3,), seed=1)
    epsilon, _ = perturbation(params, ascent, 0.3, geometry, xi=0.01)
    if geometry == "adaptive":
        epsilon = [epsilon[0] / (params[0].abs() + 0.01), epsilon[1]]
    assert torch.isclose(global_norm(epsilon), torch.tensor(0.3))


@pytest.mark.parametrize("geometry", ["l2", "adaptive"])
@pytest.mark.parametrize("rho", [0.0, 0.1, 1e6])
def test_a_zero_gradient_perturbs_by_zero(geometry, rho):
    params = some((4, 3))
    epsilon, norm = perturbation(params, [torch.zeros(4, 3)], rho, geometry)
    assert norm == 0
    assert torch.equal(epsilon[0], torch.zeros(4, 3))


def test_weights_come_back_bit_for_bit_even_when_the_step_fails():
    params = [torch.nn.Parameter(p) for p in some((64, 64), (64,))]
    before = [p.detach().clone() for p in params]
    pointers = [p.data_ptr() for p in params]

    def fails():
        with perturbed(params, some((64, 64), (64,), seed=1)):
            assert not torch.equal(params[0], before[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert [p.data_ptr() for p in params] == pointers


def test_the_memory_layout_of_the_weights_is_kept():
    weight = torch.nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last).weight
    stride = weight.stride()
    with perturbed([weight], [torch.ones(4, 1, 3, 3)]):
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
