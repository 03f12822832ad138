"""Flatness of a minimum: the eigenvalue against explicit Hessians, the landscape against its centre and its scale."""

import json
import math

import pytest
import torch
from torch import nn

from bisam_ray.config import ConfigError, resolve
from bisam_ray.training import checkpoint, data, engine, flatness, launch
from bisam_ray.training.task import Classification


def examples(n=40, width=4, classes=3):
    generator = torch.Generator().manual_seed(1)
    return data.Split(torch.randn(n, width, generator=generator), torch.randint(0, classes, (n,), generator=generator))


def network(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*(layers or (nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)))).eval()


def explicit_hessian(model, split):
    names, params = zip(*model.named_parameters(), strict=True)

    def loss(*values):
        logits = torch.func.functional_call(model, dict(zip(names, values, strict=True)), split.x)
        return nn.functional.cross_entropy(logits, split.y)

    rows = torch.autograd.functional.hessian(loss, params)
    return torch.cat(
        [torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for row, p in zip(rows, params, strict=True)]
    )


def moved_far(model, factor=3.0):
    """Away from the initialisation, where all eigenvalues are small."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    return model


def test_the_eigenvalue_is_that_of_the_explicit_hessian():
    model, split = moved_far(network()).double(), examples()
    split = data.Split(split.x.double(), split.y)
    exact = torch.linalg.eigvalsh(explicit_hessian(model, split))[-1].item()
    found = flatness.hessian_eigenvalue(model, split)
    assert found.value == pytest.approx(exact, rel=0.005)
    assert found.residual <= 0.01
    assert found.products <= flatness.PRODUCTS


def spectrum(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues."""
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [-100.0, *torch.linspace(-1, 1, 60).tolist(), 3.0],  # the algebraically largest, not that of largest modulus
        [-100.0, -2.0, -1.0],
        [5.0] * 4,  # the Krylov space ends after one product
        [0.0] * 4,
        [7.0],
    ],
)
def test_the_algebraically_largest_eigenvalue_of_a_known_spectrum(eigenvalues):
    matrix = spectrum(eigenvalues)
    start = torch.ones(len(eigenvalues), dtype=torch.float64)
    found = flatness.lanczos(lambda v: matrix @ v, start)
    assert found.value == pytest.approx(max(eigenvalues), rel=0.005, abs=1e-12)
    assert found.products <= min(flatness.PRODUCTS, len(eigenvalues))


@pytest.mark.parametrize("most", [1, 2, 4, 8])
def test_the_residual_is_that_of_the_vector_and_bounds_the_error(most):
    matrix = spectrum(torch.linspace(-4, 5, 50).tolist())
    start = torch.ones(50, dtype=torch.float64)
    found = flatness.lanczos(lambda v: matrix @ v, start, most=most)
    krylov = torch.stack([torch.linalg.matrix_power(matrix, k) @ start for k in range(most)], 1)
    q, _ = torch.linalg.qr(krylov)
    values, vectors = torch.linalg.eigh(q.T @ matrix @ q)
    vector = q @ vectors[:, -1]
    assert found.products == most
    assert found.value == pytest.approx(values[-1].item())
    assert found.residual == pytest.approx(((matrix @ vector - values[-1] * vector).norm() / abs(values[-1])).item())


def test_the_batch_size_does_not_matter_and_a_seed_repeats():
    model, split = moved_far(network()), examples()
    whole = flatness.hessian_eigenvalue(model, split)
    for batch_size in (1, 7, 39):  # 40 examples: the last batch is a smaller one
        assert flatness.hessian_eigenvalue(model, split, batch_size).value == pytest.approx(whole.value, rel=1e-4)
    assert flatness.hessian_eigenvalue(model, split) == whole
    assert flatness.hessian_eigenvalue(model, split, seed=1) != whole
    one, again, other = (flatness.loss_landscape(model, split, grid=3, seed=s) for s in (0, 0, 1))
    assert one == again
    assert one.loss != other.loss
    small = flatness.loss_landscape(model, split, grid=3, batch_size=7)
    assert small.loss == [pytest.approx(row, rel=1e-5) for row in one.loss]
    assert small.error == one.error


def test_a_subset_is_drawn_without_replacement_and_repeats():
    split = data.Split(torch.arange(50.0).unsqueeze(1), torch.arange(50))
    drawn = flatness.subset(split, 20)
    assert len(set(drawn.y.tolist())) == 20
    assert torch.equal(drawn.x.flatten().long(), drawn.y)
    assert drawn.y.tolist() == flatness.subset(split, 20).y.tolist() != flatness.subset(split, 20, seed=1).y.tolist()
    assert flatness.subset(split, 50) is split


def test_filters_of_a_direction_have_the_norms_of_the_network():
    model = network(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 7), nn.Linear(7, 2))
    model[4].weight.requires_grad_(False)
    with torch.no_grad():
        model[0].weight[2] = 0  # a dead filter stays where it is
    drawn = flatness.direction(model, torch.Generator().manual_seed(0))
    assert drawn.keys() == {"0.weight", "3.weight"}  # no bias, no norm, nothing frozen
    for name, values in drawn.items():
        own = model.get_parameter(name).detach()
        assert values.flatten(1).norm(dim=1).tolist() == pytest.approx(own.flatten(1).norm(dim=1).tolist(), rel=1e-5)
        assert torch.nn.functional.cosine_similarity(values.flatten(), own.flatten(), 0).abs() < 0.5
    other = flatness.direction(model, torch.Generator().manual_seed(1))
    assert not torch.allclose(drawn["0.weight"], other["0.weight"])


def test_the_centre_is_the_network_itself_which_stays_as_it_was():
    model = network(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    model.train()
    split = examples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = flatness.loss_landscape(model, split, grid=5, span=0.5)
    flatness.hessian_eigenvalue(model, split)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.axis == [-0.5, -0.25, 0, 0.25, 0.5]
    assert [len(row) for row in found.loss + found.error] == [5] * 10
    here = Classification().assess(model, split)
    assert (found.loss[2][2], 1 - found.error[2][2]) == pytest.approx((here.loss, here.accuracy), rel=1e-12)
    corners = [found.loss[i][j] for i in (0, 4) for j in (0, 4)]
    assert len({here.loss, *corners}) == 5  # two directions, and both signs of each


def test_rows_move_along_the_first_direction_columns_along_the_second():
    model, split = network(), examples()
    generator = data.seeded(0, 9)
    drawn = [flatness.direction(model, generator) for _ in range(2)]
    found = flatness.loss_landscape(model, split, grid=3)
    for (i, j), chosen in {(2, 1): drawn[0], (1, 2): drawn[1]}.items():
        moved = {name: p + chosen[name] for name, p in model.named_parameters() if name in chosen}
        logits = torch.func.functional_call(model, moved, split.x)
        assert found.loss[i][j] == pytest.approx(nn.functional.cross_entropy(logits, split.y).item(), rel=1e-5)


def test_weights_are_put_back_when_the_network_fails():
    class Failing(nn.Linear):
        def forward(self, x):
            if not torch.equal(self.weight, before):
                raise RuntimeError("weights moved")
            return super().forward(x)

    model = Failing(4, 3)
    before = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="weights moved"):
        flatness.loss_landscape(model, examples(), grid=3)
    assert torch.equal(model.weight, before)


def test_the_same_function_at_another_scale_has_the_same_landscape_but_not_the_same_eigenvalue():
    model, split = network(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), examples()
    landscape, eigenvalue = flatness.loss_landscape(model, split, grid=5), flatness.hessian_eigenvalue(model, split)
    with torch.no_grad():
        model[0].weight.mul_(10), model[0].bias.mul_(10), model[2].weight.div_(10)
    scaled = flatness.loss_landscape(model, split, grid=5)
    assert scaled.loss == [pytest.approx(row, rel=1e-5) for row in landscape.loss]
    assert flatness.hessian_eigenvalue(model, split).value > 10 * eigenvalue.value


def test_an_unused_parameter_counts_as_flat():
    class Partly(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.unused = nn.Parameter(torch.ones(5))

    torch.manual_seed(0)
    model, split = Partly(), examples()
    exact = torch.linalg.eigvalsh(explicit_hessian(model, split))[-1].item()
    assert flatness.hessian_eigenvalue(model, split).value == pytest.approx(exact, rel=0.005)


def test_weights_that_are_not_finite_are_told_and_end():
    model, split = network(), examples()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    with pytest.raises(engine.Diverged, match="not finite"):
        flatness.hessian_eigenvalue(model, split)
    found = flatness.loss_landscape(model, split, grid=3)
    assert flatness.rounded(found._asdict())["loss"] == [[None] * 3] * 3


def test_a_grid_without_a_centre_is_refused():
    with pytest.raises(ConfigError, match=r"grid=20: must be odd.*\(nearest: 21\)"):
        flatness.loss_landscape(network(), examples(), grid=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = resolve({"model.name": "cnn", "data.label_noise": 0.4, "train.epochs": 3})
    job = launch.Job("short", config, tmp_path_factory.mktemp("runs") / "short.pt")
    list(launch.steps(job))
    return job


def test_a_checkpoint_is_measured_in_plain_numbers(run):
    found = flatness.measure(run.checkpoint, landscape=True)
    assert list(found) == ["eigenvalue", "residual", "landscape", "examples", "split"]
    assert (found["examples"], found["split"]) == (850, "train")
    assert found["eigenvalue"] > 1
    assert found["residual"] <= 0.01
    shown = found["landscape"]
    assert list(shown) == ["axis", "loss", "error", "seed"]
    assert (len(shown["axis"]), shown["axis"][0], shown["axis"][10], shown["axis"][-1]) == (21, -1, 0, 1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(float(f"{v:.5g}") == v for row in shown["loss"] for v in row)
    # on the run's own noisy labels
    config, state = checkpoint.load(run.checkpoint)
    model, _ = engine.trained(config, state)
    here = Classification().assess(model, flatness.subset(data.load(config.data).train, flatness.SHOWN))
    assert shown["loss"][10][10] == pytest.approx(here.loss, rel=1e-4)
    assert shown["error"][10][10] == pytest.approx(1 - here.accuracy, rel=1e-4)
    alone = flatness.measure(run.checkpoint, landscape=False)
    assert alone == {**found, "landscape": None}


def test_nothing_to_measure_needs_no_cluster():
    assert list(launch.measured([], resolve({}).scale, at_once=2)) == []


@pytest.mark.slow
def test_many_are_measured_beside_each_other_and_failures_disturb_nobody(run, tmp_path, monkeypatch):
    import ray

    from bisam_ray.training.cluster import connect

    config, state = checkpoint.load(run.checkpoint)
    checkpoint.save(
        tmp_path / "nan.pt",
        config,
        {**state, "model": {k: v * math.nan if v.is_floating_point() else v for k, v in state["model"].items()}},
    )
    (tmp_path / "fatal.py").write_text("import os\n\n\ndef dying(shape, classes):\n    os._exit(1)\n")
    dying = config.model_copy(update={"model": config.model.model_copy(update={"name": "fatal:dying"})})
    checkpoint.save(tmp_path / "dying.pt", dying, state)
    (tmp_path / "cut.pt").write_bytes(run.checkpoint.read_bytes()[:1000])
    places = [
        ("missing", tmp_path / "none.pt", True),
        ("good", run.checkpoint, False),
        ("nan", tmp_path / "nan.pt", False),
        ("cut", tmp_path / "cut.pt", False),
        ("dying", tmp_path / "dying.pt", False),
        ("drawn", run.checkpoint, True),
    ]
    monkeypatch.chdir(tmp_path)  # where the workers look for a network of the user's own
    connect()
    try:
        found = dict(launch.measured(places, config.scale, at_once=2))
    finally:
        ray.shutdown()
    assert found["good"] == flatness.measure(run.checkpoint, False)
    assert found["drawn"] == flatness.measure(run.checkpoint, True)
    assert {name: found[name].outcome for name in ("missing", "nan", "cut", "dying")} == {
        "missing": "failed",
        "nan": "diverged",
        "cut": "failed",
        "dying": "killed",
    }
    assert "no such checkpoint" in found["missing"].error
