"""The optimizer in a stranger's loop: order of calls, state, groups."""

import copy

import pytest
import torch
from torch import nn

from bisam_ray.optim import SAM


def problem(**kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    opt = SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, **kwargs)

    def closure():
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return model, opt, closure


def test_both_forms_are_the_same_step():
    model_a, a, closure_a = problem()
    model_b, b, closure_b = problem()
    for _ in range(5):
        a.step(closure_a)
        closure_b()
        b.first_step()
        closure_b()
        b.second_step()
    assert all(torch.equal(p, q) for p, q in zip(model_a.parameters(), model_b.parameters(), strict=True))


def test_momentum_survives_state_dict():
    model, opt, closure = problem()
    for _ in range(3):
        opt.step(closure)
    other, again, closure_again = problem()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    for _ in range(3):
        opt.step(closure)
        again.step(closure_again)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_scheduler_moves_the_base_optimizers_rate():
    _, opt, closure = problem()
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
    opt.step(closure)
    scheduler.step()
    assert opt.base_optimizer.param_groups[0]["lr"] == 0.05


def test_statistics_move_once_when_the_model_is_given():
    model, _, closure = problem()
    opt = SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, model=model)
    opt.step(closure)
    assert int(model[1].num_batches_tracked) == 1


def test_groups_have_their_own_radius():
    w = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    opt = SAM([{"params": w[:1], "rho": 0.5}, {"params": w[1:]}], torch.optim.SGD, rho=0.1, lr=1.0)
    for p in w:
        p.grad = torch.ones(1)
    opt.first_step()
    assert torch.allclose(torch.cat([p.detach() for p in w]), torch.tensor([0.5, 0.1]) / 2**0.5)
    opt.restore()


def test_calls_out_of_order_are_refused_and_weights_kept():
    model, opt, closure = problem()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="without first_step"):
        opt.second_step()
    with pytest.raises(RuntimeError, match="no gradient"):
        opt.first_step()
    with pytest.raises(RuntimeError, match="needs a closure"):
        opt.step()
    closure()
    opt.first_step()
    with pytest.raises(RuntimeError, match="twice"):
        opt.first_step()
    with pytest.raises(RuntimeError, match="perturbed"):
        opt.state_dict()
    opt.restore()

    calls = iter([True, False])

    def failing():
        loss = closure()
        if not next(calls):
            raise MemoryError
        return loss

    with pytest.raises(MemoryError):
        opt.step(failing)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="rho=-1"):
        SAM([nn.Parameter(torch.zeros(1))], torch.optim.SGD, rho=-1, lr=0.1)
