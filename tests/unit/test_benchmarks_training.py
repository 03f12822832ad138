"""The benchmarks of the training loop: what they compare computes the same, and both of them run."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest
import torch

from bisam_ray.config import resolve

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="benchmarks/ is not part of a source distribution")


@pytest.fixture(scope="module", autouse=True)
def found():
    """The scripts import each other from their folder."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture
def contenders():
    return importlib.import_module("contenders")


@pytest.fixture
def throughput():
    return importlib.import_module("throughput")


@pytest.fixture
def loop():
    return importlib.import_module("loop_overhead")


def options(**changes):
    given = {"batch": 8, "steps": 2, "lr": 0.05, "device": "cpu", "precision": "float32", "compile": False}
    return argparse.Namespace(**{**given, **changes})


def test_the_official_step_and_ours_come_to_the_same_weights(contenders):
    """Its bound is µ times ours, and its smoothing s is s·K/(K − 1) in PyTorch's terms."""
    apart = contenders.check(contenders.MAKERS, torch.device("cpu"))
    assert apart.keys() == {"official-tanh", "official-log"}
    assert max(apart.values()) < 1e-12


def bound_without_y(logits, y, phi):
    return torch.logsumexp(torch.tanh(logits), dim=1).mean()


def loss_with_smoothing_of_torch(logits, y):
    return torch.nn.functional.cross_entropy(logits, y, label_smoothing=0.1)


@pytest.mark.parametrize(
    ("part", "wrong"), [("official_bound", bound_without_y), ("official_loss", loss_with_smoothing_of_torch)]
)
def test_another_step_is_refused(contenders, monkeypatch, part, wrong):
    monkeypatch.setattr(contenders, part, wrong)
    with pytest.raises(RuntimeError, match="its weights are not those of bisam-"):
        contenders.check(contenders.MAKERS, torch.device("cpu"))


def test_achieved_flop_are_those_of_the_network(contenders, throughput):
    """The first convolution passes no gradient on; the others cost a forward pass three times."""
    conv1, conv2, linear = 2 * 16 * 16 * 8 * 27, 2 * 8 * 8 * 16 * 72, 2 * 16 * 10
    gradient = 8 * (2 * conv1 + 3 * conv2 + 3 * linear)
    counted = {name: throughput.flops(contenders.MAKERS[name], "cnn", options()) for name in ("sgd", "bisam-tanh")}
    assert counted == {"sgd": gradient, "bisam-tanh": 2 * gradient}


@pytest.mark.parametrize(("n", "low", "high"), [(1, 0, 0), (5, 0, 4), (6, 0, 5), (8, 0, 7), (9, 1, 7), (12, 2, 9)])
def test_interval_of_the_median(throughput, n, low, high):
    """Ranks from a table of the sign test, from 0."""
    assert throughput.median_interval(range(n)) == ((n - 1) / 2, low, high)


def test_throughput_runs(throughput, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--quick", "--profile", str(tmp_path / "profile.txt")])
    throughput.main()
    told = capsys.readouterr().out
    rows = [line.split()[0] for line in told.splitlines() if line.startswith("  ") and "]" in line]
    assert rows[:7] == ["sgd", "sam", "bisam-tanh", "bisam-log", "lets-bisam-tanh", "official-tanh", "official-log"]
    assert "sam-pytorch" in told  # in the table, or left out with a line
    assert "convolution_backward" in (tmp_path / "profile.txt").read_text()


@pytest.mark.parametrize("method", ["sam", "bisam-tanh"])
@pytest.mark.parametrize("augment", [(), ("crop", "flip", "cutout")])
def test_the_bare_loop_computes_what_an_epoch_of_the_engine_does(loop, method, augment):
    """But for the cosine of the learning rate: one millionth, two steps into two thousand."""
    config, source = loop.configuration(method, "cnn", augment, options()), loop.noise(2, 8)
    model, bare = loop.bare_epoch(config, source, 2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    record = next(loop.engine_epochs(config, source))
    assert record.state()["step"] == 2
    bare()
    trained = record.state()["model"]
    torch.testing.assert_close(model.state_dict(), trained, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(start["0.weight"], trained["0.weight"], rtol=1e-2)


def test_loop_overhead_runs(loop, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["loop_overhead.py", "--quick"])
    loop.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  cnn")]
    assert [row[1] for row in rows] == ["sam", "bisam-tanh"]
    assert all(float(row[2]) > 0 and float(row[3]) > 0.1 for row in rows)


@pytest.fixture
def scaling():
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    return importlib.import_module("scaling")


def sharpness(scaling, rho):
    """What a step of SAM on two sentences finds."""
    size = scaling.Size(1, 8, 2, rounds=1, vocabulary=100)
    model = scaling.build("8 wide", size, length=8)
    options = argparse.Namespace(batch=2, length=8, device="cpu")
    config = resolve(scaling.settings("sam", options).model_dump(), {"optim.rho": rho})
    return scaling.stepper(config, model, scaling.moving(model, config), size, options)().sharpness


def test_both_passes_draw_the_same_dropout_masks(scaling):
    """So that a perturbation of nearly nothing leaves the loss of a training step what it was."""
    assert abs(sharpness(scaling, 1e-7)) < 1e-6
    assert abs(sharpness(scaling, 0.5)) > 1e-3


def test_scaling_runs(scaling, monkeypatch, capsys):
    """Gradients of a step are those of the algorithm, and SAM holds one copy of the parameters."""
    monkeypatch.setattr(sys, "argv", ["scaling.py", "--quick"])
    scaling.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " wide " in line]
    gradients = {row[6]: float(row[7]) for row in rows}
    assert gradients == {"adamw": 1, "sam": 2, "bisam-tanh": 2, "lets-sam": 3, "lets-bisam-tanh": 3.67}
    assert len(rows) == 2 * len(gradients)
    assert all(float(row[9]) > 0 for row in rows)
    assert {row[-1] for row in rows if row[6] in ("sam", "bisam-tanh")} == {"1.00"}
