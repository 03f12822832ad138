"""What a person reads when a comparison is done."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bisam_ray import terminal
from bisam_ray.results import Comparison
from bisam_ray.study.outcome import summarize

from .synthetic import write_whole


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    study = write_whole(tmp_path_factory.mktemp("studies") / "whole", replicates=12, trials=4)
    return Comparison(study, summarize(study), Path("report.html"), "")


def test_twenty_five_arms_and_their_contrasts_fit_a_terminal(comparison):
    text = terminal.comparison(comparison)
    prose = [line for line in text.splitlines() if not line.startswith(("report ", "again ", "MLflow "))]
    assert max(map(len, prose)) <= 78
    order = [text.index(f"\n{made.question}\n") for made in comparison.outcome.contrasts]
    assert order == sorted(order)
    assert text.index(comparison.outcome.winner) < order[0] < text.index("true difference of")


def test_every_contrast_stands_under_its_question_and_what_is_shown_is_marked(comparison):
    found = comparison.outcome
    assert 0 < sum(made.shown for made in found.contrasts) < len(found.contrasts)
    lines, question, seen = terminal.contrasts(found), "", []
    for line in lines:
        if line in {made.question for made in found.contrasts}:
            question = line
        elif match := re.match(r"([* ]) (.+?) - (.+?) +([+-]\d+\.\d) \[([+-]\d+\.\d), ([+-]\d+\.\d)\] +(\S+)$", line):
            seen.append((question, match[1] == "*", match[2], match[3], float(match[4])))
    assert seen == [
        (made.question, made.shown, made.first, made.second, round(100 * made.mean, 1)) for made in found.contrasts
    ]


def test_without_contrasts_nothing_is_said_of_them(comparison):
    assert terminal.contrasts(dataclasses.replace(comparison.outcome, contrasts=[], power="")) == []


def test_ray_takes_our_settings_however_early_it_is_imported(tmp_path):
    """Its scheduler judges a forecast before any cluster is started; a token file would be left in the home."""
    code = (
        "import os; from bisam_ray.study.settings import Settings; Settings().for_epochs(8).forecast(8, 4);"
        "import ray; print(os.environ['RAY_AUTH_MODE'], len(os.environ['RAY_AUTH_TOKEN']))"
    )
    hidden = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["token", "64"], done.stderr
