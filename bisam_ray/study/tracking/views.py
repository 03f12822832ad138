"""Ready views of a study in MLflow's own interface: which columns, filter, groups and charts it opens with.

MLflow keeps a saved view in a tag of the experiment and lists it under "Views" on the page of its runs:

    mlflow.sharedViewState.<id> = {"name": …, "createdAt": milliseconds, "state": JSON or deflated JSON, as text}
    <server>/#/experiments/<experiment>/runs?viewStateShareKey=<id>&compareRunsMode=CHART      (CHART: not the table)

The state holds what the page itself would store when a person presses "Save view"; keys that are missing take the
page's defaults. An experiment's tag has room for 5,000 characters in every database: states are deflated to a fifth.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

PREFIX = "mlflow.sharedViewState."
COMPARISON, RADIUS, SEARCH = "comparison", "radius", "search"
CHARTS = (RADIUS, SEARCH)  # open with charts beside the list of runs
TOLD = {
    COMPARISON: "the arms side by side, means over replicates",
    RADIUS: "ρ and validation accuracy over epochs, by arm",
    SEARCH: "what was searched against what it reached",
}
NAME = "attributes.`Run Name`"
MEANS = ("final/test_accuracy", "final/val_accuracy", "best/val_accuracy", "sam/rho", "cost/gradients")
MEASURED = ("final/test_accuracy", "final/test_low", "final/test_high", *MEANS[1:])
DESCRIBED = ("method", "radius_policy", "arm", "phase", "outcome")
FINAL = "tags.phase = 'final'"
ARM = "tags.phase = 'arm'"
KEPT = "tags.kept = 'yes'"
FIRST = f"{KEPT} and tags.replicate = '0'"
PAGE = 100  # runs that the page loads at once: a mean that it takes itself is over these at most
SECTIONS = ("best", "cost", "final", "flatness", "lets", "sam", "train", "val", "Model metrics", "System metrics")


def views(
    kind: str, searched: Sequence[Sequence[str]] = (), arms: Sequence[str] = (), kept: int = 0
) -> dict[str, dict[str, Any]]:
    """The state of each view that suits a study.

    Args:
        kind: search | compare.
        searched: for each space the config paths it searches, such as optim.rho; a chart each, of the trials that
            have all of them.
        arms: those whose rows are closed at first: one row an arm.
        kept: how many runs count, once that is known; then every arm has a run of its own that holds its means.
    """
    found = {}
    if kind == "compare":
        columns = [f"metrics.`{key}`" for key in MEASURED] + [f"tags.`{tag}`" for tag in DESCRIBED]
        found[COMPARISON] = {
            **ordered(ARM if kept else FINAL, "final/test_accuracy"),
            "selectedColumns": columns,
            "columnOrder": [NAME, *columns],
            "columnWidths": {NAME: 230, **dict.fromkeys(columns, 130)},
            **({} if kept else grouped(arms)),
        }
        drawn = KEPT if 0 < kept <= PAGE else FIRST if kept else FINAL
        curves = [line("sam/rho"), line("val/accuracy")]
        found[RADIUS] = {**ordered(drawn, "final/test_accuracy"), **charted(curves), **grouped(arms)}
    if searched:
        keys = dict.fromkeys(key for of_space in searched for key in of_space)
        charts = [parallel(of_space) for of_space in dict.fromkeys(map(tuple, searched))]
        found[SEARCH] = {
            **ordered("tags.phase = 'search'", "best/val_accuracy"),
            **charted([*charts, line("val/accuracy")]),
            "selectedColumns": [
                "metrics.`best/val_accuracy`",
                *(f"params.`{key}`" for key in keys),
                "tags.`arm`",
                "tags.`outcome`",
            ],
        }
    return found


def ordered(chosen: str, by: str) -> dict[str, Any]:
    """Which runs, the best first; all of them are drawn."""
    order = {"orderByKey": f"metrics.`{by}`", "orderByAsc": False}
    return {"searchFilter": chosen, **order, "runsHiddenMode": "SHOW_ALL"}


def grouped(arms: Iterable[str]) -> dict[str, Any]:
    """One row and one curve an arm: the mean of its runs, in charts with the band from the least to the greatest."""
    keys = [{"mode": "tag", "groupByData": "arm"}]
    closed = {f"tag.arm.{arm}": False for arm in arms}
    return {"groupBy": {"aggregateFunction": "average", "groupByKeys": keys}, "groupsExpanded": closed}


def line(metric: str) -> dict[str, Any]:
    return {"type": "LINE", "metricKey": metric, "selectedMetricKeys": [metric]}


def parallel(keys: Iterable[str]) -> dict[str, Any]:
    """Parallel coordinates of searched values and what they reached."""
    shown = {"selectedParams": list(keys), "selectedMetrics": ["best/val_accuracy"]}
    return {"type": "PARALLEL", "showAllRuns": True, **shown}


def charted(charts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """These charts on top, MLflow's own in sections that are closed."""
    own = "bisam"
    cards = [
        {"runsCountToCompare": 100, "deleted": False, "isGenerated": False, **chart}
        | {"uuid": f"{own}-{number}", "metricSectionId": own}
        for number, chart in enumerate(charts)
    ]
    plain = {"isReordered": False, "deleted": False}
    wide = {"columns": 2, "cardHeight": 480}
    sections = [{"uuid": own, "name": "bisam-ray", "display": True, "isGenerated": False, **wide, **plain}]
    sections += [{"uuid": name, "name": name, "display": False, "isGenerated": True, **plain} for name in SECTIONS]
    return {"compareRunCharts": cards, "compareRunSections": sections, "isAccordionReordered": True}


def tags(states: Mapping[str, Mapping[str, Any]], created: int) -> dict[str, str]:
    """Tags of the experiment, as MLflow reads them; `created` in milliseconds since 1970."""
    return {
        f"{PREFIX}{name}": json.dumps({"name": name, "createdAt": created, "state": deflated(state)})
        for name, state in states.items()
    }


def deflated(state: Mapping[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    return "deflate;" + base64.b64encode(packed).decode()


def inflated(text: str) -> dict[str, Any]:
    """The state in a tag's text."""
    packed = base64.b64decode(json.loads(text)["state"].removeprefix("deflate;"))
    return dict(json.loads(zlib.decompress(packed)))


def link(experiment: str, name: str) -> str:
    """A view's address below the server's root."""
    mode = "&compareRunsMode=CHART" if name in CHARTS else ""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={name}{mode}&workflowType=machine_learning"


def links(experiment: str, names: Iterable[str]) -> str:
    """Markdown: one line with all views."""
    return "Views: " + " · ".join(f"[{name}]({link(experiment, name)})" for name in names)
