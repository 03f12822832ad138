"""Every space that ships loads; every mistake is told in one line."""

import pytest
import yaml

from bisam_ray.config import ConfigError
from bisam_ray.study import spaces

SHIPPED = sorted(p for d in spaces.DIRECTORIES if d.is_dir() for p in d.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_space_loads_and_starts_at_the_published_setting(path):
    space = spaces.read(path.stem)
    assert space.name == path.stem
    assert space.start


GOOD = {"fix": {"method": "bisam-tanh"}, "search": {"optim.rho": {"log": [0.01, 1]}}, "start": [{"optim.rho": 0.05}]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"search": {"optim.roh": {"log": [0.01, 1]}}}, "optim.roh: no config path; did you mean optim.rho?"),
        ({"search": {"optim.rho": {"lgo": [0.01, 1]}}}, "lgo: unknown key; did you mean log?"),
        ({"search": {"optim.rho": {"log": [1, 0.01]}}}, "needs 0 < low < high"),
        ({"search": {"optim.rho": {"log": [0, 1]}}}, "needs 0 < low < high"),
        ({"search": {"optim.rho": {"log": [0.01, 1], "choice": [1]}}}, "exactly one of"),
        ({"search": {"optim.rho": {"uniform": [-1, 1]}}}, "optim.rho=-1.0: input should be greater"),
        ({"search": {}}, "search"),
        ({"fix": {"method": "sam"}, "search": {"optim.alpha": {"choice": [0.1]}}, "start": []}, "sam has no alpha"),
        ({"fix": {"method": "sma"}}, "did you mean sam?"),
        ({"start": [{"optim.mu": 3}]}, "optim.mu is not searched"),
        ({"start": [{"optim.rho": -3}]}, "optim.rho=-3"),
        ({"serach": 1}, "serach: unknown key; did you mean search?"),
    ],
)
def test_mistakes(tmp_path, change, told):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}))
    with pytest.raises(ConfigError) as error:
        spaces.read(path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean bisam_tanh"):
        spaces.read("bisam_tahn")


def test_domains_are_rays():
    from ray.tune.search.sample import Categorical, Float, Integer

    made = {
        "log": spaces.Domain(log=(0.01, 1)).tune(),
        "grid": spaces.Domain(uniform=(0, 1), step=0.25).tune(),
        "int": spaces.Domain.model_validate({"int": (1, 3)}).tune(),
        "choice": spaces.Domain(choice=["a", "b"]).tune(),
    }
    assert isinstance(made["log"], Float)
    assert isinstance(made["int"], Integer)
    assert isinstance(made["choice"], Categorical)
    assert {made["int"].sample() for _ in range(100)} == {1, 2, 3}
    assert {made["grid"].sample() for _ in range(200)} <= {0, 0.25, 0.5, 0.75, 1}


def test_a_best_value_at_the_border_is_noticed():
    space = spaces.Space.model_validate({"name": "x", "search": {"optim.rho": {"log": [0.01, 1]}}})
    assert spaces.at_border(space, {"optim.rho": 0.99}) == ["optim.rho"]
    assert spaces.at_border(space, {"optim.rho": 0.1}) == []
