"""Is a cluster fit to train on? Every node is asked, before money is spent on what it would spoil.

A worker group of unequal versions fails late and oddly, storage that is not shared loses checkpoints, clocks that
differ make nonsense of the times in a log, and a slow link between workers eats the speedup they should bring.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import ray
import ray.train
from pyarrow import ArrowException
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytrain_speedup.config import ScalingSettings
from raytrain_speedup.scaling.group import fit_group, trainer_of
from raytrain_speedup.scaling.storage import PathOrUri, inside, open_storage, read_text, write_text
from raytrain_speedup.settings import UserError

PACKAGES = ("ray", "torch", "torchvision", "raytrain_speedup")
TOKEN = "token"
"""The file that the driver writes and every node reads."""

PROBE_BYTES = 16 << 20
ANSWER_SECONDS = 120.0
"""To start a process on a node and import torch there."""
CLOCK_SECONDS = 1.0
LEAST_FREE_GB = 10.0
ALL_REDUCE_BYTES = 64 << 20
ALL_REDUCES = 5


@dataclass(frozen=True)
class NodeCheck:
    """What a node says of itself.

    Attributes:
        name: its host name and address.
        gpus: their names.
        versions: of Python and of the packages that workers share.
        clock: seconds that its clock is ahead of the driver's.
        clock_doubt: half of the time that asking took.
        free_gb: of the disk that holds temporary files.
        write, read: MB/s of the storage; None where it was not tried or cannot be used.
        faults: in words.
    """

    name: str
    cpus: float
    gpus: tuple[str, ...] = ()
    versions: dict[str, str] | None = None
    clock: float = 0.0
    clock_doubt: float = 0.0
    free_gb: float = 0.0
    write: float | None = None
    read: float | None = None
    faults: tuple[str, ...] = ()


def check_nodes(storage: PathOrUri | None = None, *, seconds: float = ANSWER_SECONDS) -> list[NodeCheck]:
    """Ask every node of the cluster that this process is connected to; the driver's node comes first.

    Args:
        storage: the folder or URI that runs will have as `scaling.storage`; written to and read from every node.
        seconds: a node that has not answered by then has a fault.

    Raises:
        UserError: if this process itself cannot write to the storage.
    """
    token = uuid.uuid4().hex
    probe = None if storage is None else inside(storage, f".speedup-check-{token}")
    own = ray.get_runtime_context().get_node_id()
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != own)
    try:
        if probe is not None:
            _write_token(probe, token)
        asked = [_on(node, _look).remote(probe, token) for node in nodes]
        ray.wait(asked, num_returns=len(asked), timeout=seconds)  # all at once, and then one by one
        checks = [_answer(node, answer) for node, answer in zip(nodes, asked, strict=True)]
    finally:
        if probe is not None:
            _remove(probe)
    return _compared(checks)


def all_reduce(scaling: ScalingSettings) -> float:
    """Bus bandwidth of an all-reduce of 64 MiB among workers, in GB/s, by the slowest rank's median of five.

    Raises:
        UserError: if the group cannot be started.
    """

    def reduce_here() -> float:
        import torch
        import torch.distributed as dist

        device = ray.train.torch.get_device()
        x = torch.ones(ALL_REDUCE_BYTES // 4, device=device)
        taken = []
        for _ in range(ALL_REDUCES + 1):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(x)
            float(x[0])  # waits for the device
            taken.append(time.perf_counter() - began)
        slowest = torch.tensor(median(taken[1:]), device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        return float(slowest)

    workers = scaling.most_workers
    if workers < 2:
        raise UserError(f"cluster check: --workers {workers}: nothing to reduce among; expected 2 at least")
    group = trainer_of(reduce_here, scaling, name="all-reduce", placement="SPREAD")
    return bus_bandwidth(workers, ALL_REDUCE_BYTES, fit_group(group).return_value)


def bus_bandwidth(workers: int, nbytes: int, seconds: float) -> float:
    """GB/s of every link, as nccl-tests count it: in a ring (n - 1) / n of the bytes pass each of them twice."""
    return 2 * (workers - 1) / workers * nbytes / seconds / 1e9


def _on(node: dict[str, Any], function: Any) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(function)


def _answer(node: dict[str, Any], asked: Any) -> NodeCheck:
    name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    cpus = float(node["Resources"].get("CPU", 0))
    try:
        said = ray.get(asked, timeout=0.1)
        rounds = [_ask_the_time(node) for _ in range(3)]
    except GetTimeoutError:
        return NodeCheck(name, cpus, faults=("it does not answer",))
    except RayError as error:
        return NodeCheck(name, cpus, faults=(str(error).strip().splitlines()[-1],))
    clock, doubt = min(rounds, key=lambda one: one[1])
    return NodeCheck(name, cpus, clock=clock, clock_doubt=doubt, **said)


def _ask_the_time(node: dict[str, Any]) -> tuple[float, float]:
    """How far its clock is ahead, and half of what asking took, in seconds."""
    began = time.time()
    there = ray.get(_on(node, _now).remote(), timeout=ANSWER_SECONDS)
    ended = time.time()
    return there - (began + ended) / 2, (ended - began) / 2


def _now() -> float:
    """On the node: Ray takes no built-in function."""
    return time.time()


def _look(probe: PathOrUri | None, token: str) -> dict[str, Any]:
    """On the node: what it has."""
    import torch

    known = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            known[package] = "missing"
    said: dict[str, Any] = {
        "versions": known,
        "gpus": tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        "free_gb": shutil.disk_usage(tempfile.gettempdir()).free / 1e9,
    }
    if probe is not None:
        try:
            said["write"], said["read"] = _try_storage(probe, token)
        except (OSError, ArrowException) as error:
            said["faults"] = (f"storage: {(str(error) or type(error).__name__).splitlines()[0]}",)
    return said


def _try_storage(probe: PathOrUri, token: str) -> tuple[float, float]:
    """MB/s of writing and reading a file of its own.

    Raises:
        OSError: if what the driver wrote is not seen here, or the storage cannot be used.
    """
    try:
        found = read_text(probe, TOKEN)
    except FileNotFoundError:
        found = ""
    if found != token:
        raise OSError("what another node wrote is not there: it is not shared")
    files, folder = open_storage(probe)
    content, path = os.urandom(PROBE_BYTES), f"{folder}/{uuid.uuid4().hex}"
    began = time.perf_counter()
    with files.open_output_stream(path) as file:
        file.write(content)
    written = time.perf_counter()
    with files.open_input_stream(path) as file:
        same = file.read() == content
    ended = time.perf_counter()
    files.delete_file(path)
    if not same:
        raise OSError("a file is read otherwise than it was written")
    return PROBE_BYTES / 1e6 / (written - began), PROBE_BYTES / 1e6 / (ended - written)


def _write_token(probe: PathOrUri, token: str) -> None:
    try:
        write_text(probe, TOKEN, token)
    except (OSError, ArrowException) as error:
        raise UserError(
            f"cluster check: --storage: {probe}: cannot be written ({str(error).splitlines()[0]}); expected a "
            "folder or a URI such as s3://bucket/runs"
        ) from None


def _remove(probe: PathOrUri) -> None:
    try:
        files, folder = open_storage(probe)
        files.delete_dir(folder)
    except (OSError, ArrowException):  # it says nothing of the cluster, and may be gone
        return


def _compared(checks: Sequence[NodeCheck]) -> list[NodeCheck]:
    """With the faults that show beside each other: the driver's node is what others should be like."""
    kinds = Counter(check.gpus for check in checks if check.gpus)
    usual = kinds.most_common(1)[0][0] if kinds else ()
    return [replace(check, faults=(*check.faults, *_faults(check, checks[0], usual))) for check in checks]


def _faults(check: NodeCheck, driver: NodeCheck, usual_gpus: tuple[str, ...]) -> list[str]:
    faults = []
    if check.versions is not None and driver.versions is not None:
        faults += [
            f"{name} {check.versions.get(name)}, and {expected} on the driver's node"
            for name, expected in driver.versions.items()
            if check.versions.get(name) != expected
        ]
    if abs(check.clock) - check.clock_doubt > CLOCK_SECONDS:
        faults.append(f"its clock is {check.clock:+.1f} s off")
    if check.versions is not None and check.free_gb < LEAST_FREE_GB:
        faults.append(f"{check.free_gb:.1f} GB are free; expected {LEAST_FREE_GB:g}")
    if check.gpus and check.gpus != usual_gpus:
        faults.append(
            f"{len(check.gpus)} x {check.gpus[0]}, and {len(usual_gpus)} x {usual_gpus[0]} on others"
        )
    return faults
