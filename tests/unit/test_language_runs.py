"""The loop reads text as it reads images: every method, resumed bitwise, whatever the task."""

import copy

import pytest

from bisam_ray.config import resolve
from bisam_ray.training import engine, flatness
from bisam_ray.training.flatness import hessian_eigenvalue

from .test_engine import same

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")

SMALL = {"train.epochs": 3, "data.batch_size": 8, "data.length": 16, "data.vocabulary": 200}
SMALL |= {"optim.base": "sgd", "optim.lr": 0.02, "optim.lr_schedule": "cosine"}
GLUE = {**SMALL, "model": "bert-tiny"}
RUNS = [
    {**GLUE, "data": "generated/glue/mrpc", "method": "lets-bisam-tanh", "data.bucket": 2},
    {**GLUE, "data": "generated/glue/cola", "method": "esam", "scale.accumulate": 2, "optim.base": "adamw"},
    {**GLUE, "data": "generated/glue/mnli", "method": "sampa", "data.label_noise": 0.2},
    {**GLUE, "data": "generated/glue/stsb", "method": "lets-sam", "lets.curvature": "exact", "optim.decay": "weights"},
    {**SMALL, "data": "generated/iwslt14", "model": "transformer-tiny", "method": "bisam-log",
     "optim.perturbation_scope": 4, "optim.lr_schedule": "inverse_sqrt", "optim.lr_warmup": 0.3, "data.beam": 2},
]  # fmt: skip


@pytest.mark.parametrize("settings", RUNS, ids=lambda settings: f"{settings['data']} {settings['method']}")
def test_a_run_is_resumed_bitwise(settings):
    config = resolve(settings)
    first, *_, last = ((r.metrics, copy.deepcopy(r.state()), r) for r in engine.run(config))
    *_, again = engine.run(config, state=first[1])
    same(again.state(), last[1])
    same(again.metrics, last[0])
    assert {"val/accuracy", "val/standard_error", "sam/rho"} <= again.metrics.keys()
    found = again.evaluate("test", "best")
    assert -1 <= found.accuracy <= 1


def test_scores_are_recorded_by_their_names():
    def metrics(name):
        *_, record = engine.run(resolve({**GLUE, "data": f"generated/glue/{name}", "train.epochs": 1}))
        return record.metrics

    cola, mrpc, stsb = metrics("cola"), metrics("mrpc"), metrics("stsb")
    assert cola["val/accuracy"] == cola["val/matthews"]
    assert "val/f1" in mrpc
    assert stsb["val/accuracy"] == stsb["val/pearson"]
    assert "val/spearman" in stsb


def test_the_curvature_is_that_of_the_task():
    config = resolve({**GLUE, "data": "generated/glue/stsb", "train.epochs": 1})
    *_, record = engine.run(config)
    model, splits = engine.restored(config, record.state())
    chosen = flatness.subset(splits.train, 12)
    found = hessian_eigenvalue(model, chosen, task=splits.task)
    assert found.residual < 0.1
    shown = flatness.loss_landscape(model, chosen, grid=3, task=splits.task)
    assert shown.loss[1][1] == pytest.approx(splits.task.descent(model(chosen.inputs), chosen.y).item(), rel=1e-5)


def test_an_epoch_may_look_at_a_part_of_val():
    few = {**GLUE, "data": "generated/glue/sst2", "data.batch_size": 128, "train.epochs": 1}
    whole, part = (list(engine.run(resolve(few, {"train.val_examples": n})))[-1] for n in (None, 16))
    seen = engine.restored(resolve(few), whole.state())[1].val[:16]
    model = engine.restored(resolve(few), part.state())[0]
    assert (
        part.metrics["val/accuracy"] == engine.restored(resolve(few), part.state())[1].task.assess(model, seen).accuracy
    )
    assert part.metrics["val/loss"] != whole.metrics["val/loss"]
    assert part.evaluate("val").loss == whole.evaluate("val").loss
