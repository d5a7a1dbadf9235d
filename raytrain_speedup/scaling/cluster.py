"""Which Ray cluster a command talks to."""

from __future__ import annotations

import os

import ray

from raytrain_speedup.config import ScalingSettings
from raytrain_speedup.settings import UserError


def connect(scaling: ScalingSettings) -> None:
    """Connect to the cluster this process belongs to, or start one on this machine.

    Inside `ray job submit` (and wherever RAY_ADDRESS is set) that is the running cluster. Otherwise a local
    one is started with the dashboard on loopback only: it is never found by guessing, so that two users of
    a machine do not meet in one cluster.

    Raises:
        UserError: if the workers would never get their resources.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address=os.environ.get("RAY_ADDRESS") or "local",
            include_dashboard=None if os.environ.get("RAY_ADDRESS") else True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level="warning",
        )
    if "RAY_ADDRESS" in os.environ:
        return  # its autoscaler may yet bring what is missing
    have = ray.cluster_resources()
    for name, each in (("CPU", scaling.cpus_per_worker), ("GPU", scaling.gpus_per_worker)):
        if scaling.workers * each > have.get(name, 0):
            raise UserError(
                f"scaling.workers: {scaling.workers} x {each:g} {name} is more than this machine's "
                f"{have.get(name, 0):g}; expected fewer, or a cluster (RAY_ADDRESS)"
            )
