"""summary.md: the verdict and both tables, with numbers of the summary, and no markup of a user's."""

import re

from bisam_ray.study.ledger import Ledger, read
from bisam_ray.study.outcome import summarize
from bisam_ray.study.report import markdown

from .test_compare import record


def written(directory, arms=("sam", "sgd")):
    with Ledger(directory) as ledger:
        ledger.write("study", study="s", kind="compare", config={}, protocol={})
        for replicate in range(3):
            for place, arm in enumerate(arms):
                policy, method = ("none", "sgd") if arm == "sgd" else ("fixed", "sam")
                val, test = 0.6 - 0.1 * place, 0.9 - 0.05 * place + 0.01 * replicate
                record(ledger, arm, replicate, 0, val, test, method=method, policy=policy)
        ledger.write("finish", outcome="completed")
    return read(directory)


def test_the_summary_says_what_the_comparison_says(tmp_path):
    study = written(tmp_path)
    found = summarize(study)
    path = markdown.write(study, found)
    told = path.read_text(encoding="utf-8")
    assert told.startswith(f"**{found.verdict}**")
    assert f"**sam** (wins) | {100 * found.of('sam').test_accuracy:.1f} %" in told
    assert "Does SAM beat SGD? | sam − sgd | +5.0" in told
    assert found.power in told
    assert all(f"- {note}" in told for note in found.notes)
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows[:4]}) == 1


def test_nothing_finished_leaves_no_summary(tmp_path):
    study = written(tmp_path)
    path = markdown.write(study, summarize(study))
    assert markdown.write(study, None) is None
    assert not path.exists()


def test_names_cannot_make_tables_links_or_tags(tmp_path):
    study = written(tmp_path, arms=("sam", "sgd", "<b>x</b>|y [z](http://evil) `c`"))
    told = markdown.write(study, summarize(study)).read_text(encoding="utf-8")
    assert "<b>" not in told
    assert "](" not in told
    assert not re.search(r"(?<!\\)\|y", told)
