"""Trials that answer as they are told: what a space would suggest, without Optuna.

A space is define-by-run: it asks a trial for one parameter after the other, and what it asks for next may depend on the
answers. `ask` below is a function of a trial, such as `Space.suggest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from ..config import ConfigError
from .domain import Domain

T = TypeVar("T")


class Probe:
    """Looks like an optuna.Trial; `choose(name, domain)` answers, and what was asked is recorded."""

    number = 0

    def __init__(self, choose: Callable[[str, Domain], Any]) -> None:
        self.choose = choose
        self.domains: dict[str, Domain] = {}
        self.params: dict[str, Any] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self.answer(name, {"log" if log else "uniform": (low, high), "step": step})

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self.answer(name, {"int": (low, high), "step": step if step != 1 else None})

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.answer(name, {"choice": list(choices)})

    def answer(self, name: str, domain: dict[str, Any]) -> Any:
        if name not in self.domains:
            try:
                self.domains[name] = Domain.model_validate(domain)
            except ValidationError as error:
                raise ConfigError(f"{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
            self.params[name] = self.choose(name, self.domains[name])
        return self.params[name]


def every(
    ask: Callable[[Any], T], values: Callable[[str, Domain], Sequence[Any]]
) -> Iterator[tuple[dict[str, Any], T]]:
    """(parameters, answer) of all combinations of `values(name, domain)`: an odometer that grows as it is asked."""
    turned: list[int] = []

    def choose(name: str, domain: Domain) -> Any:
        wheel, options = len(sizes), values(name, domain)
        sizes.append(len(options))
        if wheel == len(turned):
            turned.append(0)
        return options[turned[wheel]]

    while True:
        sizes: list[int] = []
        probe = Probe(choose)
        answer = ask(probe)
        yield probe.params, answer
        while turned and turned[-1] + 1 == sizes[len(turned) - 1]:
            turned.pop()
        if not turned:
            return
        turned[-1] += 1


def explored(ask: Callable[[Any], T]) -> list[tuple[Probe, T]]:
    """Runs that together see every parameter at each of its ends, one at a time: their number is that of the ends."""
    runs, seen, waiting = [], set(), [dict[str, Any]()]
    while waiting:
        given = waiting.pop(0)
        probe = Probe(lambda name, domain, given=given: given.get(name, domain.ends()[0]))  # type: ignore[misc]
        runs.append((probe, ask(probe)))
        before: dict[str, Any] = {}
        for name, domain in probe.domains.items():
            for end in domain.ends():
                if (name, repr(end)) not in seen:
                    seen.add((name, repr(end)))
                    if end != probe.params[name]:
                        waiting.append({**before, name: end})
            before[name] = probe.params[name]
    return runs
