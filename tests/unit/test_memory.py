"""What a step holds at its peak, beyond plain SGD; counted by benchmarks/memory.py."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not part of a source distribution")


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("memory", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("method", "bar"), [("sam", 1), ("bisam-tanh", 1), ("bisam-log", 1), ("lets-sam", 2), ("lets-bisam-tanh", 3)]
)
def test_copies_of_the_parameters_at_the_peak(memory, method, bar):
    assert bar - 1 < memory.copies(method, width=128) <= bar + memory.SLACK


def test_the_count_sees_a_copy(memory):
    """SGD against itself, and with a clipped gradient: one more copy."""
    assert memory.copies("sgd", width=128) == 0
    assert memory.copies("sgd", width=128, **{"optim.clip": 1.0}) == pytest.approx(1, abs=0.02)
