"""Which Ray cluster a command talks to, and what is asked of it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from raytrain_speedup.config import ScalingSettings
from raytrain_speedup.scaling.storage import exists
from raytrain_speedup.settings import UserError

DRIVERS = 64
"""Worker groups that a local cluster may steer at the same time."""

KNOCK_SECONDS = 10
"""For a head that is just starting."""

ATTEMPTS = 3
"""Times a worker group is started before a run without resources is given up."""


WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Ray's variable: whether Ray Train looks for nodes that are drained. Its processes inherit it."""


def drains_watched() -> bool:
    """Whether a run here may hear that its node is taken away: not where the cluster is this machine alone."""
    return os.environ.get(WATCHER, "1").lower() not in ("0", "false")


def on_cluster() -> bool:
    """True in a `ray job` and wherever else RAY_ADDRESS names a running cluster."""
    return bool(os.environ.get("RAY_ADDRESS"))


def connect(scaling: ScalingSettings) -> None:
    """Connect to the cluster this process belongs to, or start one on this machine.

    Inside `ray job submit` (and wherever RAY_ADDRESS is set) that is the running cluster. Otherwise a local
    one is started with the dashboard on loopback only: it is never found by guessing, so that two users of
    a machine do not meet in one cluster.

    Raises:
        UserError: if no cluster answers, or the workers would never get their resources, or their storage.
    """
    set_ray_environment(scaling)
    if scaling.storage is not None:
        exists(scaling.storage)  # a URI that leads nowhere is reported before anything starts
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if ray.is_initialized():
        pass
    elif on_cluster():
        _join(**quiet)
    else:
        start_local(**quiet)
    if not on_cluster():  # an autoscaler may yet bring what a cluster lacks
        require(scaling, ray.cluster_resources())


def _join(**options: Any) -> None:
    """Connect to the cluster that RAY_ADDRESS names."""
    address = os.environ["RAY_ADDRESS"]
    try:
        knock(address, KNOCK_SECONDS)
        ray.init(**options)
    except (ConnectionError, ValueError) as error:
        # An error of its own, or the words of another, by what Ray asked first.
        if any(isinstance(e, AuthenticationError) or "AuthToken" in str(e) for e in _causes(error)):
            why = (
                "the cluster there refuses the token of this command; expected its own in ~/.ray/auth_token, "
                "and RAY_AUTH_MODE=token"
            )
        else:
            why = (
                "no Ray cluster answers there; expected HOST:PORT of a running one, or no RAY_ADDRESS to use this "
                "machine alone"
            )
        raise UserError(f"RAY_ADDRESS={address}: {why}") from error


def knock(address: str, seconds: float) -> None:
    """Fail soon where nobody listens: Ray itself tries for three minutes.

    Args:
        address: of a cluster; one that is not HOST:PORT, such as "auto", is let pass.
        seconds: to wait for it.

    Raises:
        ConnectionError: if nobody listens there.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:  # such as "auto" or an address of Ray's client
        return
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=seconds).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ConnectionError(str(error)) from error
            time.sleep(0.5)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def start_local(**options: Any) -> None:
    """Start a Ray cluster on this machine; `options` are those of `ray.init`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Ray's processes, which inherit this, otherwise look for the dashboard by guessing, and fail where two
    # clusters share a machine. Through its state API the resources of a killed worker group are freed.
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    # Workers that yield to every other process, Ray's default, got 8 % of a core on a busy machine. What is timed
    # runs as `speedup train` does.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nobody takes this machine's nodes away: an actor that would watch for it costs three seconds of CPU a group.
    os.environ.setdefault(WATCHER, "0")
    ray.init(
        address="local",
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        resources={"tune_driver": DRIVERS},
        **options,
    )


def require(scaling: ScalingSettings, have: dict[str, float]) -> None:
    """Refuse a worker group that is larger than the machine, before anything waits for it.

    Raises:
        UserError: naming the setting, what it asks for and what there is.
    """
    for name, each in (("CPU", scaling.cpus_per_worker), ("GPU", scaling.gpus_per_worker)):
        if scaling.least_workers * each > have.get(name, 0):
            raise UserError(
                f"scaling.workers: {scaling.least_workers} x {each:g} {name} is more than this machine's "
                f"{have.get(name, 0):g}; expected fewer, or a cluster (RAY_ADDRESS)"
            )


def set_ray_environment(scaling: ScalingSettings) -> None:
    """What Ray reads from the environment of the process that starts a worker group; it passes it on."""
    os.environ.update(
        # the whole wait is the user's setting, whatever the number of attempts
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=f"{scaling.start_timeout / ATTEMPTS:g}",
        RAY_TRAIN_COLLECTIVE_TIMEOUT_S=f"{scaling.timeout:g}",  # of its own; torch's is set beside it
        # relative paths in an experiment are relative to where the user stands
        RAY_CHDIR_TO_TRIAL_DIR="0",
    )
    # a report can wait this long for the controller's next look; Ray's own 2 s would cost more than an epoch
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")
    # how soon a drain is seen; Ray's own 5 s are much of the 30 s that Google Cloud gives
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "2")
    # a worker without GPUs leaves the visible ones as they are
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def driver_resources() -> dict[str, float]:
    """What a Tune trial holds that only steers a worker group.

    No CPU: a driver that holds one can keep it from the very workers it waits for. `tune_driver` is a resource
    of the head of our clusters (`cluster.yaml`) and of local ones, and bounds the number of groups. The head
    of any other cluster, such as a plain `ray start --head`, has one `node:__internal_head__`.
    """
    if "tune_driver" in ray.cluster_resources():
        return {"tune_driver": 1}
    return {"node:__internal_head__": 1 / DRIVERS}
