"""How a search is made: defaults that follow from the run, and mistakes told in one line."""

import pytest

from bisam_ray.config import ConfigError
from bisam_ray.study.settings import Settings


def test_defaults_follow_from_the_run():
    found = Settings().for_epochs(16)
    assert (found.most, found.grace, found.controls, found.rungs(16)) == (16, 4, 2, [4, 12])
    assert Settings(trials=32).for_epochs(16).controls == 4
    assert Settings(trials=4).for_epochs(16).controls == 0
    assert Settings(scheduler="none").for_epochs(16).rungs(16) == []
    assert Settings(hours=2).most > 100_000
    assert Settings(hours=2, trials=9).most == 9
    assert Settings(trials=30).startup(at_once=2) == 10
    assert Settings(trials=30).startup(at_once=64) == 64  # no model before every processor had a trial


def test_a_later_session_takes_what_is_not_given_from_the_earlier():
    recorded = Settings(sampler="qmc", grace=3, trials=5).for_epochs(16).recorded(16)
    again = Settings(**Settings.stored(recorded, {"trials": 9}))
    assert (again.sampler, again.grace, again.trials) == ("qmc", 3, 9)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sampler": "tep"}, "--sampler tep: unknown; did you mean tpe?"),
        ({"scheduler": "ahsa"}, "did you mean asha?"),
        ({"trials": 0}, "--trials 0: must be at least 1"),
        ({"hours": 0.0}, "--hours 0.0: must be more than 0"),
        ({"gradients": float("nan")}, "must be more than 0"),
        ({"reduction": 1.0}, "must be more than 1"),
        ({"objectives": ("acuracy",)}, "did you mean accuracy?"),
        ({"objectives": ("cost",)}, "either accuracy, or accuracy,cost"),
        ({"objectives": ("accuracy", "cost")}, "--scheduler none"),
        ({"objectives": ("accuracy", "cost"), "scheduler": "none", "sampler": "cmaes"}, "one objective only"),
        ({"grace": 16}, "nearest: 15"),
        ({"confirm": -1}, "--confirm -1: must be at least 0"),
    ],
)
def test_mistakes(given, told):
    with pytest.raises(ConfigError) as error:
        Settings(**given).for_epochs(16)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
