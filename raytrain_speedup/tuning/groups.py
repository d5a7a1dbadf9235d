"""The entries of `search` together: which of them a setting has, and what the drawn numbers mean.

Numbers are always drawn for every entry, so that a sampler sees one space, whatever was chosen; those that a
setting does not have (`when:`) are left out of it. A key such as `curriculum.schedule[].fraction` is a column of a
list of sections, so that a group can be given in the terms of the method that has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raytrain_speedup.settings import UserError
from raytrain_speedup.tuning.distributions import Distribution

COLUMN = "[]."
FACTOR = re.compile(r"x([0-9.]+)")

Entries = Mapping[str, Distribution]


def check_conditions(search: Entries) -> None:
    """Raises:
    ValueError: where an entry depends on something that is not searched above it.
    """
    above: list[str] = []
    for key, entry in search.items():
        for condition in entry.when:
            if condition not in above:
                raise ValueError(
                    f"search.{key}.when: '{condition}' is not searched above it; expected one of: "
                    + (", ".join(above) or "none yet")
                )
        above.append(key)


def is_active(search: Entries, key: str, settings: Mapping[str, Any]) -> bool:
    """Whether settings have a key: what it depends on is there, and has the value asked for."""
    conditions = search[key].when if key in search else {}
    return all(
        is_active(search, name, settings) and settings.get(name) in values
        for name, values in conditions.items()
    )


def meaning_of(search: Entries, drawn: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Drawn numbers in the experiment's terms, and the names of those that are not used."""
    everything = {key: entry.meant(key, drawn) for key, entry in search.items()}
    params = {key: value for key, value in everything.items() if is_active(search, key, everything)}
    unused = [name for key, entry in search.items() if key not in params for name in entry.numbers(key)]
    return params, unused


def draw_of(search: Entries, params: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers that mean these settings, be they all or some.

    Raises:
        ValueError: where a group is none.
    """
    drawn: dict[str, Any] = {}
    for key, value in params.items():
        try:
            drawn |= search[key].drawn(key, value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    return drawn


def with_rows(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Columns put together to lists of sections: `{"a.b[].c": [1, 2]}` is `{"a.b": [{"c": 1}, {"c": 2}]}`.

    Raises:
        UserError: where the columns of a list are not equally long.
    """
    whole: dict[str, Any] = {}
    columns: dict[str, dict[str, list[Any]]] = {}
    for key, value in keys.items():
        name, is_column, column = key.partition(COLUMN)
        if is_column:
            columns.setdefault(name, {})[column] = value
        else:
            whole[key] = value
    for name, named in columns.items():
        lengths = {column: len(values) for column, values in named.items()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"{name}[]: has columns of {lengths}; expected equally many parts")
        whole[name] = [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
    return whole


def scaled(keys: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a proxy, `x0.1` of one multiplied with the value there is.

    Raises:
        UserError: where there is no number to multiply.
    """
    found = {}
    for key, value in keys.items():
        factor = FACTOR.fullmatch(value) if isinstance(value, str) else None
        if factor and not isinstance(values.get(key), int | float):
            raise UserError(f"proxy: {key}: {value} is not allowed, of {values.get(key)!r}; expected a value")
        if factor:
            product = values[key] * float(factor[1])
            value = max(1, round(product)) if isinstance(values[key], int) else product
        found[key] = value
    return found
