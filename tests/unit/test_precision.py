"""Half precision: its accuracy, and a loss scaler that skips what overflowed, all of it and nothing else."""

import copy
import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from bisam_ray.config import resolve
from bisam_ray.optim import LETS, RAPP, SAM, FixedRadius, Lookahead, Losses, Parallel, Sequential
from bisam_ray.optim.comm import Distributed
from bisam_ray.training import checkpoint, engine

GRADSCALER = torch.amp.GradScaler
X, Y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
SGD = {"lr": 0.1, "momentum": 0.9}
BASES = {
    "sgd": lambda params: torch.optim.SGD(params, **SGD),
    "fused sgd": lambda params: torch.optim.SGD(params, **SGD, fused=True),
    "fused adamw": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "lookahead": lambda params: Lookahead(torch.optim.SGD(params, **SGD, fused=True), every=2),
    "rapp": lambda params: RAPP(torch.optim.SGD(params, **SGD, fused=True), every=2),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def scaler(scale=2.0**16):
    made = GRADSCALER("cpu", init_scale=scale)
    made.scale(torch.ones(()))  # its scale is a tensor from the first use on
    return made


def frozen(*parts):
    """Everything that a skipped step must not change."""
    return copy.deepcopy([part.state_dict() for part in parts])


def same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "cost/seconds"}:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


# the optimizer in two calls


def two_calls(model, opt, scaling, overflow=None, clip=None):
    """One step; in the pass `overflow` one number of the scaled gradient is infinite."""
    for which in ("ascent", "descent"):
        scaling.scale(nn.functional.cross_entropy(model(X), Y)).backward()
        if overflow == which:
            model[0].weight.grad[0, 0] = torch.inf
        if which == "ascent":
            opt.first_step()
    if clip is not None:
        scaling.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    opt.second_step(scaling)
    scaling.update()


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_ascent_does_not_depend_on_the_scale(adaptive):
    found = []
    for scale in (1.0, 1000.0, 2.0**16):
        model = network()
        opt = SAM(model.parameters(), BASES["sgd"], rho=0.1, adaptive=adaptive)
        before = [p.detach().clone() for p in model.parameters()]
        scaler(scale).scale(nn.functional.cross_entropy(model(X), Y)).backward()
        opt.first_step()
        found.append(torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]).detach())
        opt.restore()
    assert found[0].norm() > 0.05
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("base", BASES)
def test_gradients_are_unscaled_once(base, clip):
    """A power of two changes no bit: the steps are those without a scaler."""
    runs = []
    for scaling in (scaler(), GRADSCALER("cpu", enabled=False)):
        model = network()
        opt = SAM(model.parameters(), BASES[base], rho=0.1, model=model)
        for _ in range(5):
            two_calls(model, opt, scaling, clip=clip)
        runs.append(model.state_dict())
    same(*runs)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("overflow", ["ascent", "descent"])
@pytest.mark.parametrize("base", BASES)
def test_an_overflow_skips_the_step_and_nothing_else(base, overflow, clip, before):
    model, scaling = network(), scaler()
    opt = SAM(model.parameters(), BASES[base], rho=0.1, model=model)
    for _ in range(before):
        two_calls(model, opt, scaling)
    twin, other = copy.deepcopy((model, opt))
    twin(X)  # the statistics of the first pass have moved, once and at the weights
    was = frozen(twin, opt)
    two_calls(model, opt, scaling, overflow, clip)
    same(was, frozen(model, opt))
    assert scaling.get_scale() == 2.0**15
    assert all(p.grad is None for p in model.parameters())
    for _ in range(3):
        two_calls(model, opt, scaling, clip=clip)
        two_calls(twin, other, scaler(), clip=clip)
    same(*frozen(model, twin))


def test_autocast_around_a_whole_step_sees_the_perturbed_weights():
    """autocast keeps its casts of the weights until it is left."""
    inside, outside = network(), network()
    a, b = (SAM(m.parameters(), BASES["sgd"], rho=0.5) for m in (inside, outside))

    def loss_of(model):
        loss = nn.functional.cross_entropy(model(X).float(), Y)
        loss.backward()
        return loss

    def cast():
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(outside)

    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            a.step(lambda: loss_of(inside))
        b.step(cast)
    same(*frozen(inside, outside))


# the step of the engine


def stepping(model, base, scaling=None, radius=None, kind=Sequential, **options):
    """A step over `model`; the pass numbered `overflow.at`, counted from 0, has an infinite gradient."""

    class Overflow(torch.autograd.Function):
        at, passes = None, 0

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            Overflow.passes += 1
            return gradient * torch.inf if Overflow.passes - 1 == Overflow.at else gradient

    def evaluate(batch):
        loss = nn.functional.cross_entropy(Overflow.apply(model(batch)), Y)
        return Losses(loss, loss)

    params = list(model.parameters())
    optimizer = BASES[base](params)
    radius = FixedRadius(0.1) if radius is None else radius(params, optimizer)
    step = kind(params, optimizer, evaluate, radius, model=model, scaler=scaling, **options)
    ahead = {"following": lambda: X} if kind is Parallel else {}

    def run(overflow=None):
        Overflow.at, Overflow.passes = overflow, 0
        return step(X, hyper=lambda: X.flip(0), **ahead)

    return run, step


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("base", BASES)
def test_a_scaler_that_meets_no_overflow_changes_nothing(base, clip):
    runs = []
    for scaling in (None, scaler(), GRADSCALER("cpu", enabled=False)):
        model = network()
        run, step = stepping(model, base, scaling, clip=clip)
        for _ in range(5):
            run()
        runs.append(frozen(model, step.base))
    same(runs[0], runs[1])
    same(runs[0], runs[2])
    assert scaling.is_enabled() or step.scaler is None


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("overflow", [0, 1], ids=["ascent", "descent"])
@pytest.mark.parametrize("base", BASES)
def test_a_step_that_overflows_is_skipped(base, overflow, before):
    """Of fused SGD also the very first one, whose momentum torch leaves uninitialised."""
    model, scaling = network(), scaler()
    run, step = stepping(model, base, scaling)
    for _ in range(before):
        run()
    twin = copy.deepcopy(model)
    twin(X)
    was = frozen(twin, step.base)
    run(overflow)
    same(was, frozen(model, step.base))
    assert scaling.get_scale() == 2.0**15
    run()
    assert scaling.get_scale() == 2.0**15
    assert not torch.equal(model[0].weight, twin[0].weight)
    assert all(v.isfinite().all() for v in model.state_dict().values())
    if not before:  # the first step that is made is a first step
        stepping(twin, base)[0]()
        same(*frozen(model, twin))


@pytest.mark.parametrize("lets", [{}, {"train_batch": "same"}, {"goal": "validation"}, {"gap_ema": 0.5}], ids=str)
@pytest.mark.parametrize("overflow", range(4))
def test_a_learned_radius_learns_nothing_from_an_overflow(lets, overflow):
    """In the first pass, which completes the last step's hypergradient; the second; held-out data; the same batch."""
    model, scaling = network(), scaler()
    run, step = stepping(model, "fused sgd", scaling, lambda params, base: LETS(params, base, 0.1, **lets))
    radius = step.radius
    for _ in range(3):
        run()
    log = radius.log.clone()
    run(overflow)
    teaching = 4 if "train_batch" in lets else 3 if "goal" in lets else 1  # so many passes went into this update
    assert torch.equal(radius.log, log) == (overflow < teaching)
    after = radius.log.clone()
    for _ in range(3):
        run()
    assert not torch.equal(radius.log, after)
    for t in (radius.log, radius.moment, radius.moment2, radius.mean_gap, *model.state_dict().values()):
        assert t.isfinite().all()


@pytest.mark.parametrize("between", ["direction", "descent"])
def test_a_direction_that_overflowed_is_not_ascended_again(between):
    model, scaling = network(), scaler()
    run, _ = stepping(model, "sgd", scaling, every=4, between=between)
    run(0)  # infinite ascent
    assert scaling.get_scale() == 2.0**15
    for _ in range(6):
        run()
    assert scaling.get_scale() == 2.0**15
    assert all(v.isfinite().all() for v in model.state_dict().values())


@pytest.mark.parametrize("overflow", range(3), ids=["start", "descent", "ahead"])
def test_sampa_recovers_from_an_overflow_wherever_it_is(overflow):
    model, scaling = network(), scaler()
    run, _ = stepping(model, "fused sgd", scaling, kind=Parallel)
    run(overflow)
    assert scaling.get_scale() == 2.0**15
    assert all(v.isfinite().all() for v in model.state_dict().values())
    before = copy.deepcopy(model)
    for _ in range(3):
        run()
    assert scaling.get_scale() == 2.0**15
    assert not torch.equal(model[0].weight, before[0].weight)
    assert all(v.isfinite().all() for v in model.state_dict().values())


# the engine


def test_bfloat16_trains_to_the_accuracy_of_float32():
    found = {}
    for precision in ("float32", "bfloat16"):
        accuracies = []
        for seed in range(3):
            *_, record = engine.run(resolve({"train.epochs": 6, "seed": seed, "scale.precision": precision}))
            accuracies.append(record.metrics["val/accuracy"])
        found[precision] = sum(accuracies) / 3
    assert found["float32"] > 0.9
    assert abs(found["bfloat16"] - found["float32"]) < 0.02


METHODS = [
    {"method": "sgd"},
    {"method": "sam", "optim.clip": 1.0},
    {"method": "asam"},
    {"method": "lets-sam"},
    {"method": "lets-bisam-tanh"},
    {"method": "sam", "optim.wrapper": "lookahead"},
    {"method": "sam", "optim.every": 2, "optim.between": "descent"},
    {"method": "sam", "optim.schedule": "parallel"},
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: " ".join(map(str, m.values())))
def test_float16_recovers_from_real_overflows_and_is_resumed_bit_for_bit(tmp_path, monkeypatch, method):
    """A scale of 2²⁸ overflows in the first steps of the run; the scaler has come down from it in the checkpoint."""
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: GRADSCALER(device, init_scale=2.0**28))
    quick = {"model.name": "cnn", "train.epochs": 5, "data.split_seed": 1, "scale.precision": "float16"}
    config, path = resolve(quick, method), tmp_path / "run.pt"
    for record in engine.run(config):
        assert all(v.isfinite().all() for v in record.state()["model"].values())
        assert all(abs(v) < 1e6 for v in record.metrics.values()), record.metrics
        if record.epoch == 2:
            checkpoint.save(path, config, record.state())
    scale = record.state()["schedule"]["scaler"]["scale"]
    assert 2.0**12 < scale < 2.0**28
    assert record.metrics["val/accuracy"] > 0.8
    _, state = checkpoint.load(path)
    assert state["schedule"]["scaler"]["scale"] < 2.0**28
    *_, resumed = engine.run(config, state=state)
    same(record.state(), resumed.state())


# several processes


def overflow_on_one_process(rank, port, path):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for overflow in ("ascent", "descent"):
        model = network()
        copies, scaling = nn.parallel.DistributedDataParallel(model), scaler()
        opt = SAM(model.parameters(), BASES["fused sgd"], rho=0.1, model=model)
        x, seen = X[rank::2], []
        for t in range(4):
            bad = t == 1 and rank == 0
            with copies.no_sync():  # every process perturbs by itself
                scaling.scale(nn.functional.cross_entropy(copies(x), Y[rank::2])).backward()
            if bad and overflow == "ascent":
                model[0].weight.grad[0, 0] = torch.inf
            opt.first_step()
            loss = nn.functional.cross_entropy(copies(x), Y[rank::2])
            scaling.scale(loss * torch.inf if bad and overflow == "descent" else loss).backward()
            opt.second_step(scaling)
            scaling.update()
            seen.append((frozen(opt)[0], [p.detach().clone() for p in model.parameters()], scaling.get_scale()))
        found["calls", overflow] = seen, [b.isfinite().all().item() for b in model.buffers()]

        model, scaling = network(), scaler()
        run, step = stepping(model, "fused sgd", scaling, comm=Distributed())
        seen = []
        for t in range(4):
            run({"ascent": 0, "descent": 1}[overflow] if t == 1 and rank == 0 else None)
            seen.append((frozen(step.base)[0], [p.detach().clone() for p in model.parameters()], scaling.get_scale()))
        found["step", overflow] = seen, [b.isfinite().all().item() for b in model.buffers()]
    torch.save(found, f"{path}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # past the interpreter's end, where gloo's threads now and then abort (pytorch/pytorch#179291)


def test_an_overflow_on_one_process_skips_the_step_on_all(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(overflow_on_one_process, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    same(first, second)
    for seen, finite in first.values():
        assert [scale for *_, scale in seen] == [2.0**16, 2.0**15, 2.0**15, 2.0**15]
        same(seen[0][:2], seen[1][:2])
        assert not torch.equal(seen[1][1][0], seen[2][1][0])
        assert all(finite)
