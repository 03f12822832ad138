"""What the doctor asks of every node: versions, the storage, an all-reduce, equal bits.

What runs on other nodes is sent to them by value, so that a node on which this package is missing, or another version,
can answer too. It takes no processor, so that a busy cluster answers as well.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from .config import ConfigError
from .training import objects

ANSWER_S = 30.0  # for the nodes to answer
MEET_S = 20  # for processes to find each other
PATIENCE_S = 5.0  # with an object store that does not answer


@dataclass(frozen=True)
class Result:
    """What a check found, and what to do; `ok` is None when there was nothing to check."""

    ok: bool | None
    found: str
    advice: str = ""

    def line(self, name: str) -> str:
        mark = "–" if self.ok is None else "✓" if self.ok else "✗"
        return f"{mark} {name}: {self.found}" + (f"; {self.advice}" if self.advice else "")


def one_line(error: Exception) -> str:
    """An error's first line; of one raised on another node, the error there and not Ray's account of it."""
    from .study.tracking.client import told

    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, Exception) else error
    return str(error) if isinstance(error, ConfigError) else told(error)


def cluster(storage: str) -> Result:
    """What RAY_ADDRESS names, or a local cluster, and whether one worker fits."""
    from .terminal import readable
    from .training.cluster import connect

    address = os.environ.get("RAY_ADDRESS", "")
    connect()
    import ray

    there = ray.cluster_resources()
    memory, store = (readable(there.get(name, 0)) for name in ("memory", "object_store_memory"))
    found = f"{address or 'local'}, nodes {len(nodes())}, CPUs {there.get('CPU', 0):g}"
    found += f", GPUs {there.get('GPU', 0):g}, memory {memory}, object store {store}"
    if there.get("CPU", 0) < 1:
        return Result(False, found, "no worker fits: add a node (ray start --address=HEAD:6379), or let one scale up")
    if not there.get("GPU") and (gpus := gpus_here()):
        advice = f"torch sees {gpus} here: start Ray with --num-gpus {gpus}, and look at CUDA_VISIBLE_DEVICES"
        return Result(False, found, advice)
    return Result(True, found)


def gpus_here() -> int:
    """How many torch sees on this machine; torch takes seconds to import, so it is asked where there is a driver."""
    if not Path("/dev/nvidiactl").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def nodes(having: str = "") -> dict[str, str]:
    """The nodes that are alive, and have some of a resource: their ids, and how to call them."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"] and (not having or node["Resources"].get(having))]
    return {node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})" for node in alive}


def this_node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def ask(function: Callable[..., Any], calls: Sequence[tuple[str, tuple]], wait_s: float, gpus: int = 0) -> list[Any]:
    """What calls of a function, each on a node of its own choice, return: values, or the exceptions that they raised.

    They are tasks, not actors, so that one process of a node imports torch for all checks.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(function)
    at = [NodeAffinitySchedulingStrategy(node, soft=False) for node, _ in calls]
    asked = [task.options(scheduling_strategy=a).remote(*call) for a, (_, call) in zip(at, calls, strict=True)]
    deadline, found = time.monotonic() + wait_s, list[Any]()
    for answer in asked:
        try:
            found.append(ray.get(answer, timeout=max(0.1, deadline - time.monotonic())))
        except Exception as error:
            found.append(error)
            if isinstance(error, ray.exceptions.GetTimeoutError):
                ray.cancel(answer, force=True)
    return found


def on_every_node(function: Callable[..., Any], *arguments: Any, wait_s: float = ANSWER_S) -> dict[str, Any]:
    """What a function returns, or raises, on each node, by the node's id."""
    there = list(nodes())
    return dict(zip(there, ask(function, [(node, arguments) for node in there], wait_s), strict=True))


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Of what must be the same everywhere, without importing it; `code` is a hash of this package's source files."""
    found = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "ray", "bisam-ray")}}
    package = importlib.util.find_spec("bisam_ray")
    if package is None or not package.submodule_search_locations:
        return {**found, "code": None}
    root, code = Path(package.submodule_search_locations[0]), hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return {**found, "code": code.hexdigest()[:8]}


def same_versions(storage: str) -> Result:
    """Whether every node runs what the driver runs."""
    here, named, wrong = versions(), nodes(), []
    for node, there in on_every_node(versions).items():
        if isinstance(there, Exception):
            wrong.append(f"{named[node]} {one_line(there)}")
        elif differ := [f"{name} {there[name]}, here {here[name]}" for name in here if there[name] != here[name]]:
            wrong.append(f"{named[node]} has {', '.join(differ)}")
    if wrong:
        return Result(False, " · ".join(wrong), "install the same there, or start the job with a runtime environment")
    return Result(True, f"nodes {len(named)}, " + ", ".join(f"{name} {value}" for name, value in here.items()))


def shared_storage(storage: str) -> Result:
    """Whether the storage is one and the same for every node: a directory, or below a URL."""
    return shared_objects(storage.rstrip("/")) if objects.is_url(storage) else shared_directory(storage)


def shared_directory(storage: str) -> Result:
    from .study import storage as stores
    from .terminal import readable

    directory, word = Path(stores.root(storage)), secrets.token_hex(8)
    ours = directory / f".doctor-{word}"
    try:
        ours.write_text(word)
        answers = on_every_node(exchange_files, str(directory), word)
        wrote = {node for node in answers if Path(f"{ours}-{node}").exists()}
    finally:
        for path in directory.glob(f".doctor-{word}*"):
            path.unlink(missing_ok=True)
    if wrong := not_shared(answers, wrote):
        return Result(False, f"{directory}: {wrong}", "give a shared directory, or s3://bucket/prefix: --storage")
    free = readable(shutil.disk_usage(directory).free)
    return Result(True, f"{directory}, read and written by nodes {len(answers)}, {free} free")


def exchange_files(directory: str, word: str, node: str | None = None) -> str | None:
    """On a node: write a file for the driver, read the driver's. None, or what is wrong; then no file is left."""
    driver = Path(directory, f".doctor-{word}")
    ours = Path(f"{driver}-{node or this_node()}")
    if not driver.parent.is_dir():
        return "does not have it"
    ours.write_text(word)
    if driver.exists() and driver.read_text() == word:
        return None
    ours.unlink()
    return "has another directory there"


def shared_objects(url: str) -> Result:
    word = secrets.token_hex(8)
    place, began = f"{url}/.doctor-{word}", time.monotonic()
    advice = "check the bucket, the rights to list, read, write and delete, and AWS_ENDPOINT_URL, on every node"
    try:
        within(ANSWER_S / 2, lambda: objects.write(f"{place}/driver", word.encode(), PATIENCE_S))
        answers = on_every_node(exchange_objects, place, word)
        wrote = set(objects.sizes(place))
        files, path = objects.located(place)
        files.delete_dir(path)  # removing one by one leaves an empty object in the directory's place
    except TimeoutError:
        return Result(False, f"{url} did not answer in {ANSWER_S / 2:.0f} s", advice)
    except Exception as error:
        return Result(False, f"{url}: {one_line(error)}", advice)
    if wrong := not_shared(answers, wrote):
        return Result(False, f"{url}: {wrong}", advice)
    took = time.monotonic() - began
    return Result(True, f"{url}, objects written, listed, read and removed, by nodes {len(answers)}, in {took:.1f} s")


def within(seconds: float, action: Callable[[], object]) -> None:
    """`action()`; TimeoutError when it takes longer: the S3 client tries a service that is away for minutes."""
    done: Future[None] = Future()

    def act() -> None:
        try:
            action()
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=act, daemon=True).start()
    done.result(seconds)


def exchange_objects(place: str, word: str, node: str | None = None) -> str | None:
    """On a node: read the driver's object, write one for the driver. None, or what is wrong."""
    from bisam_ray.training import objects

    if objects.read(f"{place}/driver", PATIENCE_S) != word.encode():
        return "has another bucket there"
    objects.write(f"{place}/{node or this_node()}", word.encode(), PATIENCE_S)
    return None


def not_shared(answers: Mapping[str, Any], wrote: set[str]) -> str:
    """What is wrong on which nodes."""
    wrong, named = [], nodes()
    for node, problem in answers.items():
        if isinstance(problem, Exception):
            problem = one_line(problem)
        elif problem is None and node not in wrote:
            problem = "wrote what is not seen here"
        if problem:
            wrong.append(f"{named.get(node, node)} {problem}")
    return " · ".join(wrong)


def distributed(storage: str) -> Result:
    """An all-reduce of one process on every node that has processors, by NCCL on those with GPUs; at least two."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0) >= 2)
    backend, members = ("nccl", nodes("GPU")) if gpus else ("gloo", nodes("CPU"))
    ranks = list(members) if len(members) > 1 else [*members, *members]
    if not ranks:
        return Result(None, "no node has a processor for workers")
    (address,) = ask(meeting_place, [(ranks[0], ())], ANSWER_S)
    if isinstance(address, Exception):
        return Result(False, f"{members[ranks[0]]} {one_line(address)}", "look at Ray's logs on that node")
    calls = [(node, (address, rank, len(ranks), backend)) for rank, node in enumerate(ranks)]
    totals = ask(all_reduce, calls, ANSWER_S + MEET_S, gpus)
    told = f"{backend}, {len(ranks)} processes on nodes {len(members)}"
    for node, total in zip(ranks, totals, strict=True):
        if isinstance(total, ray.exceptions.GetTimeoutError):
            advice = "wait until the cluster has processors free, and open all ports between its nodes"
            return Result(False, f"{told}: {members[node]} did not answer in time", advice)
        if isinstance(total, Exception):
            variable = "NCCL_SOCKET_IFNAME" if gpus else "GLOO_SOCKET_IFNAME"
            advice = f"open all ports between the nodes; set {variable} there to their network's interface"
            return Result(False, f"{told} at {address}: {members[node]} {one_line(total)}", advice)
    right = sum(range(1, len(ranks) + 1))
    if any(total != right for total in totals):
        return Result(False, f"{told}: the sum {right} is {totals}", "do not trust this cluster's network")
    return Result(True, f"{told} agree on a sum, at {address}")


def meeting_place() -> str:
    """Where the others find this node."""
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def all_reduce(address: str, rank: int, size: int, backend: str) -> float:
    """The sum over all ranks of rank + 1."""
    import torch
    import torch.distributed as dist

    patience = timedelta(seconds=MEET_S)
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=size, timeout=patience)
    try:
        number = torch.tensor(rank + 1.0, device="cuda" if backend == "nccl" else "cpu")
        dist.all_reduce(number)
        return number.item()
    finally:
        dist.destroy_process_group()


def points() -> tuple[Any, Any]:
    """Data of the same form as digits, without the seconds that importing scikit-learn takes."""
    import torch

    x = torch.randn(1797, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0].sum((1, 2)) > 0).long()


def two_steps() -> tuple[int, dict[str, float]]:
    """On a node: this process, and the metrics of a run of two steps without its time."""
    from bisam_ray.config import resolve
    from bisam_ray.training import engine

    config = resolve(
        {"data.name": "bisam_ray.cluster_checks:points", "data.batch_size": 500, "model.name": "mlp", "train.epochs": 1}
    )
    *_, record = engine.run(config)
    return os.getpid(), {name: value for name, value in record.metrics.items() if name != "cost/seconds"}


def determinism(storage: str) -> Result:
    """Equal runs have equal bits, in two processes of every node.

    Nodes may have different processors, on which the last bits differ by right: that is told, and no fault.
    """
    named, found, processes = nodes(), dict[str, dict[str, float]](), set()
    calls: list[tuple[str, tuple]] = [(node, ()) for node in named for _ in range(2)]
    for (node, _), answer in zip(calls, ask(two_steps, calls, 2 * ANSWER_S), strict=True):
        if isinstance(answer, Exception):
            return Result(False, f"{named[node]} {one_line(answer)}", "compare its versions with those here")
        processes.add((node, answer[0]))
        one, two = found.setdefault(node, answer[1]), answer[1]
        if differ := [f"{name} {one[name]!r}, then {two[name]!r}" for name in one if one[name] != two[name]]:
            advice = "look for OMP_, MKL_ and TORCH_ variables, or for another torch"
            return Result(False, f"{named[node]}: {' · '.join(differ)}", advice)
    kinds, first = {tuple(metrics.values()) for metrics in found.values()}, next(iter(found.values()))
    told = f"{len(first)} metrics of two equal runs of two steps are bitwise equal on each of nodes {len(named)}"
    told += f" (processes {len(processes)})"
    if len(kinds) > 1:
        told += (
            f"; between nodes there are {len(kinds)} variants, as with different processors: resume on the same kind"
        )
    return Result(True, told)
