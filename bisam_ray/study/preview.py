"""A search space on a terminal: configurations as a search would begin with, what each costs, and its keys."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from statistics import fmean

from ..config import gradients_per_step, resolve
from .domain import short
from .probes import Probe
from .spaces import Space

WIDTH = 100


def preview(space: Space, samples: int, seed: int = 0) -> str:
    """`samples` configurations, drawn uniformly on each domain's own scale, and a line for each key."""
    rng = random.Random(seed)
    drawn = [space.suggest(Probe(lambda _, domain: domain.sample(rng))) for _ in range(samples)]
    costs = [gradients_per_step(resolve(space.fix, values)) for values in drawn]
    keys = [key for key in space.searched if any(key in values for values in drawn)]
    columns = [["", *(str(number) for number in range(1, samples + 1))]]
    columns += [[key, *(short(values[key]) if key in values else "–" for values in drawn)] for key in keys]
    columns.append(["gradients/step", *(f"{cost:.3g}" for cost in costs)])
    fixed = ", ".join(f"{key} = {short(value)}" for key, value in space.fixed.items())
    return "\n".join(
        [
            cut(f"{space.name}: {', '.join(space.methods)}" + (f"; fixed: {fixed}" if fixed else "")),
            *table(columns),
            f"mean cost {fmean(costs):.3g} gradients a step; {samples} drawn uniformly, seed {seed}",
            "",
            *lines(space),
        ]
    )


def table(columns: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns side by side; what does not fit into the width goes below, under the first column again."""
    first, *others = [[cut(cell, 30) for cell in column] for column in columns]
    widths = {id(column): max(map(len, column)) for column in (first, *others)}
    while others:
        shown, room = [first], WIDTH - widths[id(first)]
        while others and (len(shown) == 1 or room >= widths[id(others[0])] + 2):
            room -= widths[id(others[0])] + 2
            shown.append(others.pop(0))
        for row in zip(*shown, strict=True):
            yield "  ".join(cell.rjust(widths[id(column)]) for cell, column in zip(row, shown, strict=True))
        if others:
            yield ""


def lines(space: Space) -> Iterator[str]:
    """What is known of each parameter."""
    parameters = space.parameters
    name_width = min(30, max(map(len, parameters)))
    text_width = min(28, max(len(domain.text) for domain in parameters.values()))
    for name, domain in parameters.items():
        prior = f"  prior {short(domain.prior)}" if domain.prior is not None else ""
        when = f"  when {domain.condition}" if domain.when else ""
        yield cut(f"{name:{name_width}}  {domain.text:{text_width}}{prior}{when}".rstrip())


def cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
