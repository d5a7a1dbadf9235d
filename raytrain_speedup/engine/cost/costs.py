"""What a run cost, as it is reported after every epoch and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds are synchronised with the device. None is what was not measured: in a script without a reference
    step, on another kind of device, by an earlier version.

    Attributes:
        train_seconds: of the wall clock, synthesis included: what wall speedups are of. The other phases follow.
        train_cpu_seconds, train_device_seconds: of work, by the clock of the device.
        wall_seconds: of all phases together.
        samples_shown: replayed ones included; `compute_spent` the same in epochs at full size.
        bytes_read: for the training steps, over all ranks: of an index, and what came from a cache not.
        train_flops: of forward and backward passes, and of synthesis.
        peak_memory_bytes: of the GPU's allocator, on a CPU of the process.
        reference_steps: the cost in plain steps of the same process (`reference.py`), of `reference_batch` samples
            and `reference_step_seconds` in the median.
        reference_spread: of the quarters of the run, the slowest reference step over the fastest.
        core_fraction: CPU seconds over wall seconds of the training.
        switches_per_second: involuntary context switches in a second of work.
        other_processes: on the GPU, at most at any time.
    """

    train_seconds: float
    setup_seconds: float | None = None
    teacher_seconds: float | None = None
    warmup_seconds: float | None = None
    synthesis_seconds: float | None = None
    reference_seconds: float | None = None
    eval_seconds: float | None = None
    checkpoint_seconds: float | None = None
    train_cpu_seconds: float | None = None
    train_device_seconds: float | None = None
    wall_seconds: float | None = None
    samples_shown: float | None = None
    samples_per_second: float | None = None
    compute_spent: float | None = None
    bytes_read: float | None = None
    train_flops: float | None = None
    peak_memory_bytes: float | None = None
    reference_steps: float | None = None
    reference_batch: float | None = None
    reference_step_seconds: float | None = None
    reference_spread: float | None = None
    core_fraction: float | None = None
    switches_per_second: float | None = None
    other_processes: float | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Those among the metrics of a run."""
        known = {name: content[name] for name in content.keys() & KNOWN}
        return cls(**{"train_seconds": float("nan"), **known})

    def to_dict(self) -> dict[str, float]:
        """Those that were measured."""
        return {name: value for name in NAMES if (value := getattr(self, name)) is not None}


NAMES = tuple(field.name for field in fields(Costs))
"""Metrics that are costs, in the order in which they are reported."""

KNOWN = frozenset(NAMES)
