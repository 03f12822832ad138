"""The command line: parse, call one function, print. Results go to stdout, progress to stderr.

Exit codes: 0 done; 1 the run failed, or was interrupted; 2 bad input, told in one line.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import yaml

from .config import ConfigError
from .options import configured, lasting, layered, searched


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
            fail(1, explained(error))
        if text and not (as_json and options.get("quiet")):
            click.echo(text)
        if as_json:
            click.echo(json.dumps(plain(result)))

    return command


def explained(error: Exception) -> str:
    """An error in one line, with what to do about it where one knows."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}; what was done is kept: make room, then go on with --resume"
    from .training.checkpoint import NotSaved

    if isinstance(error, NotSaved):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip()}"


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


def printed(*layers: Any) -> tuple[Any, str]:
    from .config import dump, resolve

    config = resolve(*layers)
    return {**config.model_dump(), "digest": config.digest()}, f"{dump(config)}# digest {config.digest()}"


@verb
@click.option("--seeds", default=3, show_default=True, help="Replicates.")
@click.option("--trials", default=16, show_default=True, help="Trials of the search.")
@click.option("--study", help="Name of the study.  [default: demo]")
@click.option("--resume", is_flag=True, help="Go on with one that was interrupted.")
def demo(storage: str, quiet: bool, seeds: int, trials: int, study: str | None, resume: bool) -> tuple[Any, str]:
    """The whole thing on data that ships with a dependency: search, learn, compare. Three minutes on 2 cores."""
    from . import api, terminal

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
        kinds=["fixed", "warm-up", "searched", "learned"],
        also=["lets-sam"],
        study=study or "demo",
        storage=storage,
        resume=resume,
        quiet=quiet,
        measure=1,
        retrain_workers=min(2, os.cpu_count() or 1),
    )
    return result.summary(), terminal.comparison(result)


DEMO = {"data": {"name": "digits", "label_noise": 0.4}, "model": {"name": "cnn"}, "train": {"epochs": 16}}


@verb
@configured
@click.option("--resume", is_flag=True, help="Continue this configuration's latest run from its checkpoint.")
@click.option("--smoke", is_flag=True, help="Two steps of it on generated data, on one core: does it run at all?")
def train(
    storage: str, quiet: bool, config: tuple, words: tuple, print_config: bool, resume: bool, smoke: bool
) -> tuple[Any, str]:
    """Make one run."""
    from . import api, catalogue
    from .config import overrides, score_of

    given = overrides(words)
    if smoke:
        config = (*config, given)
        given = catalogue.smoke(api.layers(config))
    if print_config:
        return printed(api.layers(config), given)
    result = api.train(config, given, storage=storage, resume=resume, quiet=quiet)
    found = result.summary()
    rho = "" if not found["rho"] else f"  ρ {found['rho']:.3g}"
    of = score_of(result.run.begin["config"]["data"]["name"])
    told = f" ({of})" * (of != "accuracy")
    return found, (
        f"{found['method']}  test {found['test_accuracy']:.1%}  val {found['val_accuracy']:.1%}{told}{rho}  "
        f"{found['cost_gradients'] / 1e3:.0f}k gradients  {found['cost_seconds']:.1f} s\n"
        f"checkpoint {result.checkpoint}"
    )


@verb
@click.argument("arguments", nargs=-1, metavar="[SPACE] [KEY=VALUE]...")
@layered
@click.option("--print-config", is_flag=True, help="Print a trial's resolved configuration and stop.")
@click.option("--dry-run", is_flag=True, help="Tell trials, gradients and hours, and stop.")
@click.option("--replay", metavar="STUDY", help="Recorded curves answer instead of training: try settings in seconds.")
@searched
def search(
    storage: str,
    quiet: bool,
    arguments: tuple,
    config: tuple,
    print_config: bool,
    dry_run: bool,
    study: str | None,
    resume: bool,
    allow_change: bool,
    replay: str | None,
    objectives: str | None,
    **settings: Any,
) -> tuple[Any, str]:
    """Search a space (rho, bisam_tanh, …, your own file or module:function) by Optuna and ASHA."""
    from . import api, terminal
    from .config import overrides
    from .study.spaces import read

    names = [word for word in arguments if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"{names[1]}: one space only (compare takes several); overrides are key=value")
    space, given = (names[0] if names else ""), overrides(word for word in arguments if "=" in word)
    if not space and (dry_run or print_config or not (replay or (resume and study))):
        raise ConfigError("SPACE: missing; for instance rho (bisam-ray space check rho), or --resume --study NAME")
    if print_config:
        found = read(space)
        return printed(api.layers(config), found.fix, found.example(), given)
    settings = {name: value for name, value in settings.items() if value is not None}
    if objectives:
        settings["objectives"] = tuple(part.strip() for part in objectives.split(","))
        if len(settings["objectives"]) > 1:
            settings.setdefault("scheduler", "none")
    if dry_run:
        estimate = api.estimate(space, config, given, **settings)
        return estimate, "\n".join(estimate["told"])
    result = api.search(
        space or None,
        config,
        given,
        study=study,
        storage=storage,
        resume=resume,
        allow_change=allow_change,
        replay=replay,
        quiet=quiet,
        **settings,
    )
    return result.summary(), terminal.search(result)


@verb
@click.argument("arguments", nargs=-1, metavar="[METHOD|SPACE]... [KEY=VALUE]...")
@layered
@click.option("--arms", metavar="KINDS", help="Of fixed,warm-up,searched,learned,around,replayed.  [default: all]")
@click.option("--seeds", type=int, help="Replicates.  [default: 5]")
@click.option("--trials", type=int, help="Trials per search.  [default: 16]")
@click.option("--grace", type=int, help="Epochs before a trial may be stopped.  [default: a quarter]")
@click.option("--also", multiple=True, metavar="METHOD", help="Further methods, e.g. esam.")
@click.option("--flatness", type=int, help="Measure curvature on so many replicates.  [default: 3]")
@click.option("--print-config", is_flag=True, help="Print every arm's configuration and stop.")
@click.option("--dry-run", is_flag=True, help="Tell arms, budget, gradients and hours, and stop.")
@lasting
def compare(
    storage: str,
    quiet: bool,
    arguments: tuple,
    config: tuple,
    arms: str | None,
    seeds: int | None,
    trials: int | None,
    grace: int | None,
    also: tuple,
    flatness: int | None,
    print_config: bool,
    dry_run: bool,
    study: str | None,
    resume: bool,
    allow_change: bool,
    concurrency: int | None,
) -> tuple[Any, str]:
    """Search or learn the radius? Every way to come by one, at equal cost, for sam, asam, bisam-tanh and bisam-log."""
    from . import api, terminal
    from .config import overrides
    from .training import launch

    spaces = [a for a in arguments if "=" not in a]
    given = overrides(a for a in arguments if "=" in a)
    asked: dict[str, Any] = {"seeds": seeds, "kinds": arms.split(",") if arms else None, "also": also or None}
    settings = {"trials": trials, "grace": grace, "concurrency": concurrency}
    asked |= {name: value for name, value in settings.items() if value is not None}
    if print_config or dry_run:
        plan = api.planned(spaces, config, given, **asked)
        if dry_run:
            found = plan.told(launch.measure(plan.example))
            return found, "\n".join(found["told"])
        resolved = {name: base.model_dump(exclude_none=True) for name, base in plan.base.items()}
        return resolved, yaml.safe_dump(resolved, sort_keys=False)
    result = api.compare(
        spaces,
        config,
        given,
        study=study,
        storage=storage,
        resume=resume,
        allow_change=allow_change,
        measure=flatness,
        quiet=quiet,
        **asked,
    )
    return result.summary(), terminal.comparison(result)


@verb
@click.argument("study")
def report(storage: str, quiet: bool, study: str) -> tuple[Any, str]:
    """Write a study's report anew, from its ledger alone."""
    from . import api
    from .study import storage as stores
    from .study.session import reap

    directory = stores.existing(stores.known(storage), study)
    reap(directory)
    path = api.render(directory)
    return {"study": directory.name, "report": str(path)}, str(path)


@verb
@click.argument("checkpoint")
@click.option("--split", default="test", show_default=True, help="train, hyper, val or test.")
def eval_(storage: str, quiet: bool, checkpoint: str, split: str) -> tuple[Any, str]:
    """Accuracy of a checkpoint's weights on a split of its own data."""
    from . import api

    found = api.evaluate(checkpoint, split)
    return found, "{method}, epoch {epoch}: {split} {score} {accuracy:.1%}, loss {loss:.3f}".format(**found)


@verb
@click.argument("checkpoint")
@click.argument("table", default="radius.csv")
def radius(storage: str, quiet: bool, checkpoint: str, table: str) -> tuple[Any, str]:
    """Write a run's ρ(t) to a CSV that optim.rho_schedule=FILE.csv replays."""
    from . import api

    found = api.export_radius(checkpoint, table)
    return found, "{table}: {steps} steps, ρ {rho_final:.4g} at the end".format(**found)


@verb
@click.option("--clean", is_flag=True, help="Show what nobody needs any more; with --yes, remove it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def studies(storage: str, quiet: bool, clean: bool, yes: bool) -> tuple[Any, str]:
    """All studies of a storage: runs, size, state, the best so far."""
    from . import terminal
    from .study import housekeeping as house
    from .study import storage as stores

    directories = stores.studies(stores.known(storage))
    if clean:
        return tidied(directories, yes)
    rows = [vars(house.overview(directory)) for directory in directories]
    return {"studies": rows}, terminal.studies(rows, storage)


def tidied(directories: list[Path], yes: bool) -> tuple[Any, str]:
    """Show what may go, and remove it if that is wanted."""
    from . import terminal
    from .study import housekeeping as house

    found = [item for directory in directories for item in house.rubbish(directory)]
    size = terminal.readable(sum(item.size for item in found))
    listed = [{"path": str(item.path), "why": item.why, "size": item.size} for item in found]
    for item in found:
        click.echo(f"{terminal.readable(item.size):>8}  {item.path}  ({item.why})")
    if not found:
        return {"removed": []}, "nothing to remove"
    if not yes and not (sys.stdin.isatty() and click.confirm(f"Remove these {len(found)}, {size}?")):
        told = f"{len(found)} could be removed, {size}: --clean --yes removes them"
        return {"removed": [], "removable": listed}, told
    house.remove(found)
    return {"removed": listed}, f"removed {len(found)}, {size}"


@verb
@click.argument("study", required=False)
@click.option("--port", default=5000, show_default=True, help="On 127.0.0.1.")
def ui(storage: str, quiet: bool, study: str | None, port: int) -> tuple[Any, str]:
    """Open the MLflow UI of a storage on this machine, until Ctrl-C; tells the views of STUDY (default: the newest)."""
    from .study.storage import known
    from .study.ui import serve

    return serve(known(storage), port, study), ""


@verb
def doctor(storage: str, quiet: bool) -> tuple[Any, str]:
    """Check the cluster, the storage, MLflow and this installation; exit code 1 if something is wrong."""
    from .doctor import examine

    as_json = click.get_current_context().params["as_json"]
    result = examine(storage, (lambda line: None) if as_json and quiet else click.echo)
    if not result["ok"]:
        if as_json:
            click.echo(json.dumps(result))
        sys.exit(1)
    return result, ""


@main.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the configurations of papers that -c takes by name; with NAME: print that one."""
    from . import catalogue

    try:
        if name:
            click.echo(catalogue.find(name).read_text(encoding="utf-8"), nl=False)
            return
        rows = catalogue.table()
    except ConfigError as error:
        fail(2, str(error))
    widths = {column: max(len(row[column]) for row in rows) for column in rows[0]}
    for row in [{column: column for column in widths}, *rows]:
        click.echo("  ".join(text.ljust(widths[column]) for column, text in row.items()).rstrip())


@main.command("runtime-env")
def runtime_env() -> None:
    """Print what `ray job submit --runtime-env-json` needs to know: the state of git, and no secrets."""
    from .provenance import runtime_env

    try:
        click.echo(json.dumps(runtime_env()))
    except ConfigError as error:
        fail(2, str(error))


@main.group()
def space() -> None:
    """Search spaces."""


@space.command()
@click.argument("file")
def check(file: str) -> None:
    """Check a space: keys, ranges, conditions, start points. FILE is a file, a name or module:function."""
    from .study.spaces import read

    try:
        found = read(file)
    except ConfigError as error:
        fail(2, str(error))
    keys, conditional = found.searched, sum(bool(domain.when) for domain in found.parameters.values())
    click.echo(
        f"{found.name}: {', '.join(found.methods)}; keys: {len(keys)} ({', '.join(keys)}); "
        f"ranges with a condition: {conditional}; start points: {len(found.start)}"
    )


@space.command()
@click.argument("file")
@click.option("--samples", type=click.IntRange(1), default=8, show_default=True, help="How many.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
def preview(file: str, samples: int, seed: int) -> None:
    """Show configurations drawn from a space, and their cost. FILE is a file, a name or module:function."""
    from .study.preview import preview as shown
    from .study.spaces import read

    try:
        text = shown(read(file), samples, seed)
    except ConfigError as error:
        fail(2, str(error))
    click.echo(text)


@verb
@click.argument("study")
@click.option("--as", "name", metavar="NAME", help="Name of the model.  [default: bisam-ray-<dataset>]")
def register(storage: str, quiet: bool, study: str, name: str | None) -> tuple[Any, str]:
    """Put a study's winning network into MLflow's model registry."""
    from .study import storage as stores
    from .study.tracking import registry

    found = registry.register(stores.existing(stores.known(storage), study), name)
    told = "registered" if found["new"] else "was registered already as"
    return found, f"{found['run']} {told} {found['name']} version {found['version']}\nload it:  {found['load']}"
