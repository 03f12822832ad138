"""Options that several verbs of the command line take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """-c FILE, key=value words, --print-config."""
    function = layered(function)
    function = click.option("--print-config", is_flag=True, help="Print the resolved configuration and stop.")(function)
    return click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")(function)


def layered(function: Callable[..., Any]) -> Callable[..., Any]:
    """-c FILE."""
    told = "YAML, or the name of a recipe; later ones win."
    return click.option("-c", "--config", multiple=True, metavar="FILE", help=told)(function)


def searched(function: Callable[..., Any]) -> Callable[..., Any]:
    """How a search is made: study/settings.py names what is not given."""
    for option in reversed(
        (
            click.option("--trials", type=int, help="At most so many.  [default: 16]"),
            click.option("--gradients", type=float, help="Begin no trial after so many gradients × examples."),
            click.option("--hours", type=float, help="Begin no trial after so many hours."),
            click.option("--sampler", help="tpe, gp, cmaes, qmc, random, nsga2 or grid.  [default: tpe]"),
            click.option("--scheduler", help="asha, median, hyperband or none.  [default: asha]"),
            click.option("--grace", type=int, help="Epochs before a trial may be stopped.  [default: a quarter]"),
            click.option("--reduction", type=float, help="One trial in so many goes on from a rung.  [default: 3]"),
            click.option("--controls", type=int, help="Trials that are never stopped.  [default: an eighth]"),
            click.option("--objectives", help="accuracy, or accuracy,cost (a front).  [default: accuracy]"),
            click.option("--folds", type=int, help="Cross-validate every trial over so many splits.  [default: 1]"),
            click.option("--confirm", type=int, help="Run the best so many again on fresh draws.  [default: 3]"),
            click.option("--replicates", type=int, help="Fresh draws for each of them.  [default: 3]"),
            click.option("--retries", type=int, help="Of a trial whose process died.  [default: 1]"),
            click.option("--seed", type=int, help="Of the sampler.  [default: 0]"),
        )
    ):
        function = option(function)
    return lasting(function)


def lasting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A study has a name, and can be gone on with."""
    for option in (
        click.option("--concurrency", type=int, help="Runs at once; 1: repeats decision by decision.  [default: all]"),
        click.option("--allow-change", is_flag=True, help="Resume although the space or configuration changed."),
        click.option("--resume", is_flag=True, help="Go on with the study; also to add trials or seeds to it."),
        click.option("--study", help="Name of the study.  [default: of the space, and a digest]"),
    ):
        function = option(function)
    return function
