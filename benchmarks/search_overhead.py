"""What a search costs beyond its training: ours against plain Optuna in two processes, and the textbook pattern.

    ours       bisam_ray.study.tuning: Ray Tune, reused actors, ledger, Optuna's journal, MLflow following
    optuna     the same trials in two processes of plain Optuna that share a journal, with the same rule of stopping at
               the same rungs, around the same training function
    textbook   a TorchTrainer inside every Tune trial, as the documentation shows it; no pruning, few trials

All three train the same 32 configurations of SAM's radius on digits with 40 % wrong labels. Pruning depends on who is
first, so the time is also given per trained epoch. Blocks of ours and optuna alternate, in turns; start-up (Ray,
imports, two processes each) is not counted. `--epochs` sets how long a trial is.

    python benchmarks/search_overhead.py [--epochs 400 8] [--trials 32] [--blocks 3] [--textbook 6]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

DRAWN = random.Random(0)
RADII = [round(0.02 * 100 ** DRAWN.random(), 4) for _ in range(1000)]
BASE: dict[str, Any] = {"method": "sam", "data.label_noise": 0.4}
REDUCTION = 3


def ours(epochs: int, trials: int, directory: Path) -> tuple[float, int]:
    """(seconds, trained epochs) of our search."""
    from bisam_ray.progress import Progress
    from bisam_ray.study import ledger, tuning
    from bisam_ray.study.session import session
    from bisam_ray.study.settings import Settings
    from bisam_ray.study.spaces import Space

    points = [{"optim.rho": rho} for rho in RADII[:trials]]
    space = Space.model_validate({"name": "rho", "search": {"optim.rho": {"log": [0.02, 2.0]}}, "start": points})
    directory.mkdir()
    settings = Settings(trials=trials, reduction=REDUCTION, controls=0, confirm=0)
    with session(directory, "search", None) as driver:
        tuning.search(driver, space, ({**BASE, "train.epochs": epochs}, {}), settings, Progress(quiet=True), "rho")
        ended = time.time()
    runs = ledger.read(directory).runs.values()
    return ended - min(run.begin["time"] for run in runs), sum(len(run.epochs) for run in runs)


def worker(epochs: int, trials: int, journal: str, ready: Any, go: Any) -> None:
    """One process of plain Optuna."""
    import numpy as np
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from bisam_ray.config import resolve
    from bisam_ray.study import stopping
    from bisam_ray.training import engine

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    rungs = stopping.rungs(stopping.grace_period(epochs), REDUCTION, epochs)
    study = optuna.load_study(
        study_name="x",
        storage=JournalStorage(JournalFileBackend(journal)),
        sampler=optuna.samplers.TPESampler(seed=os.getpid()),
    )

    def stops(trial: Any, epoch: int, value: float) -> bool:
        """ASHA as Tune has it: worse than the best third of those that came to this rung before."""
        before = [
            other.intermediate_values[epoch]
            for other in study.get_trials(deepcopy=False)
            if epoch in other.intermediate_values and other.number != trial.number
        ]
        return bool(before) and value < np.percentile(before, 100 * (1 - 1 / REDUCTION))

    def make(trial: Any) -> None:
        rho = trial.suggest_float("optim.rho", 0.02, 2, log=True)
        for record in engine.run(resolve(BASE, {"train.epochs": epochs, "optim.rho": rho})):
            value = record.metrics["val/accuracy"]
            trial.report(value, record.epoch)
            if record.epoch in rungs and stops(trial, record.epoch, value):
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
        study.tell(trial, value)

    ready.release()
    go.wait()
    while (trial := study.ask()).number < trials:
        make(trial)
    study.tell(trial, state=optuna.trial.TrialState.FAIL)


def plain_optuna(epochs: int, trials: int, directory: Path) -> tuple[float, int]:
    """(seconds, trained epochs) of two processes."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directory.mkdir()
    journal = str(directory / "optuna.journal")
    study = optuna.create_study(
        study_name="x", storage=JournalStorage(JournalFileBackend(journal)), direction="maximize"
    )
    for rho in RADII[:trials]:
        study.enqueue_trial({"optim.rho": rho})
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    processes = [context.Process(target=worker, args=(epochs, trials, journal, ready, go)) for _ in range(2)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    began = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - began
    ran = [t for t in study.get_trials(deepcopy=False) if t.intermediate_values]
    return seconds, sum(len(t.intermediate_values) for t in ran)


def textbook(epochs: int, trials: int, directory: Path) -> tuple[float, int]:
    """(seconds, trained epochs) with a TorchTrainer inside every trial."""
    import ray.train
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def loop(given: dict[str, Any]) -> None:
        from bisam_ray.config import resolve
        from bisam_ray.training import engine

        for record in engine.run(resolve(BASE, {"train.epochs": epochs, "optim.rho": given["rho"]})):
            ray.train.report({"accuracy": record.metrics["val/accuracy"]})

    def trial(given: dict[str, Any]) -> None:
        TorchTrainer(
            loop,
            train_loop_config=given,
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(
                name=tune.get_context().get_trial_id(), storage_path=str(directory), callbacks=[TuneReportCallback()]
            ),
        ).fit()

    began = time.perf_counter()
    tune.Tuner(
        tune.with_resources(trial, {"node:__internal_head__": 0.01}),
        param_space={"rho": tune.grid_search(RADII[:trials])},
        tune_config=tune.TuneConfig(max_concurrent_trials=2),
        run_config=tune.RunConfig(name="textbook", storage_path=str(directory), verbose=0),
    ).fit()
    return time.perf_counter() - began, trials * epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, nargs="+", default=[400, 8], help="of a trial: long ones, short ones")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--textbook", type=int, default=6, help="trials of the textbook pattern; 0: leave it out")
    given = parser.parse_args()
    import ray

    from bisam_ray.study.tuning import silence
    from bisam_ray.training import cluster

    os.environ["RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"] = "0"
    silence()
    began = time.perf_counter()
    cluster.connect()
    print(f"Ray is up after {time.perf_counter() - began:.1f} s; {os.cpu_count()} CPUs, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as folder:
        ours(2, 4, Path(folder) / "warm-up")
        for epochs in given.epochs:
            rows = []
            for block in range(given.blocks):
                took = {}
                for which in (ours, plain_optuna)[:: 1 if block % 2 == 0 else -1]:
                    took[which] = which(epochs, given.trials, Path(folder) / f"{which.__name__}-{epochs}-{block}")
                a, b = took[ours], took[plain_optuna]
                rows.append((a, b))
                print(
                    f"{epochs} epochs, block {block}: ours {a[0]:.1f} s, {a[1]} epochs; "
                    f"optuna {b[0]:.1f} s, {b[1]} epochs",
                    flush=True,
                )
            wall = [a[0] / b[0] for a, b in rows]
            each = [(a[0] / a[1]) / (b[0] / b[1]) for a, b in rows]
            extra = [(a[0] - a[1] * b[0] / b[1]) / given.trials * 2 for a, b in rows]
            length = statistics.median(2 * a[0] / given.trials for a, _ in rows)
            time_, epoch_, trial_ = map(statistics.median, (wall, each, extra))
            print(
                f"{epochs} epochs, a trial takes {length:.1f} s on average: ours ÷ optuna {time_:.2f} in wall time, "
                f"{epoch_:.2f} per trained epoch, {trial_:+.2f} s a trial (medians of {given.blocks}; "
                f"all: {', '.join(f'{w:.2f}' for w in wall)})",
                flush=True,
            )
        if given.textbook:
            epochs = given.epochs[-1]
            one = textbook(epochs, given.textbook, Path(folder) / "textbook")
            mine = ours(epochs, given.textbook, Path(folder) / "beside-textbook")
            print(
                f"{epochs} epochs, {given.textbook} trials: textbook {one[0]:.1f} s, {one[1]} epochs; ours "
                f"{mine[0]:.1f} s, {mine[1]} epochs: {one[0] / one[1] / (mine[0] / mine[1]):.1f}× per epoch"
            )
    ray.shutdown()


if __name__ == "__main__":
    main()
