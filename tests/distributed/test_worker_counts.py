"""The same global batch on one, two and four processes is the same training: the curves of one, kept in a file.

    python tests/distributed/test_worker_counts.py            writes golden/worker_counts.json anew, from one process

Golden file: {"what": …, "torch": its version, "curves": {method: {metric: [its value after epoch 1, 2, …]}}}. To be
written anew only when a run is meant to have another curve; say so in the commit.

Group norm, not batch norm: statistics of a share of a batch are not those of the batch (benchmarks/workers.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bisam_ray.config import Config, resolve
from bisam_ray.optim.comm import Comm, Distributed
from bisam_ray.training import engine

GOLDEN = Path(__file__).parent / "golden/worker_counts.json"
# settings with which the curves differ between the methods, too: an early BiSAM with α = 0.1 is nearly SAM
METHODS: dict[str, dict[str, Any]] = {
    "sam": {"optim.rho": 0.3},
    "bisam-tanh": {"optim.rho": 0.3, "optim.alpha": 1.0},
    "lets-bisam-tanh": {"optim.rho": 0.3, "optim.alpha": 1.0},
    "asam": {},
}
METRICS = ("train/loss", "val/loss", "sam/rho")
WORLDS = (2, 4)
LOCAL = 2  # the number of processes that also train with a perturbation for each
# float32 sums in another order differ by 1e-7, and training lets that grow. Seen after 30 steps, the largest over all
# methods and metrics: 7e-7 (a learned ρ; losses: 7e-8), with 2 or 4 processes as well as with the AVX2 or the plain
# kernels of torch. ReLU and max pooling are avoided: where a tie falls the other way, the same runs differ by 1e-5
RTOL = 1e-5

Curves = dict[str, list[float]]


def network(shape: tuple[int, ...], classes: int) -> nn.Module:
    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.GroupNorm(4, outputs), nn.SiLU(), nn.AvgPool2d(2)]

    return nn.Sequential(*stage(shape[0], 8), *stage(8, 16), nn.Flatten(), nn.Linear(64, classes))


def configuration(method: str, scope: str = "global") -> Config:
    return resolve(
        {
            "method": method,
            "optim.perturbation_scope": scope,
            "model.name": f"{__name__}:network",
            "data.label_noise": 0.4,
            "data.batch_size": 96,  # 10 steps an epoch
            "train.epochs": 3,
            "optim.lr": 0.2,
            **METHODS[method],
        }
    )


def train(config: Config, comm: Comm | None = None) -> Curves:
    records = list(engine.run(config, comm))
    return {metric: [r.metrics[metric] for r in records] for metric in METRICS}


def golden() -> dict[str, Curves]:
    found: dict[str, Curves] = json.loads(GOLDEN.read_text(encoding="utf-8"))["curves"]
    return found


def deviation(curves: Curves, expected: Curves) -> float:
    """The largest relative difference."""
    assert curves.keys() == expected.keys()
    pairs = [pair for metric in expected for pair in zip(curves[metric], expected[metric], strict=True)]
    return max(abs(found - value) / abs(value) for found, value in pairs)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str, str], Curves]:
    """(world, method, scope) → the curves, from processes that meet at a file; all of them started once."""
    folder = tmp_path_factory.mktemp("worlds")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]

    @cache
    def of(world: int) -> list[dict[str, Curves]]:
        return [json.loads((folder / f"{world}-{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]

    def look(world: int, method: str, scope: str) -> Curves:
        first, *others = (curves[f"{method}, {scope}"] for curves in of(world))
        # val/loss is of each process's own weights: they are the same, bit for bit
        assert all(other == first for other in others), "processes differ"
        return first

    return look


@cache
def alone(method: str) -> Curves:
    return train(configuration(method))


@pytest.mark.parametrize("method", METHODS)
def test_one_process_gives_the_golden_curves(method: str) -> None:
    assert deviation(alone(method), golden()[method]) < RTOL


def test_one_process_repeats_bit_for_bit() -> None:
    assert train(configuration("lets-bisam-tanh")) == alone("lets-bisam-tanh")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_processes_gives_the_golden_curves(found: Any, world: int, method: str) -> None:
    assert deviation(found(world, method, "global"), golden()[method]) < RTOL


@pytest.mark.parametrize("method", METHODS)
def test_a_perturbation_for_each_process_gives_other_curves(found: Any, method: str) -> None:
    """What is a change of the method, not of the order of a sum, lies far outside of the tolerance."""
    assert deviation(found(LOCAL, method, "local"), golden()[method]) > 30 * RTOL


@pytest.mark.parametrize(("one", "other"), combinations(METHODS, 2))
def test_every_method_has_a_golden_curve_of_its_own(one: str, other: str) -> None:
    assert deviation(golden()[one], golden()[other]) > 30 * RTOL


@pytest.mark.parametrize("method", METHODS)
def test_the_golden_curves_are_of_training_that_moved(method: str) -> None:
    curves = golden()[method]
    assert curves["train/loss"][-1] < 0.97 * curves["train/loss"][0]
    assert (curves["sam/rho"][0] != curves["sam/rho"][-1]) == method.startswith("lets-")


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
    scopes = ("global", "local") if world == LOCAL else ("global",)
    curves = {f"{m}, {s}": train(configuration(m, s), Distributed()) for s in scopes for m in METHODS}
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(curves), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # past the interpreter's end, where gloo's threads now and then abort (pytorch/pytorch#179291)


def processes(folder: str) -> None:
    """All worlds, one after the other: one process imports everything and forks."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # imports half of torch
    for world in WORLDS:
        torch.multiprocessing.start_processes(process, (world, folder), nprocs=world, start_method="fork")


def write() -> None:
    content = {
        "what": "one process; python tests/distributed/test_worker_counts.py writes it anew",
        "torch": torch.__version__,
        "curves": {method: alone(method) for method in METHODS},
    }
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        processes(sys.argv[1])
    else:
        write()
