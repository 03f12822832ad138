"""The command line: parse, call one function, print. Results go to stdout, progress to stderr.

Exit codes: 0 done; 1 the run failed, or was interrupted; 2 bad input, told in one line.
"""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from .config import ConfigError


class Verbs(click.Group):
    """Commands in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bisam-ray")
def main() -> None:
    """Which sharpness radius should I train with, and could it have been learned instead?

    Configuration: -c FILE.yaml and key=value words, for instance  method=lets-sam optim.rho=0.1 train.epochs=20
    """


def verb(function: Callable[..., Any]) -> Callable[..., None]:
    """The options and the errors that all verbs share. The function returns (object for --json, text)."""

    @main.command(name=function.__name__.removesuffix("_"), help=function.__doc__)
    @click.option("--storage", default="./runs", show_default=True, help="Root directory of all studies.")
    @click.option("--json", "as_json", is_flag=True, help="The last line of stdout is one JSON object.")
    @click.option("--quiet", "-q", is_flag=True, help="No progress line.")
    @functools.wraps(function)
    def command(as_json: bool, **options: Any) -> None:
        signal.signal(signal.SIGTERM, interrupt)
        try:
            result, text = function(**options)
        except ConfigError as error:
            fail(2, str(error))
        except KeyboardInterrupt:
            stop_ray()
            kept = f"bisam-ray studies --storage {options['storage']}"
            fail(1, f"interrupted; what was done so far is kept: {kept}")
        except Exception as error:
            if os.environ.get("BISAM_RAY_DEBUG"):
                raise
            fail(1, f"{type(error).__name__}: {str(error).strip()}")
        if text and not (as_json and options.get("quiet")):
            click.echo(text)
        if as_json:
            click.echo(json.dumps(plain(result)))

    return command


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def stop_ray() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def fail(code: int, message: str) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def plain(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """-c FILE, key=value words, --print-config."""
    function = click.option("-c", "--config", multiple=True, metavar="FILE", help="YAML; later files win.")(function)
    function = click.option("--print-config", is_flag=True, help="Print the resolved configuration and stop.")(function)
    return click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")(function)


def printed(*layers: Any) -> tuple[Any, str]:
    from .config import dump, resolve

    config = resolve(*layers)
    return {**config.model_dump(), "digest": config.digest()}, f"{dump(config)}# digest {config.digest()}"


@verb
@click.option("--seeds", default=3, show_default=True, help="Replicates.")
@click.option("--trials", default=16, show_default=True, help="Trials of the search.")
@click.option("--study", help="Name of the study.  [default: demo]")
def demo(storage: str, quiet: bool, seeds: int, trials: int, study: str | None) -> tuple[Any, str]:
    """The whole thing on data that ships with a dependency: search, learn, compare. Three minutes on 2 cores."""
    from . import api

    if not quiet:
        click.echo(
            "scikit-learn's digits with 40 % wrong labels: which radius does a search of BiSAM find, which one is\n"
            f"learned in the loop, and which wins at equal cost? {trials} trials, then {seeds} fresh draws of the data."
        )
    result = api.compare(
        ["bisam_tanh"],
        DEMO,
        trials=trials,
        seeds=seeds,
        also=["lets-sam"],
        study=study or "demo",
        storage=storage,
        quiet=quiet,
        retrain_workers=min(2, os.cpu_count() or 1),
    )
    return result.summary(), told(result)


DEMO = {"data": {"name": "digits", "label_noise": 0.4}, "model": {"name": "cnn"}, "train": {"epochs": 16}}


@verb
@configured
@click.option("--resume", is_flag=True, help="Continue this configuration's latest run from its checkpoint.")
def train(storage: str, quiet: bool, config: tuple, words: tuple, print_config: bool, resume: bool) -> tuple[Any, str]:
    """Make one run."""
    from . import api
    from .config import overrides

    given = overrides(words)
    if print_config:
        return printed(api.layers(config), given)
    result = api.train(config, given, storage=storage, resume=resume, quiet=quiet)
    found = result.summary()
    rho = "" if not found["rho"] else f"  ρ {found['rho']:.3g}"
    return found, (
        f"{found['method']}  test {found['test_accuracy']:.1%}  val {found['val_accuracy']:.1%}{rho}  "
        f"{found['cost_gradients'] / 1e3:.0f}k gradients  {found['cost_seconds']:.1f} s\n"
        f"checkpoint {result.checkpoint}"
    )


@verb
@click.argument("space")
@configured
@click.option("--trials", default=16, show_default=True, help="How many.")
@click.option("--study", help="Name of the study.  [default: the space's name and a digest]")
@click.option("--concurrency", type=click.IntRange(1), help="Trials at once; 1 repeats decision by decision.")
def search(
    storage: str,
    quiet: bool,
    space: str,
    config: tuple,
    words: tuple,
    print_config: bool,
    trials: int,
    study: str | None,
    concurrency: int | None,
) -> tuple[Any, str]:
    """Search a space (rho, bisam_tanh, bisam_log, or your own file) by Optuna and ASHA."""
    from . import api
    from .config import overrides
    from .study.spaces import read

    given = overrides(words)
    if print_config:
        return printed(api.layers(config), read(space).fix, given)
    result = api.search(
        space, config, given, trials=trials, study=study, storage=storage, concurrency=concurrency, quiet=quiet
    )
    found = result.summary()
    text = "{study}: {trials} trials, {completed} completed, {pruned} pruned, {failed} failed".format(**found)
    if result.best is not None:
        values = "  ".join(f"{k}={v:.4g}" for k, v in result.best.begin["suggested"].items())
        text += f"\nbest val {found['best']['val_accuracy']:.1%} with {values}"
    return found, text


@verb
@click.argument("arguments", nargs=-1, metavar="[SPACE]... [KEY=VALUE]...")
@click.option("-c", "--config", multiple=True, metavar="FILE", help="YAML; later files win.")
@click.option("--seeds", default=5, show_default=True, help="Replicates.")
@click.option("--trials", default=16, show_default=True, help="Trials per search.")
@click.option("--print-config", is_flag=True, help="Print every arm's configuration and stop.")
@click.option("--also", multiple=True, metavar="METHOD", help="Further methods, e.g. lets-sam.")
@click.option("--study", help="Name of the study.  [default: the spaces' names and a digest]")
@click.option("--concurrency", type=click.IntRange(1), help="Runs at once.")
def compare(
    storage: str,
    quiet: bool,
    arguments: tuple,
    config: tuple,
    seeds: int,
    trials: int,
    print_config: bool,
    also: tuple,
    study: str | None,
    concurrency: int | None,
) -> tuple[Any, str]:
    """Fixed against searched against learned radius, at equal cost."""
    from . import api
    from .config import PRESETS, overrides, suggest

    for method in also:
        if method not in PRESETS:
            raise ConfigError(f"--also {method}: unknown method{suggest(method, PRESETS)}")
    spaces = [a for a in arguments if "=" not in a] or ["bisam_tanh"]
    given = overrides(a for a in arguments if "=" in a)
    if print_config:
        arms = api.planned(spaces, config, given, also)
        return arms, yaml.safe_dump(arms, sort_keys=False)
    result = api.compare(
        spaces,
        config,
        given,
        trials=trials,
        seeds=seeds,
        also=also,
        study=study,
        storage=storage,
        concurrency=concurrency,
        quiet=quiet,
    )
    return result.summary(), told(result)


@verb
@click.argument("study")
def report(storage: str, quiet: bool, study: str) -> tuple[Any, str]:
    """Write a study's report anew, from its ledger alone."""
    from . import api
    from .study import storage as stores

    directory = stores.existing(Path(storage).expanduser().resolve(), study)
    path = api.render(directory)
    return {"study": directory.name, "report": str(path)}, str(path)


@verb
@click.argument("checkpoint")
@click.option("--split", default="test", show_default=True, help="train, hyper, val or test.")
def eval_(storage: str, quiet: bool, checkpoint: str, split: str) -> tuple[Any, str]:
    """Accuracy of a checkpoint's weights on a split of its own data."""
    from . import api

    found = api.evaluate(checkpoint, split)
    return found, "{method}, epoch {epoch}: {split} accuracy {accuracy:.1%}, loss {loss:.3f}".format(**found)


@verb
@click.argument("checkpoint")
@click.argument("table", default="radius.csv")
def radius(storage: str, quiet: bool, checkpoint: str, table: str) -> tuple[Any, str]:
    """Write a run's ρ(t) to a CSV that optim.rho_schedule=FILE.csv replays."""
    from . import api

    found = api.export_radius(checkpoint, table)
    return found, "{table}: {steps} steps, ρ {rho_final:.4g} at the end".format(**found)


@verb
def studies(storage: str, quiet: bool) -> tuple[Any, str]:
    """All studies of a storage."""
    from .study import storage as stores
    from .study.ledger import read

    rows = []
    for directory in stores.studies(Path(storage).expanduser().resolve()):
        study = read(directory)
        ended = study.finish["outcome"] if study.finish else "running or killed"
        rows.append(
            {"study": directory.name, "kind": study.header.get("kind"), "runs": len(study.runs), "outcome": ended}
        )
    text = "\n".join(f"{r['study']:40} {r['kind']:8} {r['runs']:4} runs  {r['outcome']}" for r in rows)
    return {"studies": rows}, text or f"no studies in {storage} yet; 'bisam-ray demo' makes one"


@verb
@click.option("--port", default=5000, show_default=True, help="On 127.0.0.1.")
def ui(storage: str, quiet: bool, port: int) -> tuple[Any, str]:
    """Open the MLflow UI of a storage on this machine, until Ctrl-C."""
    from .study.ui import serve

    return serve(Path(storage).expanduser().resolve(), port), ""


@main.group()
def space() -> None:
    """Search spaces."""


@space.command()
@click.argument("file")
def check(file: str) -> None:
    """Check a search space: keys, ranges, start points."""
    from .study.spaces import read

    try:
        found = read(file)
    except ConfigError as error:
        fail(2, str(error))
    click.echo(f"{found.name}: {found.method}, searches {', '.join(found.search)}; {len(found.start)} start points")


def told(result: Any) -> str:
    """The comparison on a terminal."""
    from .study.report import table

    if result.outcome is None:
        return f"no arm has a finished replicate; report {result.report}"
    storage = result.study.directory.parent
    where = "" if storage == Path("runs").resolve() else f" --storage {storage}"
    return "\n".join(
        [
            "",
            table(result.outcome),
            "",
            *textwrap.wrap(result.outcome.verdict, 78),
            "",
            *(line for note in result.outcome.notes for line in textwrap.wrap(note, 78, subsequent_indent="  ")),
            "",
            f"report   {result.report}",
            f"MLflow   bisam-ray ui{where}",
            f"again    bisam-ray train -c {result.report.parent / 'winner.yaml'}",
        ]
    )
