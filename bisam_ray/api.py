"""The verbs as Python functions; the command line calls these and prints what they return.

Each takes configuration the same way: `config`, a YAML file, the name of a recipe, a mapping, or several of them, then
overrides as a mapping of dotted keys or as keyword arguments for plain names (`method`, `seed`, `data`, `model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from . import catalogue
from .config import Config, ConfigError, load, merge, resolve, score_of
from .progress import Progress
from .results import Comparison, SearchResult, TrainResult
from .study import storage as stores
from .study.bucket import publish
from .study.ledger import read
from .study.request import Request
from .study.spaces import read as read_space
from .training import cluster, launch
from .training.launch import Job

if TYPE_CHECKING:
    from .study.ledger import Study
    from .study.outcome import Summary
    from .study.plan import Plan
    from .study.session import Session

STARTING = "{}: starting"
PATIENCE_S = 5.0  # one wonders what a longer beginning was spent on

Layer = Mapping[str, Any]
Source = str | Path | Layer


def layers(config: Source | Sequence[Source] | None) -> dict[str, Any]:
    """Files, recipes by name, and mappings, in order, as one layer."""
    merged: dict[str, Any] = {}
    sources = [] if config is None else [config] if isinstance(config, str | Path | Mapping) else list(config)
    for source in sources:
        if isinstance(source, Mapping):
            merge(merged, source)
            continue
        try:
            merge(merged, load(catalogue.find(source)))
        except ConfigError as error:
            told = str(error)
            raise ConfigError(told if told.startswith(str(source)) else f"{source}: {told}") from None
    return merged


def train(
    config: Source | Sequence[Source] | None = None,
    overrides: Layer | None = None,
    *,
    storage: str = "./runs",
    resume: bool = False,
    quiet: bool = True,
    **named: Any,
) -> TrainResult:
    """Make one run, inline or (scale.workers > 1) under a Ray Train TorchTrainer.

    Args:
        config: files or mappings, later ones win.
        overrides: dotted keys, e.g. {"optim.rho": 0.1}; they win over files.
        storage: root directory.
        resume: continue this configuration's latest run from its checkpoint, if it was not finished.
        quiet: no progress line.
        **named: method, seed, data, model.

    Raises:
        ConfigError: bad input.
    """
    resolved = resolve(layers(config), {**(overrides or {}), **named})
    launch.check_feasible(resolved)
    root = stores.root(storage)
    directory = latest(root, resolved) if resume else None
    if directory is not None:
        finished = next(iter(read(directory).of(outcome="completed")), None)
        if finished is not None:
            return TrainResult(directory, finished)
    directory = directory or stores.create(root, f"{resolved.method}-{resolved.digest()}")
    return continue_run(directory, resolved, quiet)


def continue_run(directory: Path, config: Config, quiet: bool) -> TrainResult:
    """Train in a run's directory, from its checkpoint when there is one."""
    from .study.session import session

    name = directory.name
    with Progress(config.train.epochs, quiet) as progress, session(directory, "train", config) as driver:
        job = Job(name, config, driver.checkpoint(name), resume=True)
        recorded = read(directory).runs.get(name)
        known = {e["epoch"] for e in recorded.epochs} if recorded else set()
        driver.begin(name, config, arm=config.method, phase="final")
        progress.update(STARTING.format(config.method))
        if config.scale.workers > 1:
            cluster.connect()
            cluster.check_shared(driver.root)
        try:
            for epoch in launch.launch(job, partial(follow_steps, progress, config)):
                if epoch.epoch in known and epoch.final is None:
                    continue  # between the last checkpoint and the kill: recorded before
                driver.follow(job, epoch)
                accuracy = epoch.metrics["val/accuracy"]
                text = f"{config.method}: epoch {epoch.epoch} of {config.train.epochs}, val {accuracy:.1%}"
                progress.update(text, epoch.epoch - progress.done)
        except Exception as error:
            outcome = "diverged" if type(error).__name__ == "Diverged" else "failed"
            driver.end(name, outcome, error=str(error), checkpoint=job.checkpoint)
            raise
    return TrainResult(directory, read(directory).runs[name])


def follow_steps(progress: Progress, config: Config, step: Any) -> None:
    """Tell how far an epoch is, and how long the beginning took if one had to wait for it."""
    epoch = (step.step - 1) // step.of + 1
    if progress.text.startswith(STARTING.format(config.method)) and step.to_first + step.first > PATIENCE_S:
        compiled = ", the network's compilation included" if config.scale.compile else ""
        progress.say(f"first step after {step.to_first:.1f} s; it took {step.first:.1f} s{compiled}")
    done, text = step.step / step.of, f"{config.method}: epoch {epoch} of {config.train.epochs}"
    progress.update(f"{text}, step {step.step - (epoch - 1) * step.of} of {step.of}", done - progress.done)


def latest(root: Path, config: Config) -> Path | None:
    """The newest run of exactly this configuration."""
    names = [d for d in stores.studies(root) if d.name.startswith(f"{config.method}-{config.digest()}")]
    return names[-1] if names else None


def search(
    space: str | Path | None = None,
    config: Source | Sequence[Source] | None = None,
    overrides: Layer | None = None,
    *,
    study: str | None = None,
    storage: str = "./runs",
    resume: bool = False,
    allow_change: bool = False,
    replay: str | None = None,
    quiet: bool = True,
    **settings: Any,
) -> SearchResult:
    """Search a space by Ray Tune and Optuna, stopping poor trials early.

    Args:
        space: a file, the name of a space that ships with the package (rho, bisam_tanh, …), or `module:function`.
        config, overrides: see `train`.
        study: its name; by default the space's name and a digest.
        storage: root directory.
        resume: go on with the study: unfinished trials first, then more of them if the budget is larger now. What is
            not given is as it was.
        allow_change: go on even if the space, the configuration or what decides a search differ from what was.
        replay: a study whose recorded curves answer in place of training; see study/replay.py.
        quiet: no progress line.
        **settings: trials, sampler, scheduler, …: see study/settings.py.

    Raises:
        ConfigError: bad input.
    """
    root = stores.root(storage)
    source = read(stores.existing(root, replay)) if replay else None
    found, files, given = read_space(space) if space else None, layers(config), dict(overrides or {})
    if resume:
        name = study or Request.of(found, files, given, settings).name
        directory = stores.existing(root, study) if study else stores.newest(root, name, "search")
        asked = Request.again(read(directory), found, files, given, settings, allow_change)
    else:
        asked = Request.of(found, files, given, settings, like=source)
        directory = None
    if source is None:
        launch.check_feasible(asked.example, asked.settings.folds)
    directory = directory or stores.create(root, study or (f"replay-{asked.name}" if replay else asked.name))
    from .study import replay as replaying
    from .study import tuning
    from .study.search import Search, confirm
    from .study.session import session

    parts = (asked.space, (asked.files, asked.overrides), asked.settings)
    with (
        Progress(quiet=quiet) as progress,
        session(directory, "search", asked.example, source is None, **asked.header(replay)) as driver,
    ):
        progress.say(f"study {directory.name}")
        driver.listen(progress.board.take)
        progress.show()
        if source is not None:
            curves = replaying.Curves.of(source, asked.space)
            at_once = asked.settings.concurrency or replaying.AT_ONCE
            replaying.replay(Search(driver, *parts, progress, asked.arm, at_once), curves)
        else:
            confirm(tuning.search(driver, *parts, progress, asked.arm))
        progress.phase(0.0, "writing the report")
        progress.update("writing the report")
        render(directory, driver if source is None else None)
    return SearchResult(read(directory))


def estimate(
    space: str | Path,
    config: Source | Sequence[Source] | None = None,
    overrides: Layer | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What a search would cost, from a few measured steps, without making it: trials, gradients, hours.

    Returns:
        trials, reach [(epoch, trials that probably come so far)], at_once, gradients and most_gradients (gradient
        evaluations × examples, re-runs of the best included), hours; and `told`, the same in lines of text.
    """
    from .study import estimate as estimating

    asked = Request.of(read_space(space), layers(config), dict(overrides or {}), settings)
    launch.check_feasible(asked.example, asked.settings.folds)
    return estimating.estimate(asked, launch.measure(asked.example))


def compare(
    spaces: Sequence[str | Path] = (),
    config: Source | Sequence[Source] | None = None,
    overrides: Layer | None = None,
    *,
    seeds: int | None = None,
    kinds: Sequence[str] | None = None,
    also: Sequence[str] | None = None,
    study: str | None = None,
    storage: str = "./runs",
    resume: bool = False,
    allow_change: bool = False,
    quiet: bool = True,
    measure: int | None = None,
    retrain_workers: int = 0,
    **settings: Any,
) -> Comparison:
    """Fixed against searched against learned radius, at equal cost; the protocol stands in study/compare.py.

    Args:
        spaces: methods or search spaces; sam, asam, bisam-tanh and bisam-log unless others are named.
        config, overrides: see `train`.
        seeds: replicates; 5 unless told otherwise.
        kinds: the arms of each method, of study/arms.py; all of them unless some are named.
        also: further methods, e.g. "esam".
        study: its name; by default of the spaces and a digest.
        resume: go on with the study, with more seeds if they are more now. What is not given is as it was.
        allow_change: go on even if spaces, arms or configuration differ from what was.
        measure: replicates whose kept networks have their curvature measured afterwards (of the first one the loss
            landscape, too); 3 unless told otherwise.
        retrain_workers: > 0: train the winner once more, data-parallel over so many workers, and log its model.
        **settings: of the searches (trials: 16), see study/settings.py; concurrency counts for all runs.

    Raises:
        ConfigError: bad input.
    """
    from .study import compare as comparing
    from .study.session import session
    from .study.tracking.registry import chosen

    if measure is not None and measure < 0:
        raise ConfigError(f"--flatness {measure}: must be at least 0")
    root, before = stores.root(storage), None
    asked = partial(planned, spaces, config, overrides, seeds=seeds, kinds=kinds, also=also, **settings)
    if resume:
        before = read(stores.existing(root, study) if study else stores.newest(root, asked().name, "compare"))
    plan = asked(like=before)
    for resolved in plan.base.values():
        launch.check_feasible(resolved)
    if before and not allow_change:
        plan.refuse_changes(before)
    directory = before.directory if before else stores.create(root, study or plan.name)
    header = plan.header(comparing.__doc__ or "")
    try:
        with Progress(quiet=quiet) as progress, session(directory, "compare", plan.example, **header) as driver:
            progress.say(f"study {directory.name}")
            driver.listen(progress.board.take)
            progress.show()
            outcome = comparing.compare(driver, plan, progress, comparing.MEASURED if measure is None else measure)
            name = retrain(driver, outcome, retrain_workers, progress) if outcome and retrain_workers else None
            if outcome is not None:
                export(driver, name or chosen(driver.study()).name, progress)
            progress.phase(0.0, "writing the report")
            progress.update("writing the report")
            render(directory, driver)
    except KeyboardInterrupt:
        render(directory)  # of what there is, and it says that it is a part
        raise
    return load_comparison(directory)


def planned(
    spaces: Sequence[str | Path] = (),
    config: Source | Sequence[Source] | None = None,
    overrides: Layer | None = None,
    *,
    seeds: int | None = None,
    kinds: Sequence[str] | None = None,
    also: Sequence[str] | None = None,
    like: Study | None = None,
    **settings: Any,
) -> Plan:
    """What `compare` would do: arms, configurations, and `forecast()`."""
    from .study.plan import Plan

    given = {name: value for name, value in settings.items() if value is not None}
    return Plan.of(spaces, layers(config), dict(overrides or {}), seeds, kinds, also, given, like)


def retrain(driver: Session, outcome: Summary, workers: int, progress: Progress) -> str | None:
    """The winning configuration once more, under a TorchTrainer, unless that was done; the run's name.

    None, and a line that tells why, if it fails: the comparison stands without it.
    """
    from .study.tracking.client import told

    best, what = outcome.of(outcome.winner), f"training the winner on {workers} workers"
    try:
        config = resolve(best.config, {"scale.workers": workers})
        launch.check_feasible(config)
        name = f"winner-distributed-{config.digest()}"
        known = driver.study().runs.get(name)
        if known and known.outcome == "completed":
            return name
        cluster.connect()
        cluster.check_shared(driver.root)
        job = Job(name, config, driver.checkpoint(name), resume=True)
        driver.begin(name, config, arm=best.arm, family=best.family, phase="final", policy=best.radius_policy)
        progress.phase(0.0, what)
        progress.update(f"{what}: starting them, about 20 s")
        Thread(target=prepare, daemon=True).start()  # while workers start, one after the other, a core is free
        try:
            for epoch in launch.launch(job):
                driver.follow(job, epoch, after=known.epoch if known else 0)
                progress.update(f"{what}: epoch {epoch.epoch} of {config.train.epochs}")
        except Exception as error:
            driver.end(name, "failed", error=str(error), checkpoint=job.checkpoint)
            raise
    except Exception as error:
        progress.say(f"{what} failed: {told(error)}")
        return None
    return name


def prepare() -> None:
    """What export and report will import, and that takes seconds."""
    from .study.report import page
    from .study.tracking import export

    export.prepare()
    page.prepare()


def export(driver: Session, name: str, progress: Progress) -> None:
    """A run's network goes to MLflow, unless it is there; one that cannot be exported ends nothing."""
    from .study.tracking.client import told

    if driver.study().exported(name):
        return
    progress.update("exporting the winner's model")
    try:
        driver.log_model(name)
    except Exception as error:  # whatever torch.export thinks of a user's network
        progress.say(f"{name}: its model could not be exported: {told(error)}")


def render(directory: Path, driver: Any = None) -> Path:
    """Write the report of a study; its driver records it, so that MLflow gets it too."""
    from .study.outcome import summarize
    from .study.report import markdown
    from .study.report.page import render as render_report

    study = read(directory)
    summary = summarize(study) if study.header.get("kind") == "compare" else None
    path = render_report(study, summary)
    told = markdown.write(study, summary)
    if driver is not None:
        driver.artifact("report", path)
        driver.artifact("figures", path.parent / "figures")
        if told is not None:
            driver.artifact("summary", told, **headline(summary))
    elif url := stores.remote(directory):
        publish(directory, url)
    return path


def headline(summary: Summary | None) -> dict[str, Any]:
    """What MLflow shows of a comparison beside its summary."""
    if summary is None:
        return {}
    best = summary.of(summary.winner)
    metrics = {"final/test_accuracy": best.test_accuracy, "final/val_accuracy": best.val_accuracy}
    kept = [name for arm in summary.arms for name in arm.kept]
    return {"metrics": metrics, "tags": {"winner": summary.winner, "verdict": summary.verdict}, "kept": kept}


def load_study(study: str | Path, storage: str = "./runs") -> SearchResult | Comparison | TrainResult:
    """A study by name or directory, read from its ledger: no Ray, no MLflow."""
    directory = stores.existing(stores.known(storage), str(study))
    content = read(directory)
    if content.header.get("kind") == "compare":
        return load_comparison(directory)
    if content.header.get("kind") == "train":
        return TrainResult(directory, next(iter(content.runs.values())))
    return SearchResult(content)


def load_comparison(directory: Path) -> Comparison:
    from .study.outcome import summarize
    from .study.tracking.client import tracking_uri, without_password

    study = read(directory)
    return Comparison(
        study, summarize(study), directory / "report.html", without_password(tracking_uri(directory.parent))
    )


def evaluate(checkpoint: str | Path, split: str = "test") -> dict[str, Any]:
    """Loss and accuracy of a checkpoint's weights on a split (train, hyper, val or test) of its own data."""
    from .training import checkpoint as checkpoints
    from .training import engine

    if split not in ("train", "hyper", "val", "test"):
        raise ConfigError(f"--split {split}: expected train, hyper, val or test")
    config, state = checkpoints.load(checkpoints.place(checkpoint))
    result = engine.evaluate(config, state, split)
    return {
        "checkpoint": str(checkpoint),
        "digest": config.digest(),
        "method": config.method,
        "epoch": state["epoch"],
        "split": split,
        "score": score_of(config.data.name),
        "accuracy": result.accuracy,
        "loss": result.loss,
        **result.more,
    }


def export_radius(checkpoint: str | Path, path: str | Path) -> dict[str, Any]:
    """Write ρ(t) of a run, one row a step, as a table that `optim.rho_schedule=FILE.csv` replays open-loop.

    What was learned with held-out data can so be used without any, on the whole training set, at the cost of SAM.
    """
    from .optim import shapes
    from .training import checkpoint as checkpoints

    config, state = checkpoints.load(checkpoints.place(checkpoint))
    if config.optim.rho is None:
        raise ConfigError(f"{checkpoint}: method {config.method} has no radius")
    if "folds" in state:
        raise ConfigError(f"{checkpoint}: holds {len(state['folds'])} folds, each with a radius of its own")
    radii = state["radii"].tolist()
    made = len(radii) * state["epoch"] // config.train.epochs
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes.write_table(path, [(step / len(radii), rho) for step, rho in enumerate(radii[:made])])
    return {"checkpoint": str(checkpoint), "table": str(path), "steps": made, "rho_final": radii[made - 1]}
