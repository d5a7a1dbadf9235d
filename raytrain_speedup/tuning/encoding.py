"""Settings as points of a cube, for a model of them: numbers on [0, 1] as they are searched (a logarithm evenly),
a choice as one coordinate for each of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from raytrain_speedup.tuning.surrogate import Array

Space = Mapping[str, BaseDistribution]
ABSENT = 0.5
"""Where a number is that a setting does not have."""


def width(space: Space) -> int:
    """Coordinates of a point."""
    return sum(_width(distribution) for distribution in space.values())


def encode(space: Space, settings: Sequence[Mapping[str, Any]]) -> Array:
    """Points of settings, one a row; a number that a setting lacks lies in the middle."""
    rows = [
        [value for key, kind in space.items() for value in _point(kind, params, key)] for params in settings
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), width(space))


def settings_at(space: Space, point_D: Array) -> dict[str, Any]:
    """The settings nearest to a point."""
    params, place = {}, 0
    for key, distribution in space.items():
        part = point_D[place : place + _width(distribution)]
        params[key] = _setting(distribution, part)
        place += len(part)
    return params


def snapped(space: Space, points_MD: Array) -> Array:
    """The points of settings that can be had, nearest to these."""
    columns, place = [], 0
    for distribution in space.values():
        part = points_MD[:, place : place + _width(distribution)]
        place += part.shape[1]
        if isinstance(distribution, CategoricalDistribution):
            columns.append(np.eye(part.shape[1])[part.argmax(axis=1)])
        elif distribution.step is None or distribution.log:  # a log range of integers is fine enough as it is
            columns.append(part.clip(0.0, 1.0))
        else:
            steps = (distribution.high - distribution.low) / distribution.step
            columns.append(np.rint(part.clip(0.0, 1.0) * steps) / steps)
    return np.concatenate(columns, axis=1)


def _width(distribution: BaseDistribution) -> int:
    return len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 1


def _point(distribution: BaseDistribution, params: Mapping[str, Any], key: str) -> list[float]:
    if isinstance(distribution, CategoricalDistribution):
        chosen = distribution.to_internal_repr(params[key]) if key in params else -1
        return [float(place == chosen) for place in range(len(distribution.choices))]
    if key not in params:
        return [ABSENT]
    low, high = _ends(distribution)
    value = math.log(params[key]) if distribution.log else params[key]
    return [(value - low) / (high - low)]


def _setting(distribution: BaseDistribution, part_D: Array) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(part_D.argmax())]
    low, high = _ends(distribution)
    value = low + float(part_D[0].clip(0.0, 1.0)) * (high - low)
    value = math.exp(value) if distribution.log else value
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else value


def _ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    if distribution.log:
        return math.log(distribution.low), math.log(distribution.high)
    return distribution.low, distribution.high
