"""What differs between tasks: their losses, and what decides."""

import math

import pytest
import torch

from bisam_ray.config import ConfigError, Optim, resolve
from bisam_ray.optim.losses import lower_bound
from bisam_ray.training import data, engine, task, translation
from bisam_ray.training.task import PADDED, Classification, Regression, Translation, mean_evaluation
from bisam_ray.training.text import Ragged, unreadable

TANH = Optim(objective="tanh", rho=0.1, mu=5.0, alpha=0.2)


def sentences():
    """Logits and targets of three sentences of 5, 2 and 4 tokens, padded to 8 places, and the same tokens in a row."""
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(3, 8, 11, generator=generator, dtype=torch.float64)
    y = torch.randint(11, (3, 6), generator=generator)
    for row, length in zip(y, (5, 2, 4), strict=True):
        row[length:] = PADDED
    there = y != PADDED
    return out, y, out[:, :6][there], y[there]


def test_padding_counts_for_nothing():
    out, y, tokens, targets = sentences()
    task, plain = Translation(None, 1), Classification()
    for smoothing in (0.0, 0.1):
        assert torch.allclose(task.descent(out, y, smoothing), plain.descent(tokens, targets, smoothing), atol=1e-14)
    bound = task.losses(TANH, out, y).ascent()
    assert torch.allclose(bound, lower_bound(tokens, targets, "tanh", 5.0, 0.2), atol=1e-14)
    assert torch.allclose(task.agreement(out, y).double(), (tokens.argmax(-1) == targets).double().mean(), atol=1e-7)
    cuts = zip(tokens.split([5, 2, 4]), targets.split([5, 2, 4]), strict=True)
    parts = [plain.descent(*cut) for cut in cuts]
    assert torch.allclose(task.each(out, y), torch.stack(parts), atol=1e-14)
    other = out.clone()
    other[:, 6:] += 9
    other[1, 2:] *= -3
    assert torch.equal(task.descent(other, y), task.descent(out, y))
    assert torch.equal(task.losses(TANH, other, y).ascent(), bound)
    cut = out[1:2, :4]  # a batch of shorter sentences than the longest of all
    assert torch.allclose(task.descent(cut, y[1:2]), parts[1], atol=1e-14)


def test_a_regression_descends_the_squared_error():
    task = Regression(pearson=lambda found, y: torch.corrcoef(torch.stack([found, y]))[0, 1].item())
    out, y = torch.randn(20, 1), torch.rand(20) * 5
    losses = task.losses(Optim(objective="cross_entropy", rho=0.1), out, y)
    assert losses.ascent is losses.descent
    assert torch.allclose(losses.descent, ((out[:, 0] - y) ** 2).mean())
    assert torch.allclose(losses.examples().mean(), losses.descent)
    assert task.agreement(out, y).item() == pytest.approx(task.scores["pearson"](out[:, 0], y), abs=1e-6)
    assert task.agreement(torch.ones(3, 1), torch.rand(3)) == 0
    assert task.standard_error(0.8, 101) == pytest.approx(0.36 / math.sqrt(101))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"data": "glue/stsb", "model": "bert-tiny", "method": "bisam-tanh"},
            "optim.objective=tanh: data.name=glue/stsb is a regression; BiSAM bounds the 0-1 loss, which that has not",
        ),
        (
            {"data": "glue/mrpc", "model": "cnn"},
            "model.name=cnn: reads images, and data.name=glue/mrpc is text (nearest: bert-tiny)",
        ),
        ({"model": "bert-tiny"}, "model.name=bert-tiny: reads text, and data.name=digits is no text (nearest: cnn)"),
        ({"data": "iwslt14", "model": "bert-tiny"}, "model.name=bert-tiny: does not translate (nearest: transf"),
        ({"data": "glue/cola", "model": "transformer-tiny"}, "model.name=transformer-tiny: translates (nearest: bert"),
        (
            {"data": "glue/mrpc", "model": "transformers/a/b", "data.tokenizer": "train"},
            "data.tokenizer=train: model.name=transformers/a/b reads with its own (leave it out)",
        ),
        (
            {"data": "glue/stsb", "model": "bert-tiny", "data.label_noise": 0.1},
            "data.label_noise=0.1: data.name=glue/stsb has no classes (nearest: 0)",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(settings, line):
    with pytest.raises(ConfigError) as caught:
        resolve(settings)
    assert str(caught.value).startswith(line)


def test_the_tokenizer_is_the_networks():
    of = lambda **given: resolve({"data": "glue/mrpc", **given}).data.tokenizer  # noqa: E731
    assert of(model="transformers/org/bert") == "org/bert"
    assert of(model="bert-tiny") == "train"
    assert of(model="transformers/org/bert", **{"data.tokenizer": "other"}) == "other"
    assert resolve().data.tokenizer is None


def test_what_a_preset_is_on_text():
    """Around AdamW, at the rate of fine-tuning for a published network; LETS by the validation loss."""
    of = lambda *layers: resolve({"data": "glue/mrpc", "model": "bert-tiny"}, *layers)  # noqa: E731
    optim = of().optim
    assert (optim.base, optim.lr, optim.lr_schedule, optim.lr_warmup, optim.rho) == ("adamw", 1e-3, "linear", 0.1, 0.05)
    assert of({"model": "transformers/org/bert"}).optim.lr == 2e-5
    assert of({"optim.base": "sgd"}).optim == resolve().optim
    assert of({"optim.lr": 0.1, "optim.lr_warmup": 0}).optim.lr_schedule == "linear"
    for method, rho in (("lets-sam", 0.05), ("lets-asam", 0.5), ("lets-bisam-log", 0.05)):
        config = of({"method": method})
        assert (config.optim.rho, config.optim.warmup, config.lets.goal) == (rho, 0.25, "validation")
    assert of({"method": "lets-sam", "lets.goal": "gap", "optim.rho": 0.2}).lets.goal == "gap"
    images = resolve({"method": "lets-sam"})
    assert (images.optim.rho, images.lets.goal, images.optim.base) == (0.2, "gap", "sgd")
    assert resolve({"data": "unicode"}).optim.base == "adamw"


def test_the_network_on_text_unless_it_is_named():
    names = {"glue/mrpc": "bert-tiny", "generated/glue/stsb": "bert-tiny", "unicode": "bert-tiny"}
    for name, model in {**names, "iwslt14": "transformer-iwslt", "generated/iwslt14": "transformer-iwslt"}.items():
        config = resolve({"data": name})
        assert config.model.name == model
        assert resolve(config.model_dump()) == config
    assert resolve({"data": "iwslt14", "model": "transformer-tiny"}).model.name == "transformer-tiny"


def test_a_correlation_that_is_not_positive_has_an_error_too():
    cola = Classification(matthews=lambda found, y: 0.0)
    assert cola.standard_error(0.0, 100) == 0.1
    assert cola.standard_error(-0.6, 100) == pytest.approx(0.064)
    assert Classification().standard_error(0.5, 100) == 0.05


def test_folds_average_every_score():
    found = [data_of(0.2, 0.5), data_of(0.4, 0.7)]
    whole = mean_evaluation(found)
    assert whole.more["f1"] == pytest.approx(0.6)
    assert whole.accuracy == pytest.approx(0.3)


def data_of(accuracy, f1):
    from bisam_ray.training.task import Evaluation

    return Evaluation(1.0, accuracy, (accuracy, accuracy), {"f1": f1})


def rows(count):
    """`count` rows of tokens from 4 to 13, of lengths from 1 to 30."""
    generator = torch.Generator().manual_seed(count)
    sizes = torch.randint(1, 31, (count,), generator=generator).tolist()
    return [torch.randint(4, 14, (size,), generator=generator).tolist() for size in sizes]


class Copies(torch.nn.Module):
    """Classes are last tokens, translations are sources; counts what it reads."""

    places = 0

    def forward(self, x):
        self.places += x[:, 0].numel()
        last = x[:, 0].gather(1, (x[:, 0] > 0).sum(1, keepdim=True) - 1)[:, 0]
        return torch.nn.functional.one_hot(last, 14).float() * 9

    def search(self, source, beam):
        return source


def test_texts_are_evaluated_sorted_by_length_and_scored_in_their_own_order(monkeypatch):
    monkeypatch.setattr(task, "LARGEST", 16)  # pieces of 16
    given = rows(300)
    x = Ragged([(row, [0] * len(row)) for row in given], (0, 0))
    y = torch.tensor([row[-1] if at % 2 else 3 for at, row in enumerate(given)])
    model = Copies()
    found = Classification().assess(model, data.Split(x, y))
    assert (found.accuracy, *found.halves) == (0.5, 0.0, 1.0)
    assert model.places < 1.25 * sum(-(-len(row) // 8) * 8 for row in given)


def test_translations_are_scored_in_their_own_order(monkeypatch):
    pytest.importorskip("sacrebleu")
    monkeypatch.setattr(task, "LARGEST", 16)
    given = [[2, *row, 3] for row in rows(40) if len(row) > 3]
    other = [row if at % 2 else [2, 4, 3] for at, row in enumerate(given)]
    x = Ragged([(row, row[:-1]) for row in given], (0, 0))
    y = translation.as_wide(Ragged([(row[1:],) for row in other], (PADDED,)), x)
    model = Copies()
    model.forward = lambda x: torch.zeros(*x[:, 0].shape, 14)
    found = Translation(unreadable(14), 1).assess(model, data.Split(x, y))
    assert found.halves[0] < 0.05
    assert found.halves[1] == pytest.approx(1.0)
    assert found.loss == pytest.approx(math.log(14))


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("cosine", lambda s: 0.5 * (1 + math.cos(math.pi * s))),
        ("linear", lambda s: 1 - s),
        ("constant", lambda s: 1.0),
    ],
)
def test_learning_rates(schedule, after):
    plain, warm = (Optim(objective="none", lr_schedule=schedule, lr_warmup=w) for w in (0.0, 0.2))
    for step in range(100):
        assert engine.learning_rate(plain, step, 100) == pytest.approx(after(step / 100))
        wanted = (step + 1) / 21 if step < 20 else after((step - 20) / 80)
        assert engine.learning_rate(warm, step, 100) == pytest.approx(wanted)


def test_the_inverse_square_root():
    optim = Optim(objective="none", lr_schedule="inverse_sqrt", lr_warmup=0.1)
    rates = [engine.learning_rate(optim, step, 1000) for step in range(1000)]
    assert max(rates) == 1.0 == rates[100]
    assert rates[100] == max(rates)
    assert rates[403] == pytest.approx(0.5)  # at four times the steps of the warm-up
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_biases_and_norms_need_not_decay():
    params = [torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(3))]
    base = engine.base_optimizer(
        Optim(objective="none", base="adamw", weight_decay=0.5, decay="weights", lr=0.1), params
    )
    for p in params:
        p.grad = torch.zeros_like(p)
    base.step()
    assert torch.allclose(params[0], torch.tensor(0.95))
    assert torch.equal(params[1], torch.ones(3))


def test_examples_of_like_length_come_together():
    lengths = torch.randint(5, 100, (1003,), generator=torch.Generator().manual_seed(0))
    stream, plain = data.Stream(1003, 16, 3, lengths, bucket=10), data.Stream(1003, 16, 3)
    epoch = stream.permutation(2)
    assert torch.equal(epoch.sort().values, torch.arange(1003))
    for part, drawn in zip(epoch.split(160), plain.permutation(2).split(160), strict=True):
        assert torch.equal(part.sort().values, drawn.sort().values)  # the same examples in ten batches

    def spread(stream):
        return sum((lengths[b].max() - lengths[b].min()).item() for b in map(stream.batch, range(60)))

    assert spread(stream) < spread(plain) / 4
    assert torch.equal(data.Stream(1003, 16, 3, lengths, bucket=10).batch(130), stream.batch(130))
