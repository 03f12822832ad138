"""One training step of this package and of other code, for throughput.py: the same arithmetic, written by others.

sgd               one gradient: twice its time is the limit of every method with an ascent step
sam, bisam-*, lets-bisam-tanh     this package (optim/ alone: torch is all it needs)
official-*        the BiSAM authors' step, written anew from its description: margins row by row, edited in place
                  on a copy of the logits; the bound without 1/µ; weights cloned, moved and put back parameter by
                  parameter; labels smoothed in the second pass, over the wrong classes
pytorch_optimizer, sam-pytorch    their SAM; the base optimizer is fused, as here
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bisam_ray.optim import LETS, FixedRadius, Losses, Sequential, cross_entropy, lower_bound
from bisam_ray.optim.losses import GAMMA

CLASSES, RHO, ALPHA, SMOOTHING = 10, 0.05, 0.1, 0.1
MU = {"tanh": 10.0, "log": 1.0}
SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}
MODELS = ("resnet56", "wrn28-10", "resnet20", "cnn")
Batch = tuple[Tensor, Tensor]
Forward = Callable[[Tensor], Tensor]
Step = Callable[[Batch, Batch], Any]  # of a step's batch and one of held-out data
Maker = Callable[[nn.Module, Forward, float], Step]  # of a network, its forward pass, the learning rate


def build(name: str) -> nn.Module:
    """Networks for 32×32 px; those of the papers are pytorchcv's."""
    if name == "cnn":
        blocks = [(3, 8), (8, 16)]
        layers = [nn.Sequential(nn.Conv2d(*c, 3, 2, 1, bias=False), nn.BatchNorm2d(c[1]), nn.ReLU()) for c in blocks]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    if name == "wrn28-10":
        from pytorchcv.models.wrn_cifar import get_wrn_cifar

        return get_wrn_cifar(num_classes=CLASSES, blocks=28, width_factor=10)
    from pytorchcv.models.resnet_cifar import get_resnet_cifar

    return get_resnet_cifar(num_classes=CLASSES, blocks=int(name.removeprefix("resnet")), bottleneck=False)


def smoothed(logits: Tensor, y: Tensor) -> Tensor:
    """Smoothing over the wrong classes, in PyTorch's terms."""
    return cross_entropy(logits, y, SMOOTHING * CLASSES / (CLASSES - 1))


def ours(phi: Literal["tanh", "log"] | None, radius: Literal["none", "fixed", "learned"] = "fixed") -> Maker:
    def make(model: nn.Module, forward: Forward, lr: float) -> Step:
        params = list(model.parameters())
        base = torch.optim.SGD(params, lr=lr, fused=True, **SGD)
        policy = {
            "none": lambda: None,
            "fixed": lambda: FixedRadius(RHO),
            "learned": lambda: LETS(params, base, RHO, warmup=0.0, total_steps=1_000_000),
        }[radius]()

        def evaluate(batch: Batch) -> Losses:
            logits, y = forward(batch[0]), batch[1]
            descent = smoothed(logits, y)
            return Losses(descent if phi is None else lambda: lower_bound(logits, y, phi, MU[phi], ALPHA), descent)

        step = Sequential(params, base, evaluate, policy, model=model)
        return lambda batch, hyper: step(batch, hyper=lambda: hyper)

    return make


def official_bound(logits: Tensor, y: Tensor, phi: str) -> Tensor:
    """µ times BiSAM's bound, up to a constant."""
    margins = logits.clone()
    for row in range(len(y)):
        margins[row] -= logits[row, y[row]]
    squashed = torch.tanh(ALPHA * margins) if phi == "tanh" else 1 + F.logsigmoid(margins - GAMMA)
    return torch.logsumexp(MU[phi] * squashed, dim=1).mean()


def official_loss(logits: Tensor, y: Tensor) -> Tensor:
    wanted = torch.full_like(logits, SMOOTHING / (logits.shape[1] - 1)).scatter_(1, y[:, None], 1 - SMOOTHING)
    return F.kl_div(F.log_softmax(logits, dim=1), wanted, reduction="batchmean")


def official(phi: str) -> Maker:
    def make(model: nn.Module, forward: Forward, lr: float) -> Step:
        params = list(model.parameters())
        base = torch.optim.SGD(params, lr=lr, **SGD)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

        def step(batch: Batch, hyper: Batch) -> None:
            x, y = batch
            for norm in norms:
                norm.momentum = 0.1
            official_bound(forward(x), y, phi).backward()
            with torch.no_grad():
                size = torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm()
                origin = []
                for p in params:
                    origin.append(p.detach().clone())
                    p.add_(p.grad * (RHO / (size + 1e-12)))
            base.zero_grad()
            for norm in norms:
                norm.momentum = 0.0
            official_loss(forward(x), y).backward()
            for p, w in zip(params, origin, strict=True):
                p.data = w
            base.step()
            base.zero_grad()

        return step

    return make


def two_calls(sam: Any) -> Maker:
    """first_step, second_step: pytorch_optimizer."""

    def make(model: nn.Module, forward: Forward, lr: float) -> Step:
        optimizer = sam(model.parameters(), torch.optim.SGD, rho=RHO, lr=lr, fused=True, **SGD)

        def step(batch: Batch, hyper: Batch) -> None:
            for update in (optimizer.first_step, optimizer.second_step):
                smoothed(forward(batch[0]), batch[1]).backward()
                update(zero_grad=True)

        return step

    return make


def closures(sam: Any) -> Maker:
    """step(closure) around a given optimizer: sam-pytorch."""

    def make(model: nn.Module, forward: Forward, lr: float) -> Step:
        base = torch.optim.SGD(model.parameters(), lr=lr, fused=True, **SGD)
        optimizer = sam(model.parameters(), base, rho=RHO)

        def step(batch: Batch, hyper: Batch) -> None:
            def closure() -> Tensor:
                base.zero_grad()
                loss = smoothed(forward(batch[0]), batch[1])
                loss.backward()
                return loss

            optimizer.step(closure)

        return step

    return make


PEERS = {"pytorch_optimizer": ("pytorch_optimizer", two_calls), "sam-pytorch": ("sam", closures)}  # module, form
MAKERS: dict[str, Maker] = {
    "sgd": ours(None, "none"),
    "sam": ours(None),
    "bisam-tanh": ours("tanh"),
    "bisam-log": ours("log"),
    "lets-bisam-tanh": ours("tanh", "learned"),
    "official-tanh": official("tanh"),
    "official-log": official("log"),
}
SAME = {"official-tanh": "bisam-tanh", "official-log": "bisam-log", "pytorch_optimizer": "sam", "sam-pytorch": "sam"}


def installed() -> dict[str, Maker]:
    """Name → maker of a step, of everybody who is there; says who is not."""
    found = dict(MAKERS)
    for name, (module, form) in PEERS.items():
        try:
            found[name] = form(importlib.import_module(module).SAM)
            print(f"{name} {importlib.metadata.version(name)}")
        except ImportError:
            print(f"{name}: not installed, left out (pip install {name})")
    return found


def noise(batch_size: int, device: torch.device, seed: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Images of 32×32 px and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch_size, 3, 32, 32, generator=generator, dtype=dtype)
    y = torch.randint(CLASSES, (batch_size,), generator=generator)
    return x.to(device, memory_format=torch.channels_last), y.to(device)


def check(makers: dict[str, Maker], device: torch.device) -> dict[str, float]:
    """Largest relative difference of the weights from those of ours after three steps, of everybody in SAME.

    Raises:
        RuntimeError: above 1e-6 (somebody's norm is in float32).
    """

    def trained(name: str) -> Tensor:
        torch.manual_seed(0)
        model = build("cnn").to(device, torch.float64)
        step = makers[name](model, model, 0.1)
        for seed in range(3):
            step(noise(16, device, seed, torch.float64), noise(16, device, 9, torch.float64))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    apart = {}
    for name in makers.keys() & SAME.keys():
        there, here = trained(name), trained(SAME[name])
        apart[name] = float((there - here).norm() / here.norm())
        if not apart[name] < 1e-6:
            raise RuntimeError(f"{name}: its weights are not those of {SAME[name]}, {apart[name]:.1e} apart")
    return apart
