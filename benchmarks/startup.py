"""What does the start of a run on several workers cost: a TorchTrainer run with two, from `python` to its first epoch.

    python benchmarks/startup.py             five runs, 2 to 3 minutes on two idle cores
    python benchmarks/startup.py --quick     one run, half a minute; writes nothing

Every Python process of the run writes time stamps of what it imports and begins: a sitecustomize on PYTHONPATH looks at
audit events. The phases come after one another: each is a line, seconds. Linux only (/proc).

The table goes to results/startup.txt; its lines that begin with "> " are remarks, and stay.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results" / "startup.txt"

SITE = """
import os, sys, time


def started():
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
        return time.time() - float(uptime.read().split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


def stamp(what, when=None):
    with open(f"{os.environ['STARTUP_STAMPS']}/{os.getpid()}", "a") as file:
        file.write(f"{when or time.time()} {what}\\n")


def stamped(function):
    def call(*arguments, **named):
        stamp("process group")
        found = function(*arguments, **named)
        stamp("process group ready")
        return found
    return call


def look(event, arguments):
    if event == "import" and arguments[0] in WANTED:
        WANTED.discard(arguments[0])
        stamp(arguments[0])
        if arguments[0].endswith(".controller") and hasattr(c10d := sys.modules.get("torch.distributed"), "ReduceOp"):
            c10d.init_process_group = stamped(c10d.init_process_group)
    elif event == "subprocess.Popen" and "gcs_server" in str(arguments[0]):
        stamp("gcs_server")


WANTED = {"ray", "torch", "ray.train", "bisam_ray.optim.comm", "torch._dynamo"}
WANTED.add("ray.train.v2._internal.execution.controller")
stamp("process", started())
sys.addaudithook(look)


def digits():
    stamp("data")
    from bisam_ray.training import data
    return data.digits()
"""


CHILD = """
import sys
from pathlib import Path
from sitecustomize import stamp
from bisam_ray.config import resolve
from bisam_ray.training.cluster import connect
from bisam_ray.training.launch import Job
from bisam_ray.training.trainer import distributed

stamp("connect")
connect()
stamp("connected")
layer = {"method": "bisam-tanh", "model.name": "mlp", "data.name": "sitecustomize:digits", "train.epochs": 2}
for epoch in distributed(Job("start", resolve(layer, {"scale.workers": 2}), Path(sys.argv[1], "checkpoint.pt"))):
    stamp(f"epoch {epoch.epoch}")
stamp("end")
"""

PHASES = (
    "python, importing bisam_ray",
    "import ray",
    "ray.init",
    "manager: process, import of ray, actor",
    "manager: import of ray.train, torch",
    "controller: process, import of ray, ray.train",
    "controller: import of torch; placement group; processes of the workers, import of ray",
    "worker: import of ray.train",
    "worker: import of torch and ray.train.torch",
    "process group",
    "to the training loop",
    "first epoch: 15 steps, import of what they need",
)
WHOLE, SECOND = "from python to the end of the first epoch", "for comparison, the second epoch: 15 steps"


def stamps() -> tuple[list[float], str]:
    """Seconds of each of `PHASES`, of `WHOLE` and of `SECOND`, of one run; and how many processes imported what."""
    with tempfile.TemporaryDirectory() as folder:
        site, log = Path(folder, "site"), Path(folder, "log")
        site.mkdir()
        log.mkdir()
        (site / "sitecustomize.py").write_text(SITE, encoding="utf-8")
        paths = filter(None, [str(site), os.environ.get("PYTHONPATH")])
        environment = {**os.environ, "STARTUP_STAMPS": str(log), "PYTHONPATH": os.pathsep.join(paths)}
        began = time.time()
        subprocess.run([sys.executable, "-c", CHILD, folder], env=environment, check=True, timeout=600)
        return phases(began, [path.read_text(encoding="utf-8") for path in log.iterdir()])


def phases(began: float, logs: list[str]) -> tuple[list[float], str]:
    """What `stamps` gives, from the start of the driver and the stamps of each process."""
    seen: list[dict[str, float]] = []
    for log in logs:
        lines = [line.split(" ", 1) for line in log.splitlines()]
        seen.append({what: float(when) for when, what in reversed(lines)})  # the first of equal ones stays
    driver = next(s for s in seen if "connected" in s)
    worker = max((s for s in seen if "data" in s), key=lambda s: s["process group"])  # the others wait for it
    others = [s for s in seen if "torch" in s and "data" not in s and s is not driver]
    manager, controller = sorted(others, key=lambda s: s["torch"])[:2]
    marks = [
        began,
        *(driver[what] for what in ("connect", "gcs_server", "connected")),
        manager["ray.train"],
        *(controller[what] for what in ("process", "torch")),
        *(worker[what] for what in ("ray.train", "torch", "process group", "process group ready", "data")),
        driver["epoch 1"],
    ]
    took = [*(b - a for a, b in pairwise(marks)), driver["epoch 1"] - began, driver["epoch 2"] - driver["epoch 1"]]
    return took, ", ".join(f"{what} {sum(what in s for s in seen)}" for what in ("ray", "ray.train", "torch"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run; nothing is written")
    options = parser.parse_args()
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    say(
        f"{datetime.date.today()}  {os.cpu_count()} CPUs {platform.machine()}, load before {os.getloadavg()[0]:.1f}  "
        f"torch {torch.__version__}  Python {platform.python_version()}"
    )
    runs, counts = zip(*(stamps() for _ in range(1 if options.quick else 5)), strict=True)
    say(f"bisam_ray.training.trainer.distributed, 2 workers, digits, mlp: seconds, median of {len(runs)} runs [all]")
    for name, values in zip([*PHASES, WHOLE, SECOND], zip(*runs, strict=True), strict=True):
        each = ", ".join(f"{v:.1f}" for v in values)
        say(f"  {name:86} {statistics.median(values):5.1f}  [{each}]")
    say(f"  Python processes that import it (the driver is one): {counts[0]}")
    if not options.quick:
        text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
        remarks = [line for line in text.splitlines() if line.startswith("> ")]
        RESULTS.write_text("\n".join([*lines, *remarks]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
