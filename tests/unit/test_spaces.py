"""Every space that ships loads and does what it says; every mistake is told in one line."""

import random
import re
import subprocess
import sys
from statistics import fmean, median

import optuna
import pytest
import yaml
from click.testing import CliRunner

from bisam_ray.cli import main
from bisam_ray.config import PRESETS, ConfigError, resolve
from bisam_ray.study import spaces
from bisam_ray.study.domain import Domain
from bisam_ray.study.preview import preview
from bisam_ray.study.probes import Probe, every, explored

SHIPPED = sorted(p for d in spaces.DIRECTORIES if d.is_dir() for p in d.glob("*.yaml"))
GUIDE = (SHIPPED[0].parent / "README.md").read_text(encoding="utf-8")
optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def made(**content):
    return spaces.Space.model_validate({"name": "x", **content})


def drawn(space, rng):
    return space.suggest(Probe(lambda _, domain: domain.sample(rng)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_space_loads_and_starts_at_the_published_setting(path):
    space = spaces.read(path.stem)
    assert space.name == path.stem
    assert path.read_text(encoding="utf-8").startswith("# ")
    first = space.start[0]
    assert resolve(space.fix, first) == resolve({"method": space.fixed.get("method", first.get("method"))})
    assert space.active(first) == sorted(first, key=space.order.index)


def test_all_spaces_that_the_guide_lists_ship_and_no_others():
    assert set(re.findall(r"`(\w+)`(?=[,| ].*\|)", GUIDE.split("|---|---|")[1])) == {p.stem for p in SHIPPED}


def test_the_guides_examples_are_good(tmp_path):
    (tmp_path / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", GUIDE, re.S)[1])
    space = spaces.read("mine.yaml")
    assert list(space.parameters) == [
        "optim.rho", "optim.warmup", "data.batch_size", "optim.base", "optim.lr", "optim.lr@adamw", "optim.momentum",
    ]  # fmt: skip
    (tmp_path / "guided.py").write_text(re.search(r"```python\n(.*?)```", GUIDE, re.S)[1])
    assert spaces.read("guided:deep").searched == ["method", "optim.rho", "optim.lr"]


RHO = {"optim.rho": {"log": [0.01, 1]}}
METHOD = {"method": {"choice": ["sam", "bisam-tanh"]}}
GOOD = {"fix": {"method": "bisam-tanh"}, "search": RHO, "start": [{"optim.rho": 0.05}]}


def when(**conditions):
    return {"search": {**RHO, **METHOD, "optim.mu": {"log": [1, 30], "when": conditions}}, "start": [], "fix": {}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"search": {"optim.roh": {"log": [0.01, 1]}}}, "optim.roh: no config path; did you mean optim.rho?"),
        ({"search": {"optim.rho": {"lgo": [0.01, 1]}}}, "search: optim.rho: lgo: unknown key; did you mean log?"),
        ({"search": {"optim.rho": {"itn": [1, 2]}}}, "did you mean int?"),
        ({"search": {"optim.rho": {"log": [1, 0.01]}}}, "needs 0 < low < high"),
        ({"search": {"optim.rho": {"log": [0, 1]}}}, "needs 0 < low < high"),
        ({"search": {"optim.rho": {"log": [0.1, "much"]}}}, "search: optim.rho: log: 'much': input should be a valid"),
        ({"search": {"optim.rho": {"log": [0.1, float("inf")]}}}, "optim.rho: log: inf: input should be a finite"),
        ({"search": {"optim.rho": {"log": [0.01, 1], "choice": [1]}}}, "exactly one of"),
        ({"search": {"optim.rho": [0.01, 1]}}, "search: optim.rho: 0.01: input should be"),
        ({"search": {"optim.rho": []}}, "search: optim.rho: []"),
        ({"search": {"optim.rho": {"uniform": [-1, 1]}}}, "optim.rho=-1.0: input should be greater"),
        ({"search": {"optim.rho": {"log": [0.1, 1], "step": 0.1}}}, "optim.rho: step=0.1: a log has none"),
        ({"search": {"optim.rho": {"choice": [0.1, 1], "step": 0.1}}}, "optim.rho: step=0.1: a choice has none"),
        ({"search": {"optim.rho": {"uniform": [0, 0.5], "step": 0.2}}}, "from 0 to 0.5 (nearest end: 0.4)"),
        ({"search": {"train.epochs": {"int": [10, 40], "step": 2.5}}}, "step=2.5: integers need a whole one"),
        ({"search": {"optim.rho": {"log": [0.01, 1], "prior": 2}}}, "prior=2: not of log [0.01, 1] (nearest: 1)"),
        ({"search": {"optim.rho": {"choice": [0.1], "prior": 2}}}, "prior=2: not of choice [0.1]"),
        ({"search": {"lets.learn": {"choice": [["mu"]]}}}, "choice: ['mu']: expected a word, a number"),
        ({"search": {"optim.rho": {"choice": [0.1, 0.1]}}}, "choice: 0.1 is there twice"),
        ({"search": {}}, "search"),
        ({"function": "a:b"}, "either search"),
        ({"fix": {"method": "sam"}, "search": {"optim.alpha": {"choice": [0.1]}}, "start": []}, "sam has no alpha"),
        ({"fix": {"method": "sma"}}, "did you mean sam?"),
        ({"fix": {"optim.roh": 1}}, "did you mean optim.rho?"),
        ({"start": [{"optim.mu": 3}]}, "start point 1: optim.mu is not searched"),
        ({"start": [{"optim.rho": -3}]}, "start point 1: optim.rho=-3: not of log [0.01, 1] (nearest: 0.01)"),
        ({"start": [{"optim.rho": "much"}]}, "optim.rho=much: not a number"),
        ({"serach": 1}, "serach: unknown key; did you mean search?"),
        (when(metod="sam"), "optim.mu: when: metod: neither searched nor fixed; did you mean method?"),
        (when(method="bisam-tan"), "when: method=bisam-tan: not one of its choices; did you mean bisam-tanh?"),
        (when(method=[]), "when: method: no value"),
        (when(**{"optim.rho": 0.1}), "when: optim.rho is searched, but not as a choice"),
        (when(method="sam"), "method sam has no mu"),
        ({**when(method="bisam-tanh"), "start": [{"method": "sam", "optim.mu": 3}]}, "only when method = bisam-tanh"),
        ({**when(method="bisam-tanh"), "start": [{"optim.mu": 3}]}, "optim.mu is not searched there, only when"),
        ({"search": {"optim.rho": {"log": [0.1, 1], "when": {"seed": 1}}}, "fix": {"seed": 2}}, "nothing is ever"),
        (
            {"search": {**METHOD, "optim.rho": [{"log": [0.1, 1]}, {"log": [1, 2], "when": {"method": "sam"}}]}},
            "log [0.1, 1] and log [1, 2] may hold together",
        ),
        (
            {
                "search": {
                    **METHOD,
                    "optim.base": {"choice": ["sgd", "adamw"]},
                    "optim.rho": [
                        {"log": [0.1, 1], "when": {"method": "sam"}},
                        {"log": [1, 2], "when": {"optim.base": "sgd"}},
                    ],
                }
            },
            "log [0.1, 1] and log [1, 2] may hold together",
        ),
        (
            {
                "search": {"optim.nesterov": {"choice": [False, True]}, "optim.dampening": {"choice": [0.0, 0.1]}},
                "start": [{"optim.nesterov": True, "optim.dampening": 0.1}],
            },
            "optim.nesterov=True: needs",
        ),
        (
            {
                "search": {
                    "optim.rho": {"choice": [0.1], "when": {"optim.lr": 0.1}},
                    "optim.lr": {"choice": [0.1], "when": {"optim.rho": 0.1}},
                }
            },
            "depends on itself: optim.rho → optim.lr → optim.rho",
        ),
    ],
)
def test_mistakes(tmp_path, change, told):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **change}, sort_keys=False))
    with pytest.raises(ConfigError) as error:
        spaces.read(path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ConfigError, match="did you mean bisam_tanh"):
        spaces.read("bisam_tahn")


def test_the_check_finds_what_is_wrong_under_one_condition_only():
    """One combination of two choices, at one end of a range."""
    search = {
        **METHOD,
        "optim.base": {"choice": ["sgd", "adamw"]},
        "optim.momentum": {"uniform": [0, 0.5], "when": {"optim.base": "adamw", "method": "bisam-tanh"}},
    }
    spaces.check(made(search=search), "x")
    search["optim.momentum"] = {**search["optim.momentum"], "uniform": [0, 1]}
    with pytest.raises(ConfigError, match=r"optim.momentum=1.0"):
        spaces.check(made(search=search), "x")


def test_what_is_suggested_can_be_trained_and_what_is_inactive_never_appears():
    space = spaces.read("methods")
    ranges = {"asam": (0.05, 10), "sgd": None}
    rng, seen = random.Random(0), set()
    for _ in range(2000):
        values = drawn(space, rng)
        config = resolve(space.fix, values)
        method = values["method"]
        seen.add(method)
        assert set(values) == {
            "method",
            *(["optim.rho"] if method != "sgd" else []),
            *(["optim.mu"] if method.startswith("bisam") else []),
            *(["optim.alpha"] if method == "bisam-tanh" else []),
        }
        assert list(values) == space.active(values) == space.active({**values, "optim.alpha": 0.1})
        if span := ranges.get(method, (0.02, 2)):
            assert span[0] <= config.optim.rho <= span[1]
    assert seen == set(space.methods) == {"sgd", "sam", "asam", "bisam-tanh", "bisam-log", "sampa"}


def test_optuna_accepts_every_point_of_a_conditional_space():
    """Its rule is one range per name; the start points and the grid reach it under the right names."""
    space = spaces.read("methods")
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, group=True, n_startup_trials=10)
    study = optuna.create_study(sampler=sampler)
    for point in space.start:
        study.enqueue_trial(space.params(point))
    asked = []
    for number in range(50):
        trial = study.ask()
        asked.append(space.suggest(trial))
        assert space.params(asked[-1]) == trial.params
        assert {name.partition("@")[0] for name in trial.params} == set(asked[-1])
        resolve(space.fix, asked[-1])
        study.tell(trial, number % 7)
    assert asked[: len(space.start)] == space.start
    assert {"optim.rho@asam", "optim.mu@bisam-log"} <= {name for trial in study.trials for name in trial.params}


@pytest.mark.parametrize(
    "content", [{"log": (0.01, 1)}, {"uniform": (0, 1), "step": 0.05}, {"int": (1, 9), "step": 4}, {"choice": ["a", 2]}]
)
def test_optuna_sees_the_domain_and_the_grid_lies_in_it(content):
    domain = Domain.model_validate(content)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    assert domain.outside(domain.suggest(trial, "x")) is None
    (distribution,) = trial.distributions.values()
    rng = random.Random(0)
    values = [*domain.grid(4), *(domain.sample(rng) for _ in range(50))]
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)
    if domain.choice is None:
        assert (distribution.low, distribution.high) == domain.ends()
        assert distribution.log == (domain.kind == "log")
        assert distribution.step == domain.step
        assert all(value == float(f"{value:.12g}") for value in values if domain.step)


def test_grids_of_domains():
    def grid(points=5, **content):
        return Domain.model_validate(content).grid(points)

    assert grid(log=(0.01, 100)) == pytest.approx([0.01, 0.1, 1, 10, 100])
    assert grid(uniform=(0, 1), step=0.25, points=2) == [0, 0.25, 0.5, 0.75, 1]
    assert grid(uniform=(0, 1), points=3) == [0, 0.5, 1]
    assert grid(uniform=(0, 1), points=1) == [0.5]
    assert grid(int=(2, 5)) == [2, 3, 4, 5]
    assert grid(int=(0, 100)) == [0, 25, 50, 75, 100]
    assert grid(int=(10, 40), step=10, points=2) == [10, 20, 30, 40]
    assert grid(choice=[None, "a", True], points=1) == [None, "a", True]
    rng = random.Random(0)
    for _ in range(200):
        low, high = sorted((rng.random(), rng.random()))
        for kind in ("log", "uniform"):
            found = grid(**{kind: (low, high)})
            assert (found[0], found[-1]) == (low, high)


def test_the_grid_of_a_space_is_distinct_and_complete():
    space = spaces.read("methods")
    points = space.grid(3)
    count = {method: sum(point["method"] == method for point in points) for method in space.methods}
    assert count == {"sgd": 1, "sam": 3, "asam": 3, "bisam-tanh": 27, "bisam-log": 9, "sampa": 3}
    assert len({repr(point) for point in points}) == len(points)
    assert [p["optim.rho"] for p in points if p["method"] == "asam"] == pytest.approx([0.05, 0.5**0.5, 10])


def test_an_odometer_grows_with_its_answers():
    def ask(trial):
        a = trial.suggest_categorical("a", [1, 2, 3])
        return [a, *(trial.suggest_int(f"b{i}", 0, 1) for i in range(a - 1))]

    assert [answer for _, answer in every(ask, lambda _, domain: domain.ends())] == [
        [1], [2, 0], [2, 1], [3, 0, 0], [3, 0, 1], [3, 1, 0], [3, 1, 1],
    ]  # fmt: skip
    assert {(name, end) for probe, _ in explored(ask) for name, end in probe.params.items()} == {
        *(("a", a) for a in (1, 2, 3)), ("b0", 0), ("b0", 1), ("b1", 0), ("b1", 1),
    }  # fmt: skip


@pytest.mark.parametrize("content", [{"log": (0.02, 2), "prior": 0.2}, {"uniform": (-1, 1), "prior": 0}])
def test_prior_points_lie_around_the_prior_on_the_domains_scale(content):
    rng, domain = random.Random(0), Domain.model_validate(content)
    drawn = [domain.around(rng) for _ in range(4000)]
    assert all(domain.outside(value) is None for value in drawn)
    shares = [domain.share(value) for value in drawn]
    assert median(shares) == pytest.approx(0.5, abs=0.01)
    assert fmean((share - 0.5) ** 2 for share in shares) ** 0.5 == pytest.approx(1 / 6, rel=0.05)


def test_prior_points_of_grids_and_choices():
    rng = random.Random(0)
    grid = Domain.model_validate({"uniform": (0, 0.5), "step": 0.05, "prior": 0.0})
    assert {grid.around(rng) for _ in range(500)} <= set(grid.grid(1))
    whole = Domain.model_validate({"int": (10, 40), "step": 10, "prior": 40})
    assert {whole.around(rng) for _ in range(500)} <= {10, 20, 30, 40}
    choice = Domain.model_validate({"choice": ["a", "b"], "prior": "b"})
    assert fmean(choice.around(rng) == "b" for _ in range(4000)) == pytest.approx(0.75, abs=0.03)


def test_a_prior_point_holds_conditional_keys_only_where_their_condition_is_decided():
    mu = {"log": [1, 30], "prior": 10, "when": {"method": "bisam-tanh"}}
    rho = {"log": [0.02, 2], "prior": 0.1}
    undecided = made(search={**METHOD, "optim.mu": mu, "optim.rho": rho})
    assert set(undecided.prior_point(random.Random(0))) == {"optim.rho"}
    fixed = made(fix={"method": "bisam-tanh"}, search={"optim.mu": mu, "optim.rho": rho})
    assert set(fixed.prior_point(random.Random(0))) == {"optim.rho", "optim.mu"}
    method = {**METHOD["method"], "prior": "sam"}
    decided, rng = made(search={"method": method, "optim.mu": mu, "optim.rho": rho}), random.Random(0)
    for point in (decided.prior_point(rng) for _ in range(50)):
        assert ("optim.mu" in point) == (point["method"] == "bisam-tanh")


def test_a_key_comes_after_those_it_depends_on_and_else_as_in_the_file():
    space = made(
        search={
            "optim.mu": {"log": [1, 30], "when": {"method": "bisam-tanh"}},
            "optim.rho": {"log": [0.1, 1]},
            **METHOD,
        }
    )
    assert space.order == ["optim.rho", "method", "optim.mu"]
    assert space.searched == ["optim.mu", "optim.rho", "method"]


def test_conditions_on_what_is_fixed_and_on_what_is_inactive():
    search = {
        "optim.mu": {"choice": [1, 2], "when": {"optim.base": "adamw"}},
        "optim.rho": {"log": [0.1, 1], "when": {"optim.mu": 1}},
        "optim.lr": {"log": [0.1, 1]},
    }
    nested = made(fix={"optim": {"base": "adamw"}, "method": "bisam-log"}, search=search)
    assert nested.active({"optim.mu": 1}) == ["optim.mu", "optim.rho", "optim.lr"]
    assert nested.active({"optim.mu": 2}) == nested.active({}) == ["optim.mu", "optim.lr"]
    off = made(fix={"optim.base": "sgd", "method": "bisam-log"}, search=search)
    assert off.active({"optim.mu": 1}) == ["optim.lr"]


def test_numbers_that_yaml_takes_for_words(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "fix: {method: sam}\n"
        "search:\n"
        "  optim.rho: {log: [1e-2, 1e0], prior: 1e-1}\n"
        "  optim.weight_decay: {choice: [1e-3, 1e-4]}\n"
        "start: [{optim.rho: 5e-2, optim.weight_decay: 1e-4}]\n"
    )
    space = spaces.read("mine.yaml")
    assert space.search["optim.weight_decay"][0].choice == [0.001, 0.0001]
    assert space.search["optim.rho"][0].prior == 0.1
    assert space.start == [{"optim.rho": 0.05, "optim.weight_decay": 0.0001}]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_recorded_space_is_the_same_space(path):
    space = spaces.read(path.stem)
    recorded = space.model_dump(mode="json", exclude_none=True)
    assert spaces.Space.model_validate(recorded) == space
    written = yaml.safe_load(path.read_text())["search"]
    assert {k: type(v) for k, v in recorded["search"].items()} == {k: type(v) for k, v in written.items()}


FUNCTION = """
def both(trial):
    method = trial.suggest_categorical("m", ["sam", "bisam-tanh"])
    rho = trial.suggest_float("r", 0.05, 0.5, log=True)
    values = {"method": method, "optim": {"rho": rho, "lr": 0.01 / rho}}
    if method == "bisam-tanh":
        values["optim.mu"] = trial.suggest_int("mu", 1, 30)
    return values

def unknown(trial): return {"optim.roh": trial.suggest_float("r", 0.1, 1)}
def nothing(trial): trial.suggest_float("r", 0.1, 1)
def broken(trial): return 1 / 0
def far(trial): return {"optim.rho": trial.suggest_float("r", -1.0, 1)}
def moving(trial): return {"optim.rho": trial.suggest_float("r", 0, 1 + trial.suggest_categorical("c", [1, 2]))}
def stepped(trial): return {"optim.rho": trial.suggest_float("r", 0.1, 1, step=0.1, log=True)}
"""


def test_a_function_is_a_space(tmp_path):
    (tmp_path / "myspaces.py").write_text(FUNCTION)
    space = spaces.read("myspaces:both")
    assert space.name == "both"
    assert space.methods == ["sam", "bisam-tanh"]
    assert space.searched == ["method", "optim.rho", "optim.lr", "optim.mu"]
    assert list(space.parameters) == ["m", "r", "mu"]
    assert space.example() == {"method": "sam", "optim.rho": 0.05, "optim.lr": 0.01 / 0.05}
    points = space.grid(3)
    assert len(points) == 3 + 3 * 3
    assert (points[0], list(points[-1])) == ({"m": "sam", "r": 0.05}, ["m", "r", "mu"])
    assert space.prior_point(random.Random(0)) == {}
    assert spaces.at_border(space, space.example()) == []
    study = optuna.create_study()
    study.enqueue_trial(space.params({"m": "bisam-tanh", "r": 0.1, "mu": 3}))
    asked = space.suggest(study.ask())
    assert asked == {"method": "bisam-tanh", "optim.rho": 0.1, "optim.lr": 0.01 / 0.1, "optim.mu": 3}
    assert spaces.Space.model_validate(space.model_dump(mode="json", exclude_none=True)) == space
    assert "optim.mu" in preview(space, 8)


def test_a_file_names_a_function_and_fixes_what_it_leaves_open(tmp_path):
    (tmp_path / "myspaces2.py").write_text(FUNCTION)
    content = {"function": "myspaces2:both", "fix": {"train.epochs": 3}, "start": [{"m": "bisam-tanh", "mu": 4}]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    space = spaces.read("mine.yaml")
    assert space.name == "mine"
    assert space.example()["optim.mu"] == 4
    assert space.active({"m": "sam"}) == ["m", "r"]


@pytest.mark.parametrize(
    ("name", "start", "told"),
    [
        ("unknown", {}, "optim.roh: unknown key; did you mean optim.rho?"),
        ("nothing", {}, "returned None, expected a mapping of config values"),
        ("broken", {}, "ZeroDivisionError: division by zero"),
        ("far", {}, "optim.rho=-1.0: input should be greater"),
        ("moving", {}, "r: uniform [0, 2] in one trial, uniform [0, 3] in another"),
        ("stepped", {}, "r: step=0.1: a log has none"),
        ("bth", {}, "did you mean both?"),
        ("both", {"rr": 1}, "start point 1: rr is not searched"),
        ("both", {"r": 1}, "start point 1: r=1: not of log [0.05, 0.5] (nearest: 0.5)"),
        ("both", {"m": "sam", "mu": 3}, "start point 1: mu is not searched there"),
    ],
)
def test_mistakes_of_functions(tmp_path, name, start, told):
    (tmp_path / "myspaces3.py").write_text(FUNCTION)
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"function": f"myspaces3:{name}", "start": [start] if start else []})
    )
    with pytest.raises(ConfigError) as error:
        spaces.read("mine.yaml")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_best_value_at_the_border_is_noticed():
    space = made(search={"optim.rho": {"log": [0.01, 1]}, "train.epochs": {"int": [10, 40]}})
    assert spaces.at_border(space, {"optim.rho": 0.99}) == ["optim.rho"]
    assert spaces.at_border(space, {"optim.rho": 0.1}) == []
    assert spaces.at_border(space, {"train.epochs": 40}) == ["train.epochs"]
    methods = spaces.read("methods")
    assert spaces.at_border(methods, {"method": "asam", "optim.rho": 1.99}) == []
    assert spaces.at_border(methods, {"method": "sam", "optim.rho": 1.99}) == ["optim.rho"]


def test_an_end_beyond_which_there_is_nothing_is_no_border():
    space = spaces.read("rho_warmup")
    assert spaces.at_border(space, {"optim.rho": 0.3, "optim.warmup": 0.0}) == []
    assert spaces.at_border(space, {"optim.rho": 0.3, "optim.warmup": 0.5}) == ["optim.warmup"]


def call(*words):
    return CliRunner().invoke(main, ["space", *words])


def test_the_check_tells_methods_keys_and_conditions():
    told = call("check", "methods").output
    for part in ("methods: sgd, sam, asam", "keys: 4 (method, optim.rho", "with a condition: 5", "start points: 6"):
        assert part in told


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_preview_shows_samples_their_cost_and_the_keys(path):
    result = call("preview", path.stem, "--samples", "12", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert result.output == call("preview", path.stem, "--samples", "12", "--seed", "3").output
    assert result.output.splitlines()[2] not in call("preview", path.stem, "--samples", "12", "--seed", "4").output
    assert max(map(len, result.output.splitlines())) <= 100
    assert all(name in result.output for name in spaces.read(path.stem).parameters)
    rows = [line.split() for line in result.output.splitlines() if re.match(r" *\d+ ", line)]
    assert len(rows) == 12
    assert all(row[-1] == ("3" if path.stem == "lets" else "1" if "sgd" in row else "2") for row in rows)


def test_a_wide_preview_is_folded(tmp_path):
    keys = ("rho", "xi", "lr", "momentum", "dampening", "weight_decay", "label_smoothing", "warmup", "outer_lr")
    content = {"search": {f"optim.{key}": {"uniform": [0.01, 0.5]} for key in keys}}
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(content))
    lines = call("preview", "wide.yaml").output.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("1 ") for line in lines) == 2
    assert sum(line.count("optim.") for line in lines) == 2 * len(keys)


@pytest.mark.parametrize("verb", ["check", "preview"])
def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path, verb):
    (tmp_path / "mine.yaml").write_text("search: {optim.roh: {log: [0.1, 1]}}\n")
    result = call(verb, "mine.yaml")
    assert result.exit_code == 2
    assert "did you mean optim.rho?" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_preview_needs_nothing_heavy():
    code = (
        "import sys; from bisam_ray.study.preview import preview; from bisam_ray.study.spaces import read;"
        "preview(read('methods'), 2); heavy = ('torch', 'ray', 'mlflow', 'optuna', 'numpy');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_every_methods_start_point_is_its_preset():
    space = spaces.read("methods")
    assert {point["method"] for point in space.start} == set(space.methods) <= set(PRESETS)
    for point in space.start:
        assert resolve(point) == resolve({"method": point["method"]})
