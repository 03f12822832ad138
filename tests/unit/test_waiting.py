"""Nothing within a step asks the device for a number: on a GPU every such question waits for all that runs there."""

from collections import Counter

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from bisam_ray.config import PRESETS, resolve
from bisam_ray.optim import lets, perturbation
from bisam_ray.training import engine

ASKS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")


class Asked(TorchDispatchMode):
    """Counts the operations whose result, or its shape, Python has to wait for."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        # positions in the stream are whole numbers, which never leave the host
        if name in ASKS and args[0].is_floating_point():
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


def asked_within_steps(*settings):
    """From step 3 to step 8."""
    asked = Asked()

    def after_step(step):
        if step.step == 2:
            asked.__enter__()
        elif step.step == 8:
            asked.__exit__(None, None, None)

    images = {"data.name": "digits32", "data.augment": ["crop", "flip", "cutout"], "train.epochs": 1}
    images |= {"data.batch_size": 32, "data.limit": 450}  # an epoch of nine steps or more
    next(engine.run(resolve(images, *settings), after_step=after_step))
    return asked.counted


LEARNED = [
    {"method": "lets-bisam-tanh", "lets.curvature": "exact", "lets.learn": ["mu", "alpha"], "lets.groups": "tensor"},
    {"method": "lets-sam", "lets.curvature": "finite_difference", "lets.goal": "validation", "optim.warmup": 0.5},
    {"method": "lets-asam", "lets.curvature": "diagonal", "lets.train_batch": "same", "optim.base": "adamw"},
    {"method": "sam", "optim.perturbation_scope": 16, "optim.clip": 1.0, "scale.precision": "bfloat16"},
    {"method": "bisam-log", "optim.every": 2, "optim.between": "descent", "optim.radius": "scheduled",
     "optim.rho_schedule": "cosine"},
]  # fmt: skip


@pytest.mark.parametrize("settings", [*({"method": name} for name in PRESETS), *LEARNED], ids=str)
def test_a_step_asks_the_device_for_nothing(settings, monkeypatch):
    for part in (lets, perturbation):  # on the CPU they do ask
        monkeypatch.setattr(part, "readable", lambda number: False)
    assert asked_within_steps(settings) == Counter()


def test_a_question_would_be_heard():
    assert asked_within_steps({"method": "sam"})["_local_scalar_dense"] > 0
