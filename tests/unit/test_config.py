"""Layers, errors in one line, digests."""

import pytest
import yaml

from bisam_ray.config import PRESETS, ConfigError, dump, load, overrides, resolve


def test_precedence_later_layers_win_over_the_preset_and_the_defaults():
    config = resolve({"method": "bisam-tanh", "optim": {"mu": 5}}, {"optim.mu": 7}, {"train.epochs": 3})
    assert (config.optim.mu, config.optim.alpha, config.optim.rho, config.train.epochs) == (7, 0.1, 0.05, 3)


def test_a_preset_gives_way_to_an_earlier_files_explicit_key():
    assert resolve({"optim": {"rho": 0.3}}, {"method": "bisam-log"}).optim.rho == 0.3


def test_yaml_numbers_that_pyyaml_reads_as_text_are_repaired():
    assert resolve(overrides(["optim.rho=1e-1"])).optim.rho == 0.1


def test_shorthands():
    config = resolve(overrides(["data=digits", "model=mlp"]))
    assert (config.data.name, config.model.name) == ("digits", "mlp")


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_resolves_and_survives_yaml(method):
    config = resolve({"method": method})
    assert resolve(yaml.safe_load(dump(config))) == config


def test_the_digest_names_the_run_and_contains_the_threads():
    assert resolve({"seed": 1}).digest() == resolve({"seed": "1"}).digest()
    digests = {resolve(layer).digest() for layer in ({}, {"seed": 1}, {"scale.threads": 2}, {"method": "sgd"})}
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optim.roh=0.1"], "optim.roh: unknown key; did you mean optim.rho?"),
        (["rho=0.1"], "rho: unknown key; did you mean optim.rho?"),
        (["method=sma"], "method=sma: unknown; did you mean sam?"),
        (["optim.rho=-1"], "greater than or equal to 0 (nearest: 0"),
        (["optim.rho=large"], "optim.rho=large: input should be a valid number"),
        (["optim.rho=.nan"], "optim.rho=nan: input should be a finite number"),
        (["data.label_noise=1.5"], "less than or equal to 1 (nearest: 1"),
        (["optim.alpha=0.1"], "optim.alpha=0.1: method sam has no alpha (bisam-tanh has)"),
        (["method=bisam-log", "optim.alpha=0.1"], "method bisam-log has no alpha"),
        (["method=sgd", "optim.rho=0.1"], "method sgd has no ascent step, so no rho"),
        (["method=lets-sam", "optim.rho=3"], "a learned radius starts within"),
        (["optim.objective=tahn"], "did you mean tanh?"),
        (["optim.nesterov=yes", "optim.momentum=0"], "needs optim.momentum > 0"),
        (["data=digitz"], "data.name=digitz: unknown; did you mean digits?"),
        (["model=cmn"], "model.name=cmn: unknown; did you mean cnn?"),
        (["model=torchvison/resnet18"], "did you mean torchvision/NAME?"),
        (["optim=3"], "a section, not a value"),
        (["train.epochs=2.5"], "train.epochs=2.5: input should be a valid integer"),
        (["train.epochs"], "expected key=value"),
        (["seed=[1"], "not valid YAML"),
    ],
)
def test_bad_input_is_told_in_one_line(words, told):
    with pytest.raises(ConfigError) as error:
        resolve(overrides(words))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [("", "empty"), ("- 1", "expected a mapping"), ("a: [1", "not valid YAML in line"), ("5: x", "expected a mapping")],
)
def test_bad_files(tmp_path, text, told):
    path = tmp_path / "exp.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load(path)


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "exp.yaml").write_text("method: sam")
    with pytest.raises(ConfigError, match=r"No such file.*did you mean exp\.yaml"):
        load(tmp_path / "epx.yaml")
