"""The record survives being cut off, and a resumed run goes on where it was."""

from bisam_ray.study.ledger import FILE, Ledger, read


def begin(ledger, run="a"):
    ledger.write("begin", run=run, arm="sam", phase="final", method="sam", seed=0)


def test_a_run_is_read_as_it_was_written(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.write("study", study="s", kind="search")
        begin(ledger)
        ledger.write("epoch", run="a", epoch=1, metrics={"val/accuracy": 0.5, "cost/gradients": 10.0})
        ledger.write("end", run="a", outcome="completed", epoch=1, metrics={"final/val_accuracy": 0.5})
        ledger.write("finish", outcome="completed")
    study = read(tmp_path)
    run = study.runs["a"]
    assert (study.name, study.finish["outcome"]) == ("s", "completed")
    assert (run.outcome, run.cost, run.value("final/val_accuracy")) == ("completed", 10.0, 0.5)
    assert study.of(arm="sam", outcome="completed") == [run]


def test_a_cut_off_line_is_ignored_and_then_cut_away(tmp_path):
    with Ledger(tmp_path) as ledger:
        begin(ledger)
    with open(tmp_path / FILE, "ab") as file:
        file.write(b'{"event": "end", "run": "a", "outc')
    assert read(tmp_path).runs["a"].outcome == "running"
    with Ledger(tmp_path) as ledger:
        ledger.write("end", run="a", outcome="killed", epoch=0, metrics={})
    assert read(tmp_path).runs["a"].outcome == "killed"


def test_epochs_after_a_resume_replace_what_they_repeat(tmp_path):
    with Ledger(tmp_path) as ledger:
        begin(ledger)
        for epoch in (1, 2, 3):
            ledger.write("epoch", run="a", epoch=epoch, metrics={"x": 0})
        begin(ledger)
        for epoch in (3, 4):
            ledger.write("epoch", run="a", epoch=epoch, metrics={"x": 1})
    assert [(e["epoch"], e["x"]) for e in read(tmp_path).runs["a"].epochs] == [(1, 0), (2, 0), (3, 1), (4, 1)]
