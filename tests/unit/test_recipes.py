"""The recipes that ship: complete, true to what their comments say, and each makes two steps."""

import json
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from bisam_ray import api, catalogue
from bisam_ray.cli import main
from bisam_ray.config import DATASETS, MODELS, PRESETS, TEXT, dump, gradients_per_step, load, overrides, resolve
from bisam_ray.training import engine

ALL = catalogue.names()
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000, "imagenet100": 100, "flowers102": 102, "pets": 37}
CLASSES["iwslt14"] = 10_000  # subwords
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
WORDS = [name for name in ALL if resolve(load(catalogue.find(name))).data.name.startswith(TEXT)]
LONG = ("wrn28-10", "pyramidnet110", "densenet121", "vit-base")  # several seconds each, or more
BIG = [n for n in ALL if resolve(load(catalogue.find(n))).model.name in LONG or "imagenet-" in n]


def call(*words):
    return CliRunner().invoke(main, list(words))


def content(name):
    return load(catalogue.find(name))


def test_every_table_has_its_recipes():
    five = ("densenet121", "resnet56", "vgg19bn", "wrn28-2", "wrn28-10")
    wanted = {
        f"{paper}/{data}-{net}" for paper in ("bisam", "sampa") for data in ("cifar10", "cifar100") for net in five
    }
    three = ("resnet18", "wrn28-10", "pyramidnet110")
    wanted |= {f"lets/{data}-{net}" for data in ("cifar10", "cifar100") for net in three}
    wanted |= {f"bisam/glue-{task}" for task in GLUE} | {"lets/glue-mrpc-deberta", "sampa/glue-bert", "lets/iwslt14"}
    wanted |= {f"noise/0.{share}" for share in (2, 4, 6, 8)} | {"fine-tune/flowers", "fine-tune/pets"}
    assert wanted <= {*ALL}


@pytest.mark.parametrize("name", ALL)
def test_it_resolves_and_names_what_exists(name):
    config = resolve(content(name))
    for given, known in ((config.data.name, DATASETS), (config.model.name, MODELS)):
        assert (f"{given.partition('/')[0]}/NAME" if "/" in given else given) in known
    assert catalogue.listed()[ALL.index(name)] == (name, catalogue.comments(name)[0])
    smoothing = config.optim.label_smoothing
    if smoothing:  # a mass of 0.1 on the wrong classes
        classes = CLASSES[config.data.name]
        assert smoothing * (classes - 1) / classes == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_the_comments_tell_where_it_comes_from_and_what_else_runs(name):
    what, source, *rest = catalogue.comments(name)
    assert what.endswith(".")
    assert source.startswith(catalogue.SOURCE)
    text = " ".join(rest)
    assert "Published" in text
    assert "ours" in text or "Not stated: nothing" in text
    told = [word.rstrip(".") for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)?=[\w./-]+", text)]
    methods = [word.partition("=")[2] for word in told if word.startswith("method=")]
    assert methods
    assert {*methods} <= {*PRESETS}
    for word in told:  # each of them can be typed behind the recipe's name
        data = resolve(content(name), overrides([word])).data.name
        assert data in DATASETS or data.removeprefix("glue/") in GLUE


@pytest.mark.parametrize("name", [n for n in ALL if re.match("(bisam|sampa)/cifar", n)])
def test_the_official_settings(name):
    config = resolve(content(name))
    optim = config.optim
    assert (optim.base, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", 0.1, 0.9, 5e-4)
    assert (config.data.batch_size, config.train.epochs) == (128, 200)
    assert (*config.data.augment,) == ("crop", "flip", "cutout")
    assert (config.data.limit, config.scale.precision, optim.nesterov, optim.clip) == (None, "float32", False, None)
    if name.startswith("bisam"):
        assert (optim.objective, optim.rho, optim.mu) == ("log", 0.05, 1)
    else:
        assert (optim.objective, optim.rho, optim.lam, config.scale.workers) == ("cross_entropy", 0.1, 0.2, 2)


@pytest.mark.parametrize("name", [n for n in WORDS if "glue" in n])
def test_the_settings_of_fine_tuning(name):
    """Those of the networks' authors: google-research/bert (run_classifier.py), microsoft/DeBERTa (mrpc.sh)."""
    config = resolve(content(name))
    data, optim = config.data, config.optim
    assert data.name.removeprefix("glue/") in GLUE
    assert f"transformers/{data.tokenizer}" == config.model.name  # its own
    assert (config.model.weights, data.length, data.batch_size) == (None, 128, 32)
    assert (optim.base, optim.lr, optim.eps, optim.lr_schedule) == ("adamw", 2e-5, 1e-6, "linear")
    assert (optim.weight_decay, optim.decay, optim.clip, optim.label_smoothing, config.scale.precision) == (
        0.01,
        "weights",
        1,
        0,
        "bfloat16",
    )
    if "deberta" in name:  # 50 steps of 3,668 pairs, of which a tenth is val
        assert round(optim.lr_warmup * (3302 // 32) * config.train.epochs) == pytest.approx(50, abs=1)
    else:
        assert (optim.lr_warmup, config.train.epochs) == (0.1, 3)
    assert (optim.objective == "log") == (name.startswith("bisam/") and not name.endswith("stsb"))


def test_the_settings_of_translation():
    """Those of fairseq's example."""
    config = resolve(content("lets/iwslt14"))
    data, optim = config.data, config.optim
    assert (data.tokenizer, data.vocabulary, data.beam) == ("train", 10_000, 5)
    assert (optim.base, optim.lr, optim.lr_schedule, optim.weight_decay) == ("adamw", 5e-4, "inverse_sqrt", 1e-4)
    assert optim.betas == (0.9, 0.98)
    steps = round(0.9 * 167_000) // data.batch_size * config.train.epochs  # about so many pairs, a tenth of them val
    assert optim.lr_warmup * steps == pytest.approx(4000, rel=0.05)


def test_the_readme_lists_exactly_what_there_is():
    text = (catalogue.FOLDER / "README.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = [dict(zip(lines[0], [cell.strip("`") for cell in line], strict=True)) for line in lines[1:]]
    assert rows == catalogue.table()


def test_a_recipe_goes_by_its_name_and_a_file_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = catalogue.find("noise/0.2")
    assert path == catalogue.FOLDER / "noise" / "0.2.yaml"
    layer = api.layers("noise/0.2")
    assert layer["data"]["label_noise"] == 0.2
    Path("noise").mkdir()
    assert catalogue.find("noise/0.2") == path
    Path("noise/0.2").write_text("method: sgd")
    assert api.layers(["noise/0.2", {"seed": 1}]) == {"method": "sgd", "seed": 1}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bisam/cifar10-resnet65", "no such file or recipe; did you mean bisam/cifar10-resnet56?"),
        ("lets/cifar10-pyramidnet", "did you mean lets/cifar10-pyramidnet110?"),
        ("qqq", "no such file or recipe (bisam-ray recipes lists them)"),
        ("qqq.yaml", "No such file"),
    ],
)
def test_an_unknown_one_is_told_in_one_line(name, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("train", "-c", name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {name}: ")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


def test_train_search_and_compare_take_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = call("train", "-c", "bisam/cifar100-wrn28-2", "--print-config", "method=sam").stdout
    assert printed.startswith(dump(resolve(content("bisam/cifar100-wrn28-2"), {"method": "sam"})))
    assert "name: wrn28-2" in call("search", "rho", "-c", "bisam/cifar100-wrn28-2", "--print-config").stdout
    arms = call("compare", "sam", "-c", "bisam/cifar100-wrn28-2", "--print-config", "--json", "-q").stdout
    assert {arm["model"]["name"] for arm in json.loads(arms).values()} == {"wrn28-2"}


def test_recipes_lists_and_prints_them():
    lines = call("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["recipe", *ALL]
    row = next(line for line in lines if line.startswith("noise/asymmetric-0.4 "))
    assert re.split("  +", row)[1:5] == ["cifar10, 40 % asymmetric noise", "resnet32", "bisam-log", "200"]
    assert call("recipes", "noise/0.4").stdout == catalogue.find("noise/0.4").read_text(encoding="utf-8")
    unknown = call("recipes", "noise/0.5")
    assert (unknown.exit_code, unknown.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("given", "data"),
    [
        ({}, "digits"),
        ({"data": {"name": "mine:load"}}, "mine:load"),
        ({"data": {"name": "generated/cifar10"}}, "generated/cifar10"),
        ({"data": {"name": "svhn", "batch_size": 512, "limit": 9000}}, "generated/svhn"),
        ({"data.name": "glue/stsb", "model.name": "transformers/any"}, "generated/glue/stsb"),
        ({"data.name": "iwslt14", "model.name": "transformer-tiny"}, "generated/iwslt14"),
    ],
)
def test_smoke_lies_over_everything_that_makes_a_run_long(given, data):
    big = {"scale": {"workers": 8, "gpus_per_worker": 1, "compile": True, "precision": "bfloat16"}}
    big["optim"] = {"perturbation_scope": 64}
    config = resolve(given, big, {"train.epochs": 90, "model.weights": "hub"}, catalogue.smoke(given))
    published = "transformers/" in str(given)
    assert config.model.name == ("bert-tiny" if published else given.get("model.name", "cnn"))  # as it was, or at hand
    assert (config.data.name, config.data.batch_size, config.data.limit) == (data, 4, 10)
    assert (config.train.epochs, config.model.weights) == (1, None)
    scale = config.scale
    assert (scale.workers, scale.gpus_per_worker, scale.compile, scale.precision) == (1, 0, False, "float32")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in BIG else n for n in ALL])
def test_smoke_makes_two_steps(name, tmp_path, monkeypatch):
    if name in WORDS:
        pytest.importorskip("transformers")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = resolve(content(name), catalogue.smoke(content(name)))
    steps = []
    (record,) = engine.run(config, after_step=lambda step: steps.append(step.of))
    assert steps == [2, 2]
    assert math.isfinite(record.metrics["train/loss"])
    assert record.metrics["cost/gradients"] == pytest.approx(2 * config.data.batch_size * gradients_per_step(config, 2))
    assert -(name in WORDS) <= record.evaluate("test").accuracy <= 1
    assert not [*tmp_path.iterdir()]  # nothing was downloaded


def test_smoke_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = call("train", "-c", "bisam/cifar10-resnet56", "--smoke", "--json", "-q", "method=sam", "model=mlp")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["method"], found["cost_gradients"]) == ("sam", 2 * 2 * 4)
