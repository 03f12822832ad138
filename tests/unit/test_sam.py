"""The optimizer in a stranger's loop: order of calls, state, groups."""

import copy
import gc
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from bisam_ray.optim import LETS, SAM, FixedRadius, Lookahead, Losses, Sequential, lower_bound

X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3


def closure_of(model, x=X, y=Y):
    def closure():
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def same(a, b):
    """Two modules, bit for bit, statistics included."""
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def problem(**kwargs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    opt = SAM(model.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, **kwargs)
    return model, opt, closure_of(model)


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


def test_step_without_closure_is_the_second_half():
    model_a, a, closure_a = problem()
    model_b, b, closure_b = problem()
    for _ in range(2):
        a.step(closure_a)
        closure_b()
        b.first_step()
        closure_b()
        b.step()
        b.zero_grad()
    same(model_a, model_b)
    closure_b()
    b.first_step()
    with pytest.raises(RuntimeError, match="after first_step"):
        b.step(closure_b)
    with pytest.raises(RuntimeError, match="perturbed"):
        b.load_state_dict(a.state_dict())


SCHEDULERS = {
    "step": lambda opt: lr_scheduler.StepLR(opt, 3, gamma=0.5),
    "one-cycle": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.5, total_steps=20),
    "warm-up": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(opt, 8)], [4]
    ),
}


@pytest.mark.parametrize("held", ["opt", "base"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_do_what_they_do_to_plain_sgd_and_are_resumed(name, held):
    make = SCHEDULERS[name]
    plain = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    expected = make(plain)
    model, opt, closure = problem()
    scheduler = make(opt if held == "opt" else opt.base_optimizer)
    with warnings.catch_warnings():
        # torch warns of a scheduler that saw no step of its optimizer, and of SequentialLR for reasons of its own
        warnings.filterwarnings("error", "Detected call of `lr_scheduler.step")
        for t in range(12):
            if t == 6:
                saved = copy.deepcopy((model.state_dict(), opt.state_dict(), scheduler.state_dict()))
                model, opt, closure = problem()
                scheduler = make(opt if held == "opt" else opt.base_optimizer)
                for part, state in zip((model, opt, scheduler), saved, strict=True):
                    part.load_state_dict(state)
            for optimizer in (opt, opt.base_optimizer):
                assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
                assert optimizer.param_groups[0]["momentum"] == plain.param_groups[0]["momentum"]
            if t % 2:
                opt.step(closure)
            else:
                closure()
                opt.first_step()
                closure()
                opt.second_step()
            plain.step()
            expected.step()
            scheduler.step()


def test_defaults_are_the_base_optimizers():
    opt = SAM([nn.Parameter(torch.zeros(1))], torch.optim.Adam, rho=0.1, lr=0.1)
    lr_scheduler.OneCycleLR(opt, max_lr=0.5, total_steps=20)  # cycles betas, and looks for them in the defaults
    assert opt.param_groups[0]["betas"][0] == pytest.approx(0.95)
    assert opt.defaults["rho"] == 0.1


@pytest.mark.parametrize("through", ["opt", "base"])
def test_added_groups_take_part(through):
    params = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    opt = SAM(params[:1], torch.optim.SGD, rho=0.1, lr=1.0)
    to = opt if through == "opt" else opt.base_optimizer
    to.add_param_group({"params": params[1:2], "rho": 0.5})
    to.add_param_group({"params": params[2:]})
    for p in params:
        p.grad = torch.ones(1)
    opt.first_step()
    assert torch.allclose(torch.cat(params), torch.tensor([0.1, 0.5, 0.1]) / 3**0.5)
    for p in params:
        p.grad = torch.ones(1)
    opt.second_step()
    assert torch.cat(params).tolist() == [-1, -1, -1]
    with pytest.raises(ValueError, match="rho=-1"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "rho": -1})
    assert len(opt.param_groups) == 3


def test_frozen_parameters_stay_and_do_not_count():
    """Momentum and decay would move a parameter whose gradient is zero; one that has none is not there at all."""
    options = {"rho": 0.1, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    model, *_ = problem()
    opt = SAM(model.parameters(), torch.optim.SGD, **options)
    opt.step(closure_of(model))
    other = copy.deepcopy(model)
    rest = SAM(other[3].parameters(), torch.optim.SGD, **options)
    for p, q in zip(model[3].parameters(), other[3].parameters(), strict=True):
        rest.state[q] = copy.deepcopy(opt.state[p])
    for net in (model, other):
        net[:2].requires_grad_(False)
    for _ in range(3):
        opt.step(closure_of(model))
        rest.step(closure_of(other))
    same(model, other)
    model[:2].requires_grad_(True)
    opt.step(closure_of(model))
    assert not torch.equal(model[0].weight, other[0].weight)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
@pytest.mark.parametrize("lets", [None, {}])
def test_copies_are_complete_and_independent(how, lets):
    model, opt, closure = problem(lets=lets)
    opt.step(closure, hyper_closure=closure)
    other, again = how((model, opt))
    before = copy.deepcopy(other)
    for _ in range(2):
        opt.step(closure, hyper_closure=closure)
    same(before, other)
    for _ in range(2):
        again.step(closure_of(other), hyper_closure=closure_of(other))
    same(model, other)
    if lets is None:
        closure()
        opt.first_step()
        with pytest.raises(RuntimeError, match="copy"):
            copy.deepcopy(opt)


def test_hooks_see_one_step():
    _, opt, closure = problem()
    seen = []
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    opt.step(closure)
    assert seen == ["pre", "post"]
    closure()
    opt.first_step()
    assert seen == ["pre", "post"]
    closure()
    opt.second_step()
    assert seen == ["pre", "post"] * 2


def lookahead(groups, **kwargs):
    return Lookahead(torch.optim.SGD(groups, **kwargs), every=3)


def test_lookahead_as_base_and_resumed_within_its_inner_loop():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    plain, other = copy.deepcopy(model), copy.deepcopy(model)
    still = SAM(model.parameters(), lookahead, rho=0.0, lr=0.1, momentum=0.9)
    base = lookahead(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(7):
        still.step(closure_of(model))
        base.step(closure_of(plain))
        base.zero_grad()
    same(model, plain)
    opt = SAM(other.parameters(), lookahead, rho=0.1, lr=0.1, momentum=0.9)
    for t in range(7):
        opt.step(closure_of(other))
        if t == 3:
            middle, state = copy.deepcopy(other), copy.deepcopy(opt.state_dict())
    again = SAM(middle.parameters(), lookahead, rho=0.9, lr=9.0)
    again.load_state_dict(state)
    for _ in range(3):
        again.step(closure_of(middle))
    same(middle, other)


def test_a_checkpoint_of_the_base_optimizer_alone_is_taken():
    model, opt, closure = problem()
    plain = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    plain.step(closure)
    opt.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert (opt.param_groups[0]["rho"], opt.param_groups[0]["lr"]) == (0.1, 0.3)
    assert torch.equal(opt.state[model[0].weight]["momentum_buffer"], plain.state[model[0].weight]["momentum_buffer"])
    opt.step(closure)


def test_gradients_that_cannot_be_perturbed_are_refused():
    words = nn.Embedding(5, 2, sparse=True)
    wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    for params, loss in ((words.parameters(), words(torch.tensor([1])).sum()), ([wave], wave.abs().sum())):
        opt = SAM(params, torch.optim.SGD, rho=0.1, lr=0.1)
        loss.backward()
        with pytest.raises(RuntimeError, match="sparse or complex"):
            opt.first_step()


def test_closures_without_backward_are_refused():
    model, opt, closure = problem()
    before = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="backward"):
        opt.step(lambda: torch.zeros(()))
    _, learning, _ = problem(lets={})
    with pytest.raises(RuntimeError, match="backward"):
        learning.step(lambda: torch.zeros(()), hyper_closure=closure)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


# a learned radius


def learning(model, **lets):
    return SAM(model.parameters(), torch.optim.SGD, rho=0.1, model=model, lets=lets, lr=0.1, momentum=0.9)


def learn(opt, model, steps):
    for _ in range(steps):
        opt.step(closure_of(model), hyper_closure=closure_of(model, X.flip(0), Y))


@pytest.mark.parametrize("ascent", [False, True])
@pytest.mark.parametrize("lets", [{}, {"train_batch": "same"}, {"curvature": "diagonal"}, {"every": 2}], ids=str)
def test_a_learned_radius_is_that_of_sequential(lets, ascent):
    """Closures and `evaluate` are two ways to say the same step, statistics included."""
    model, *_ = problem()
    other = copy.deepcopy(model)
    opt = learning(model, **lets)
    base = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)

    def evaluate(batch):
        logits = other(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        return Losses(lower_bound(logits, batch[1], "log"), loss) if ascent else Losses(loss, loss)

    def climb():
        lower_bound(model(X), Y, "log").backward()

    radius = LETS(other.parameters(), base, 0.1, **lets)
    step = Sequential(other.parameters(), base, evaluate, radius, model=other)
    for t in range(6):
        opt.step(closure_of(model), climb if ascent else None, closure_of(model, X.flip(0), Y))
        step((X, Y), hyper=lambda: (X.flip(0), Y))
        same(model, other)
        assert torch.equal(opt.radius.log, radius.log), t
    assert opt.radius.updates > 1


def test_a_learned_radius_is_resumed_with_its_moments_and_its_pending_step():
    model, *_ = problem()
    opt = learning(model)
    learn(opt, model, 4)
    stored = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), stored)
    learn(opt, model, 4)
    stored.seek(0)
    other, *_ = problem()
    again = learning(other)
    for part, state in zip((other, again), torch.load(stored, map_location="cpu", weights_only=True), strict=True):
        part.load_state_dict(state)
    learn(again, other, 4)
    same(model, other)
    assert torch.equal(opt.radius.log, again.radius.log)
    assert opt.radius.rho != 0.1
    with pytest.raises(ValueError, match="one side only"):
        again.load_state_dict(problem()[1].state_dict())
    with pytest.raises(ValueError, match="one side only"):
        problem()[1].load_state_dict(again.state_dict())


def test_a_learned_radius_moves_to_the_device_of_its_parameters():
    model, *_ = problem()
    opt = learning(model)
    learn(opt, model, 2)
    state = opt.state_dict()["radius"]
    elsewhere = [nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()]
    there = LETS(elsewhere, torch.optim.SGD(elsewhere, lr=0.1))
    there.load_state_dict(state)
    moved = there.state_dict()
    tensors = [moved["log"], moved["moment"], moved["moment2"], *moved["hyper"], *moved["curved"][0]]
    assert {t.device.type for t in tensors} == {"meta"}
    assert opt.radius.log.device.type == "cpu"


@pytest.mark.parametrize("curvature", ["secant", "diagonal"])
def test_a_learned_radius_lets_frozen_parameters_be(curvature):
    model, *_ = problem()
    opt = learning(model, curvature=curvature)
    learn(opt, model, 2)
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0])
    learn(opt, model, 3)
    same(before, model[0])
    model[0].requires_grad_(True)
    learn(opt, model, 2)
    assert not torch.equal(before.weight, model[0].weight)
    assert opt.radius.log.isfinite().all()


def test_what_a_learned_radius_cannot_do_is_refused():
    model, *_ = problem()
    for lets in ({"curvature": "exact"}, {"curvature": "finite_difference"}, {"learn": {"mu": 1.0}}, {"groups": [0]}):
        with pytest.raises(ValueError, match="closures only"):
            learning(model, **lets)
    groups = [{"params": model[0].parameters(), "rho": 0.2}, {"params": model[3].parameters()}]
    with pytest.raises(ValueError, match="one radius"):
        SAM(groups, torch.optim.SGD, rho=0.1, lets={}, lr=0.1)
    opt = learning(model)
    with pytest.raises(RuntimeError, match="hyper_closure"):
        opt.step(closure_of(model))
    closure_of(model)()
    with pytest.raises(RuntimeError, match="needs closures"):
        opt.first_step()
    with pytest.raises(RuntimeError, match="anew"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


# more than one backward pass, clipping, memory, compilation


def test_accumulated_gradients_are_those_of_the_whole_batch():
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    parts = copy.deepcopy(whole)
    a, b = (SAM(m.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9) for m in (whole, parts))
    x = X.double()

    def in_parts():
        for i in range(0, 16, 4):
            (nn.functional.cross_entropy(parts(x[i : i + 4]), Y[i : i + 4]) / 4).backward()

    for _ in range(5):
        a.step(closure_of(whole, x))
        in_parts()
        b.first_step()
        in_parts()
        b.second_step()
        for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_clipping_is_of_the_descent_alone():
    """Between the calls, in the closure, and by Sequential: the same steps, and shorter ones than without."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, bound = X.double(), 0.01
    calls, closures, sequential, free = (copy.deepcopy(start) for _ in range(4))
    a, b, d = (SAM(m.parameters(), torch.optim.SGD, rho=0.3, lr=0.1, momentum=0.9) for m in (calls, closures, free))
    base = torch.optim.SGD(sequential.parameters(), lr=0.1, momentum=0.9)

    def evaluate(_):
        loss = nn.functional.cross_entropy(sequential(x), Y)
        return Losses(loss, loss)

    c = Sequential(sequential.parameters(), base, evaluate, FixedRadius(0.3), clip=bound)

    def clipped():
        loss = closure_of(closures, x)()
        nn.utils.clip_grad_norm_(closures.parameters(), bound)
        return loss

    for _ in range(5):
        closure_of(calls, x)()
        a.first_step()
        closure_of(calls, x)()
        nn.utils.clip_grad_norm_(calls.parameters(), bound)
        a.second_step()
        b.step(clipped)
        c(None)
        d.step(closure_of(free, x))
        for p, q, r in zip(calls.parameters(), closures.parameters(), sequential.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-7)  # clip_grad_norm_ adds 1e-6 to the norm
            torch.testing.assert_close(p, r, rtol=1e-4, atol=1e-7)
    assert (calls[0].weight - start[0].weight).norm() < 0.1 * (free[0].weight - start[0].weight).norm()


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_copy_of_the_parameters_is_kept(adaptive):
    shape = 257, 131  # nobody else's
    model = nn.Linear(*reversed(shape), bias=False)
    x, y = torch.randn(4, shape[1]), torch.zeros(4, dtype=torch.long)
    opt = SAM(model.parameters(), torch.optim.SGD, rho=0.1, adaptive=adaptive, lr=0.1, momentum=0.9)

    def alive():
        gc.collect()
        of_this_shape = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.shape == shape]
        storages = [t for p in of_this_shape for t in (p, p.grad if p.is_leaf else None) if t is not None]
        return len({t.untyped_storage().data_ptr() for t in storages})

    opt.step(closure_of(model, x, y))
    closure_of(model, x, y)()
    opt.first_step()
    during = alive()
    closure_of(model, x, y)()
    opt.second_step()
    assert (during, alive()) == (3, 3)  # weights, momentum, and the other weights


@pytest.mark.slow
def test_a_compiled_network_takes_the_same_steps_and_is_compiled_twice():
    """Once with moving statistics and once without; the weights it sees are those of the moment."""
    from torch._dynamo.utils import counters

    model, opt, _ = problem()
    opt.model = model
    twin, other = copy.deepcopy((model, opt))
    compiled = torch.compile(twin, fullgraph=True)
    base = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    base.load_state_dict(other.base_optimizer.state_dict())

    def evaluate(_):
        loss = nn.functional.cross_entropy(compiled(X), Y)
        return Losses(loss, loss)

    sequential = Sequential(twin.parameters(), base, evaluate, FixedRadius(0.1), model=twin)
    before = counters["stats"]["unique_graphs"]
    for t in range(8):
        opt.step(closure_of(model))
        if t < 4:
            other.step(closure_of(compiled))
        else:
            base.load_state_dict(copy.deepcopy(other.base_optimizer.state_dict())) if t == 4 else None
            sequential(None)
        for p, q in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] - before <= 2
