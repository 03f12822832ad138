"""The arms of a comparison, and the spaces that follow a learned radius."""

import math

import pytest

from bisam_ray.config import ConfigError, resolve
from bisam_ray.study.arms import KINDS, METHODS, arms_of, derived, kinds_of, learned_radius, probe_of, space_of
from bisam_ray.study.ledger import Ledger, Run
from bisam_ray.study.ledger import read as read_ledger
from bisam_ray.study.plan import Plan
from bisam_ray.study.spaces import Space, read
from bisam_ray.training.engine import radius_shape


def spaces(*methods):
    return [read(space_of(method)) for method in methods]


def probe(rhos, warmup=0.25, method="lets-sam"):
    config = resolve({"method": method, "train.epochs": len(rhos), "optim.warmup": warmup})
    epochs = [{"epoch": i, "sam/rho": rho} for i, rho in enumerate(rhos, 1)]
    return Run("probe-lets-sam", {"config": config.model_dump(exclude_none=True)}, epochs)


def by_policy(policy, method="sam"):
    return next(arm for arm in arms_of(spaces(method)) if arm.policy == policy)


def test_four_methods_have_six_arms_each_and_sgd_is_there_once():
    arms = arms_of(spaces(*METHODS))
    assert len(arms) == 1 + 4 * 6
    assert len({arm.name for arm in arms}) == len(arms)
    assert {arm.family for arm in arms} == {"sgd", *METHODS}
    assert [arm.name for arm in arms if arm.family == "sam"] == [
        "sam", "sam warm-up", "sam searched", "lets-sam", "sam around", "sam replayed",
    ]  # fmt: skip


def test_kinds_choose():
    assert [arm.name for arm in arms_of(spaces("sam"), kinds=("searched", "learned"))] == [
        "sgd", "sam searched", "lets-sam",
    ]  # fmt: skip
    assert kinds_of(["learned", " fixed"]) == ("fixed", "learned")
    with pytest.raises(ConfigError, match="--arms serched: unknown; did you mean searched"):
        kinds_of(["serched"])


def test_a_space_over_several_methods_is_searched_as_one_and_follows_no_single_radius():
    arms = arms_of(spaces("methods"))
    assert [arm.name for arm in arms if arm.policy == "searched"] == ["methods searched"]
    assert not [arm for arm in arms if arm.probes]


def test_a_search_around_a_learned_radius_keeps_its_warm_up_and_is_centred_on_what_came_after():
    arm, path = by_policy("around"), [0.01, 0.05, 0.2, 0.4, 0.4, 0.8, 0.8, 0.4]
    space = derived(arm, probe(path))
    low, high = space.search["optim.rho"][0].log
    centre = math.prod(path[2:]) ** (1 / 6)  # the first quarter is the warm-up
    assert space.start[0]["optim.rho"] == pytest.approx(centre, rel=1e-2)
    assert (low, high) == (pytest.approx(centre / 3, rel=2e-2), pytest.approx(centre * 3, rel=2e-2))
    assert resolve(space.fix, space.example()).optim.warmup == 0.25


def test_a_replayed_radius_is_the_learned_one_open_loop():
    arm, path = by_policy("replayed"), [0.1, 0.3, 0.4, 0.8, 0.6]
    space = derived(arm, probe(path))
    config = resolve(space.fix, space.example())
    replayed = radius_shape(config.optim, total_steps=100)
    for (s, rho), expected in zip(learned_radius(probe(path)), path, strict=True):
        assert (rho, replayed(s)) == (expected, pytest.approx(expected, rel=1e-2))
    assert replayed(0.0) == 0.0  # from the warm-up
    assert (config.optim.warmup, config.method, config.optim.radius) == (0.0, "sam", "scheduled")
    twice = resolve(space.fix, {"optim.rho": 1.6})
    assert radius_shape(twice.optim, 100)(0.7) == pytest.approx(2 * replayed(0.7), rel=1e-6)


def test_other_parameters_stay_searched_and_survive_the_ledger():
    arm = by_policy("replayed", "bisam-tanh")
    assert probe_of(arm) == "probe-lets-bisam-tanh"
    space = derived(arm, probe([0.2, 0.3, 0.4], method="lets-bisam-tanh"))
    assert set(space.searched) == {"optim.rho", "optim.mu", "optim.alpha"}
    assert space.start[0]["optim.mu"] == 10
    assert Space.model_validate(space.model_dump(mode="json", exclude_none=True)) == space


def test_the_budget_is_told_before_anything_runs():
    plan = Plan.of(["sam"], {"train.epochs": 16}, {}, 5, None, None, {"trials": 16})
    found = plan.forecast()
    assert found.arms == 7
    assert 5 < found.budget / found.unit < 17  # of 16 trials, of which most are stopped, and one run
    assert "7 arms on 5 draws" in found.told()
    more = Plan.of(["sam"], {"train.epochs": 16}, {}, 10, None, None, {"trials": 16}).forecast()
    assert more.total > 1.5 * found.total


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"spaces": ["smm"]}, "smm: no such search space"),
        ({"seeds": 0}, "--seeds 0: must be at least 1"),
        ({"also": ["samm"]}, "--also samm: unknown method; did you mean"),
        ({"kinds": ["fixd"]}, "--arms fixd: unknown; did you mean fixed"),
        ({"overrides": {"optim.rho": 0.1}}, "optim.rho: is searched in space"),
        ({"settings": {"trials": 0}}, "--trials 0: must be at least 1"),
    ],
)
def test_bad_input_is_told_in_a_line(given, told):
    asked = {"spaces": [], "files": {}, "overrides": {}, "seeds": None, "kinds": None, "also": None, "settings": {}}
    with pytest.raises(ConfigError, match=told):
        Plan.of(**{**asked, **given})


def test_every_kind_has_a_name_on_the_command_line():
    assert set(KINDS) == {"fixed", "warm-up", "searched", "learned", "around", "replayed"}


def test_a_study_with_replicates_keeps_its_searches(tmp_path):
    """What more trials would find is not what its replicates were made with."""
    plan = Plan.of(["sam"], {}, {}, 2, None, None, {"trials": 4})
    with Ledger(tmp_path) as ledger:
        ledger.write("study", study="s", kind="compare", **plan.header(""))
    more = Plan.of([], {}, {}, None, None, None, {"trials": 8}, like=read_ledger(tmp_path))
    more.refuse_changes(read_ledger(tmp_path))
    with Ledger(tmp_path) as ledger:
        ledger.write("begin", run="sam-r0-s0", arm="sam", phase="final", replicate=0, restart=0)
    with pytest.raises(ConfigError, match=r"--trials 8: .*nearest: 4"):
        more.refuse_changes(read_ledger(tmp_path))
    with pytest.raises(ConfigError, match="grace"):
        Plan.of([], {}, {}, None, None, None, {"grace": 3}, like=read_ledger(tmp_path)).refuse_changes(
            read_ledger(tmp_path)
        )
    Plan.of([], {}, {}, 9, None, None, {}, like=read_ledger(tmp_path)).refuse_changes(read_ledger(tmp_path))


def space_file(directory, name, fix, search="{optim.rho: {log: [0.02, 2.0]}}"):
    path = directory / f"{name}.yaml"
    path.write_text(f"fix: {fix}\nsearch: {search}\n")
    return str(path)


def planned(spaces, overrides=None, **given):
    return Plan.of(**{"files": {}, "seeds": None, "kinds": None, "also": None, "settings": {}, **given},
                   spaces=spaces, overrides=overrides or {})  # fmt: skip


def test_what_a_space_fixes_beside_method_and_radius_holds_for_every_arm(tmp_path):
    fix = "{method: sam, optim.warmup: 0.1, train.epochs: 12, data.label_noise: 0.2, optim.base: adamw, optim.every: 2}"
    plan = planned([space_file(tmp_path, "mine", fix), "asam"])
    assert {(c.train.epochs, c.data.label_noise, c.optim.base) for c in plan.base.values()} == {(12, 0.2, "adamw")}
    assert {name: c.optim.every for name, c in plan.base.items() if c.optim.every != 2} == {"sgd": 1}
    assert (plan.base["sam"].optim.warmup, plan.base["sam searched"].optim.warmup) == (0.0, 0.1)
    assert plan.header("")["layers"][0]["train"] == {"epochs": 12}


@pytest.mark.parametrize(
    ("fixes", "told"),
    [
        (["{method: sam, train.epochs: 12}", "{method: asam, train.epochs: 9}"],
         "space b: fix: train.epochs=9: holds for every arm, and another space fixes 12"),
        (["{method: sam, optim.geometry: adaptive}"],
         "space a: fix: optim.geometry=adaptive: makes another method"),
    ],
)  # fmt: skip
def test_spaces_that_cannot_be_compared_are_told_in_a_line(tmp_path, fixes, told):
    with pytest.raises(ConfigError, match=told):
        planned([space_file(tmp_path, name, fix) for name, fix in zip("ab", fixes, strict=False)])


def test_an_override_does_not_make_the_same_of_several_arms():
    with pytest.raises(ConfigError, match=r"^method=asam: arm sgd sets it itself; methods are named without method=$"):
        planned(["sam"], {"method": "asam"})
    with pytest.raises(ConfigError, match=r"optim\.warmup=0\.1: arm sam warm-up sets it itself"):
        planned(["sam"], {"optim": {"warmup": 0.1}})
    assert planned(["sam"], {"optim.warmup": 0.1}, kinds=["fixed"]).base["sam"].optim.warmup == 0.1


def test_a_radius_may_be_given_where_none_is_searched():
    plan = planned(["sam"], {"optim.rho": 0.1}, kinds=["fixed", "learned"])
    assert {name: config.optim.rho for name, config in plan.base.items()} == {"sgd": None, "sam": 0.1, "lets-sam": 0.1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"confirm": 3}, "confirm=3: of a search, not of a comparison$"),
        ({"replicates": 3}, r"replicates=3: .*\(fresh draws: seeds\)"),
        ({"objectives": ("accuracy", "cost")}, "objectives="),
        ({"folds": 4}, "folds=4: "),
    ],
)
def test_settings_of_a_search_alone_are_refused(tmp_path, given, told):
    with pytest.raises(ConfigError, match=told):
        planned(["sam"], settings=given)
    with Ledger(tmp_path) as ledger:
        ledger.write("study", study="s", kind="compare", **planned(["sam"]).header(""))
    with pytest.raises(ConfigError, match=told):
        planned([], settings=given, like=read_ledger(tmp_path))


def test_no_seeds_are_not_the_old_number_of_seeds(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.write("study", study="s", kind="compare", **planned(["sam"], seeds=3).header(""))
    assert planned([], like=read_ledger(tmp_path)).seeds == 3
    with pytest.raises(ConfigError, match="--seeds 0: must be at least 1"):
        planned([], seeds=0, like=read_ledger(tmp_path))
