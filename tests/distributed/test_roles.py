"""SAMPa on two processes is SAMPa on one, bit for bit; on four it is that within rounding."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from .worker import CONTINUED, SAMPA, SAMPA_OF_FOUR, configuration, sampa

STEPS, BATCH = 30, 96


@cache
def alone(case: str) -> dict[str, Any]:
    return sampa(configuration(case))


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every tensor and number of a nested state, by its path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return {path: value}
    return {k: v for name, inner in items for k, v in leaves(inner, f"{path}/{name}").items()}


def equal(one: Any, other: Any) -> None:
    one, other = leaves(one), leaves(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        same = torch.equal(value, other[path]) if isinstance(value, Tensor) else value == other[path]
        assert same, f"{path}: {value} is not {other[path]}"


@pytest.mark.parametrize("case", SAMPA)
def test_two_processes_are_one_bit_for_bit(ranks: Any, case: str) -> None:
    """The whole state: weights, statistics, optimizer, radius, the gradients kept, the record of ρ, the metrics."""
    expected = alone(case)
    for found in ranks(2, f"sampa: {case}"):
        equal(found["state"], expected["state"])
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-12)


def test_batches_stay_paired_across_epochs(ranks: Any) -> None:
    first, second = (r["seen"] for r in ranks(2, "sampa: sampa"))
    assert first == [0, *(BATCH * t for t in range(STEPS))]  # y₀ = x₀, then x̃_t on batch t
    assert second == [0, *(BATCH * (t + 1) for t in range(STEPS))]  # y₀ = x₀, then y_{t+1} on batch t + 1


@pytest.mark.parametrize("case", SAMPA_OF_FOUR)
def test_four_processes_agree(ranks: Any, case: str) -> None:
    found = ranks(4, f"sampa: {case}")
    for other in found[1:]:
        equal(other["state"], found[0]["state"])
        assert other["metrics"] == found[0]["metrics"]
    expected = alone(case)
    assert found[0]["metrics"]["cost/gradients"] == pytest.approx(expected["metrics"]["cost/gradients"])
    for rank, other in enumerate(found):
        starts = [t + rank % 2 * BATCH // 2 for t in expected["seen"]]  # of each half of a role's batch
        assert set(other["seen"]) <= set(starts)
    if case == "cnn":  # batch norm over half a batch is another network
        return
    for name, weight in found[0]["state"]["model"].items():
        torch.testing.assert_close(weight, expected["state"]["model"][name], rtol=1e-4, atol=1e-5)


def test_the_cases_train(ranks: Any) -> None:
    """Batch-norm counts one move a step, a float16 run gets over its first overflow, and no case is another one."""
    assert alone("cnn")["state"]["model"]["1.num_batches_tracked"] == STEPS
    weights = [torch.cat([w.flatten() for w in alone(c)["state"]["model"].values()]) for c in SAMPA]
    assert all(w.isfinite().all() for w in weights)
    for i, w in enumerate(weights):
        assert not any(torch.equal(w, other) for other in weights[:i]), list(SAMPA)[i]
    for case in ("sampa", "float16"):
        assert alone(case)["metrics"]["train/accuracy"] > 0.3


@pytest.mark.parametrize("case", CONTINUED)
def test_processes_continue_bit_for_bit_from_what_one_of_them_saved(ranks: Any, case: str) -> None:
    for found in ranks(2, f"continued: {case}"):
        for part in ("model", "base", "radius", "radii"):
            equal(found["continued"][part], found["whole"][part])
