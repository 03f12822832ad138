"""Whose examples share a perturbation: any number of processes is one process with the same scope."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from bisam_ray.optim.comm import Solo

from .worker import METHODS, SCOPES, train


@cache
def alone(method: str, scope: str | int) -> dict[str, Tensor]:
    return train(METHODS[method].on(scope), Solo())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("world", "scope"), [(w, s) for w, scopes in SCOPES.items() for s in scopes])
def test_processes_are_one_process_with_the_same_scope(ranks: Any, world: int, scope: str | int, method: str) -> None:
    found = ranks(world, f"{method}, {scope}")
    for other in found[1:]:
        for name in ("weights", "logs"):
            assert torch.equal(found[0][name], other[name]), f"{name} differ between processes"
    expected = alone(method, SCOPES[world][scope])
    # a difference of gradients over a step of 1e-8 has noise of that size
    rtol = 1e-6 if "finite difference" in method else 1e-12
    torch.testing.assert_close(found[0], expected, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("method", METHODS)
def test_the_scopes_are_not_all_the_same(method: str) -> None:
    assert METHODS[method].lets is None or alone(method, "global")["logs"].diff(dim=0).abs().max() > 1e-3
    for scope in (1, 2, 4):
        difference = alone(method, "global")["weights"] - alone(method, scope)["weights"]
        assert difference.abs().max() > 1e-6


@pytest.mark.parametrize(("scope", "same"), [("global", "global"), ("local", 4)])
def test_a_strangers_loop_under_ddp_is_the_same_step(ranks: Any, scope: str, same: str | int) -> None:
    found = ranks(2, f"ddp: {scope}")
    assert torch.equal(found[0]["weights"], found[1]["weights"])
    torch.testing.assert_close(found[0]["weights"], alone("sam", same)["weights"], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_buffers_of_a_strangers_loop(ranks: Any, scope: str) -> None:
    """With broadcast_buffers every step starts from the statistics of rank 0, which saw its own examples only.

    Without, every rank keeps its own. Rank 0 ends with the same ones, and they move once a step, either way; in
    training they change no gradient.
    """
    with_, without = (ranks(2, f"ddp: {scope}, {broadcast}") for broadcast in (True, False))
    for rank in (0, 1):
        assert torch.equal(with_[rank]["weights"], without[0]["weights"])
    for name, kept in without[0]["buffers"].items():
        assert torch.equal(with_[0]["buffers"][name], kept), name
    assert with_[0]["buffers"]["0.num_batches_tracked"] == len(with_[0]["weights"])
    own = [r["buffers"]["0.running_mean"] for r in without]
    given = [r["buffers"]["0.running_mean"] for r in with_]
    assert not torch.equal(*own)
    # both passes synchronised: the second one's forward broadcasts too
    assert torch.equal(*given) == (scope == "global")


def test_means_of_several_types_in_any_layout(ranks: Any) -> None:
    for seen in ranks(2, "means"):
        one, precise, half, turned, empty = seen["tensors"]
        assert one == 1.5
        assert torch.equal(precise, torch.full((2, 3), 2.0**-40 + 0.5, dtype=torch.float64))
        assert torch.equal(half, torch.full((2,), 1.5, dtype=torch.bfloat16))
        assert torch.equal(turned, torch.arange(6.0).view(2, 3).t() * 1.5)
        assert empty.numel() == 0
        assert seen["refused"] == "a mean over the processes of int64: counts have none"
        assert seen["alone"] == 1
        assert seen["whole"]


def test_two_roles_hand_over_every_bit(ranks: Any) -> None:
    for seen in ranks(2, "exchanged"):
        for mine, found in zip(seen["mine"], seen["found"], strict=True):
            for sent, got in zip(mine, found, strict=True):
                assert torch.equal(sent, got)
                assert torch.equal(sent.signbit(), got.signbit())
                assert (sent.stride(), sent.dtype) == (got.stride(), got.dtype)
