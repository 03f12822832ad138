"""The rooms of the house: who may import what, and that importing is cheap."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bisam_ray

PACKAGE = Path(bisam_ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# who may import the heavy libraries, anywhere in the file
ALLOWED = {
    "ray": {
        "training/cluster.py",
        "training/launch.py",
        "training/trainer.py",
        "study/tuning.py",
        "study/stopping.py",
        "cluster_checks.py",
        "doctor.py",
    },
    "ray.train": {"training/trainer.py"},
    "ray.tune": {"study/tuning.py", "study/stopping.py"},
    "mlflow": {f"study/tracking/{name}.py" for name in ("client", "pending", "export")},
    "optuna": {"study/sampler.py", "study/importance.py"},
}


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Absolute names of everything a file imports (at its top level only, or anywhere)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ("bisam_ray", *path.relative_to(PACKAGE).parent.parts)
    checking = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def within(names: set[str], package: str) -> set[str]:
    return {n for n in names if n == package or n.startswith(package + ".")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_only_where_they_belong(path):
    where = str(path.relative_to(PACKAGE))
    for library, homes in ALLOWED.items():
        if where not in homes:
            assert not within(imports(path), library), f"{where} imports {library}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "optim").glob("*.py")), ids=lambda p: p.name)
def test_optim_needs_torch_alone(path):
    foreign = {
        name
        for name in imports(path)
        if name.split(".")[0] not in {*sys.stdlib_module_names, "torch"} and not name.startswith("bisam_ray.optim")
    }
    assert not foreign


@pytest.mark.parametrize("path", sorted((PACKAGE / "training").glob("*.py")), ids=lambda p: p.name)
def test_training_knows_nothing_of_studies(path):
    assert not within(imports(path), "bisam_ray.study")


def test_config_imports_no_torch():
    assert not within(imports(PACKAGE / "config.py"), "torch")


def test_no_import_cycles():
    names = {".".join(("bisam_ray", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in FILES}
    names = {n.removesuffix(".__init__"): p for n, p in names.items()}
    graph = {n: {i for i in imports(p, top_level=True) if i in names and i != n} for n, p in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name in done:
            return
        for other in graph[name]:
            visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def run(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - began


def test_importing_the_package_and_asking_for_help_imports_nothing_heavy():
    heavy = ("torch", "ray", "mlflow", "optuna", "pandas", "numpy")
    code = f"import sys, bisam_ray, bisam_ray.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"


def test_start_up_time():
    python = min(run("-c", "pass") for _ in range(3))
    assert min(run("-c", "import bisam_ray") for _ in range(3)) - python < 0.3
    # the bar is 0.5 s; a loaded machine is given twice that
    assert min(run("-m", "bisam_ray", "--help") for _ in range(3)) < 1.0
