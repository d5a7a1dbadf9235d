"""Which of several node types with equal resources Ray's autoscaler starts: the first by name that can be had.

Ray 2.60 has two autoscalers. In both a type that the cloud has none of is asked for again and again: the first
(`ray/autoscaler/_private`) writes down that a launch failed, and its own score does not look; the second
(`ray/autoscaler/v2`) lowers a type's score only where a machine was given and did not come up, and AWS refuses at
once. The first one takes another score, by name, from the environment of the head's `ray start`, as
`cluster.yaml` has it:

    RAY_enable_autoscaler_v2=0
    RAY_AUTOSCALER_UTILIZATION_SCORER=raytrain_speedup.scaling.node_choice.score_node_type

This module is imported by the autoscaler's process, and by nothing else here.
"""

from __future__ import annotations

from typing import Any

from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

SHORTAGES = frozenset(
    {
        *("InsufficientInstanceCapacity", "InsufficientHostCapacity", "UnfulfillableCapacity", "Unsupported"),
        *("SpotMaxPriceTooLow", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded", "InstanceLimitExceeded"),
    }
)
"""What EC2 says where it has no such machine in any zone, not at that price, or no more of them for this account
(https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html). Whatever else it says is a mistake in
the file or in a role, which another node type would not heal, only hide."""


def score_node_type(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: NodeAvailabilitySummary,
) -> tuple[Any, ...] | None:
    """How much Ray's autoscaler likes to start a node of this type; the greatest is started.

    How well it fits what is asked for decides first, as Ray has it. Among types that fit equally, those that were
    to be had (or were not asked for in the last half hour, AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S) come
    before those that were not, the names in their order; where none was, the one asked for longest ago is next.

    Args:
        node_resources: of a node.
        resources: what tasks, actors and placement groups wait for.
        node_type: its name in `available_node_types`.
        node_availability_summary: how the latest launch of every type went.

    Returns:
        None if none of `resources` fits.
    """
    fit = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if fit is None:
        return None
    last = node_availability_summary.node_availabilities.get(node_type)
    cause = last.unavailable_node_information if last is not None else None
    short = last is not None and cause is not None and cause.category in SHORTAGES
    asked = last.last_checked_timestamp if last is not None and short else 0.0
    letters = tuple(-ord(letter) for letter in node_type)  # the greatest is the first by name
    return (*fit, not short, -asked, (*letters, 1))
