"""What a training script may report: numbers whose names say which split they are of, and nothing that is
measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raytrain_speedup.engine.cost import costs
from raytrain_speedup.metric import Metric
from raytrain_speedup.settings import UserError, did_you_mean

MEASURED = {*costs.NAMES, "train_key"} - {"train_flops"}
"""Metrics that a script cannot report, whatever they begin with: they are measured."""


def checked(call: str, metrics: Mapping[str, Any], beginnings: tuple[str, ...]) -> dict[str, float]:
    """The metrics as numbers, without those that are None."""
    for name in metrics:
        if name in MEASURED:
            raise UserError(
                f"{call}: {name} is measured, not reported; expected `with run.training():` around it"
            )
        if not name.startswith(beginnings):
            expected = ", ".join(f"{beginning}..." for beginning in beginnings)
            raise UserError(f"{call}: {name}: unknown name; expected one of {expected}")
    return {name: number_of(call, name, value) for name, value in metrics.items() if value is not None}


def number_of(call: str, name: str, value: Any) -> float:
    """A metric as a float; tensors and arrays of a single number are numbers too."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{call}: {name}: {value!r} is no number; expected one") from None
    if not math.isfinite(number):
        raise UserError(f"{call}: {name}: {number} is not allowed; expected a finite number")
    return number


def check_ranking(metric: Metric, values: Mapping[str, float], *, test: bool) -> None:
    """The metric that ranks runs is there, in percent if it is an accuracy.

    Raises:
        UserError: if it is not.
    """
    name = f"{'test' if test else 'val'}_{metric.name}"
    if name not in values:
        hint = did_you_mean(name, list(values)) or f"reported were: {', '.join(values) or 'none'}"
        raise UserError(
            f"run.finish: {name} is missing; expected the metric that ranks runs (`metric: {metric.name}`); {hint}"
        )
    if metric.name == "accuracy" and 0 < values[name] <= 1:
        raise UserError(
            f"run.finish: {name}: {values[name]:g} seems to be a fraction; expected percent, as margins are"
        )
