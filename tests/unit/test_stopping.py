"""Stopping early: Tune's schedulers judge by name, and hearing a study again brings them to the same state."""

import random

import numpy as np
import pytest

from bisam_ray.study.stopping import Stopping, forecast, grace_period, rungs


def test_the_grace_period_is_a_quarter_and_rungs_lie_before_the_end():
    assert [grace_period(epochs) for epochs in (1, 4, 16, 30)] == [1, 1, 4, 8]
    assert rungs(4, 3, 16) == [4, 12]
    assert rungs(4, 3, 12) == [4]
    assert rungs(1, 2.5, 16) == [1, 3, 7]
    assert rungs(4, 3, 4) == []


def interleaved(trials, epochs, seed):
    """(trial, epoch, value) in the order in which trials of different speed would report."""
    rng = random.Random(seed)
    at = {f"t{i}": 0 for i in range(trials)}
    while at:
        name = rng.choice(list(at)[:4])
        at[name] += 1
        yield name, at[name], rng.random()
        if at[name] == epochs:
            del at[name]


def test_asha_stops_by_its_definition():
    """A slow transcription: at a rung, go on among the best third of those that came there before."""
    stopping, seen, gone = Stopping("asha", 2, 3, 20), {2: [], 6: [], 18: []}, set()
    for name, epoch, value in interleaved(40, 20, seed=1):
        if name in gone:
            continue
        if epoch == 1:
            stopping.begin(name)
        stops = stopping.stops(name, epoch, value)
        expected = False
        if epoch in seen:
            expected = bool(seen[epoch]) and value < np.percentile(seen[epoch], 100 * (1 - 1 / 3))
            seen[epoch].append(value)
        assert stops == expected
        if stops:
            gone.add(name)
    assert 10 < len(gone) < 40


@pytest.mark.parametrize("kind", ["asha", "median", "hyperband"])
def test_a_study_that_is_heard_again_is_judged_the_same(kind):
    def heard(events, then):
        stopping, told, gone = Stopping(kind, 2, 3, 12, seed=5), [], set()
        for name, epoch, value in [*events, *then]:
            if epoch == 1:
                stopping.begin(name)
            if name not in gone:
                told.append((name, epoch, stopping.stops(name, epoch, value)))
                gone |= {name} if told[-1][2] else set()
        return told

    events = list(interleaved(20, 12, seed=2))
    np.random.seed(1)
    whole = heard(events, [])
    np.random.seed(2)  # Tune draws hyperband's brackets from numpy's global generator
    before = np.random.get_state()[1].tolist()
    assert heard(events[:100], events[100:]) == whole
    assert np.random.get_state()[1].tolist() == before
    assert any(stops for *_, stops in whole)


def test_median_stops_what_is_below_the_others():
    stopping = Stopping("median", 2, 3, 10)
    for number in range(4):
        stopping.begin(f"good{number}")
        assert not any(stopping.stops(f"good{number}", epoch, 0.9 + number / 100) for epoch in range(1, 10))
    stopping.begin("poor")
    assert [stopping.stops("poor", epoch, 0.1) for epoch in (1, 2)] == [False, True]


def test_none_stops_nothing_and_the_last_epoch_is_never_stopped():
    assert not Stopping("none", 1, 3, 4).stops("a", 2, 0.0)
    stopping = Stopping("asha", 1, 3, 3)
    for name, value in (("a", 0.9), ("b", 0.1)):
        stopping.begin(name)
        assert not stopping.stops(name, 3, value)


def test_the_forecast_lies_between_the_best_third_and_everybody():
    found = forecast("asha", 4, 3, 16, trials=32)
    (first, all_of_them), (second, some), (last, few) = found.reach
    assert (first, second, last) == (4, 12, 16)
    assert all_of_them == 32
    assert 32 / 3 <= some <= 32 / 2
    assert 32 / 9 <= few <= some
    assert found.cost == pytest.approx((4 * 32 + 8 * some + 4 * few) / 16)
    assert found.most == 32
    assert forecast("none", 4, 3, 16, trials=5).reach == [(16, 5)]
    assert forecast("asha", 4, 3, 16, trials=8, controls=8).cost == 8
