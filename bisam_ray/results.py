"""What the verbs return: a study's ledger as dataframes, and the object that `--json` prints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .study.ledger import Run, Study
from .study.storage import remote

if TYPE_CHECKING:
    import pandas as pd

    from .study.outcome import Summary


@dataclass(frozen=True)
class TrainResult:
    """One finished run."""

    directory: Path
    run: Run

    @property
    def run_id(self) -> str:
        return self.run.name

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch."""
        import pandas as pd

        return pd.DataFrame(self.run.epochs).set_index("epoch")

    @property
    def checkpoint(self) -> Path | str:
        """Where it lies: a path, or the URL of an object."""
        place = self.run.end["checkpoint"] if self.run.end else ""
        return f"{url}/{place}" if (url := remote(self.directory)) else self.directory / place

    def summary(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        run = self.run
        return {
            "run_id": run.name,
            "method": run.begin["method"],
            "seed": run.begin["seed"],
            "epochs": len(run.epochs),
            "val_accuracy": run.value("final/val_accuracy"),
            "test_accuracy": run.value("final/test_accuracy"),
            "rho": run.metrics.get("sam/rho"),
            "cost_gradients": run.cost,
            "cost_seconds": run.seconds,
            "checkpoint": str(self.checkpoint),
            "digest": run.begin["digest"],
        }


@dataclass(frozen=True)
class SearchResult:
    """A search, finished or not."""

    study: Study

    @property
    def report(self) -> Path:
        return self.study.directory / "report.html"

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: the suggested values, how far it came, what it reached and cost."""
        import pandas as pd

        rows = [
            {
                "run": run.name,
                **(run.begin["suggested"] or {}),
                "outcome": run.outcome,
                "epochs": len(run.epochs),
                "val_accuracy": run.value("val/accuracy"),
                "cost_gradients": run.cost,
                "cost_seconds": run.seconds,
            }
            for run in self.study.of(phase="search")
        ]
        return pd.DataFrame(rows)

    @property
    def best(self) -> Run | None:
        """The trial to use: confirmed on fresh draws, or else the best on val by its final weights."""
        from .study.selection import winner

        found = [run for arm in self.study.searched_arms() if (run := winner(self.study, arm))]
        return max(found, key=lambda run: run.value("final/val_accuracy"), default=None)

    def summary(self) -> dict[str, Any]:
        """The object that `--json` prints.

        `best`: its configuration; val_accuracy and test_accuracy are means over its re-runs where there are some (test
        is null without them), selected_val_accuracy is what the search saw.
        """
        from .study.selection import confirmation

        runs, best = self.study.of(phase="search"), self.best
        counted = {o: sum(run.outcome == o for run in runs) for o in ("completed", "pruned", "failed")}
        counted["failed"] = sum(run.outcome in ("failed", "diverged", "killed") for run in runs)
        found = None
        if best is not None:
            again = confirmation(self.study, best.arm)
            own = next((c for c in again.candidates if c.trial is best), None) if again else None
            selected = best.value("final/val_accuracy")
            found = {
                "config": best.begin["config"],
                "val_accuracy": own.val.value if own else selected,
                "selected_val_accuracy": selected,
                "test_accuracy": own.test.value if own else None,
            }
        return {"study": self.study.name, "trials": len(runs), **counted, "best": found}


@dataclass(frozen=True)
class Comparison:
    """A comparison, finished or not; `outcome` is None when no replicate of every arm was finished."""

    study: Study
    outcome: Summary | None
    report: Path
    tracking_uri: str

    @property
    def arms(self) -> pd.DataFrame:
        """One row per arm, best first."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(arm) for arm in self.outcome.arms] if self.outcome else [])

    @property
    def contrasts(self) -> pd.DataFrame:
        """One row per comparison of two arms."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(made) for made in self.outcome.contrasts] if self.outcome else [])

    @property
    def trials(self) -> pd.DataFrame:
        """The search's trials."""
        return SearchResult(self.study).trials

    def summary(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        found = self.outcome
        return {
            "study": self.study.name,
            "winner": found.winner if found else None,
            "verdict": found.verdict if found else None,
            "report": str(self.report),
            "tracking_uri": self.tracking_uri,
            "arms": [
                {
                    "arm": arm.arm,
                    "method": arm.method,
                    "radius_policy": arm.radius_policy,
                    "test_accuracy": arm.test_accuracy,
                    "ci95": list(arm.ci95),
                    "n": arm.n,
                    "cost_gradients": arm.cost_gradients,
                    "cost_seconds": arm.cost_seconds,
                    "rho_final": arm.rho_final,
                    "config": arm.config,
                }
                for arm in (found.arms if found else [])
            ],
            "contrasts": [dataclasses.asdict(contrast) for contrast in (found.contrasts if found else [])],
        }
