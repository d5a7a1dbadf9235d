"""Which rows of a leaderboard are wanted, and in which order: `--where` and `--sort`.

Keys are those of `Row.to_dict`, as `--json` shows them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from raytrain_speedup.settings import UserError, did_you_mean
from raytrain_speedup.tracking.leaderboard import Row

CONDITION = re.compile(r"(?P<key>\w+)(?P<sign>!=|>=|<=|=)(?P<value>.*)", re.DOTALL)
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda found, bound: found >= bound,
    "<=": lambda found, bound: found <= bound,
}


def where(rows: Sequence[Row], conditions: Iterable[str]) -> list[Row]:
    """The rows that fulfil all conditions.

    Args:
        conditions: `data=digits`, `verdict!=lossy`, `method=info*` or `speedup>=1.2`. Texts are compared without
            regard to case; what is not known fulfils `!=` alone.

    Raises:
        UserError: naming a condition that is none, or a key that no row has.
    """
    conditions = tuple(conditions)
    if not conditions:  # ten thousand rows as plain data take a while
        return list(rows)
    found = [(row, row.to_dict()) for row in rows]
    for text in conditions:
        match = CONDITION.fullmatch(text)
        if match is None:
            raise UserError(
                f"--where: {text!r} is no condition; expected KEY=VALUE, such as verdict=lossless"
            )
        key, holds = match["key"], _condition(text, match["sign"], match["value"])
        _check(rows, "--where", key)
        found = [(row, plain) for row, plain in found if holds(plain[key])]
    return [row for row, _ in found]


def sort(rows: Sequence[Row], key: str) -> list[Row]:
    """The rows by a key: numbers from the largest, texts from A; the other way round with a minus in front. What
    is not known comes last.

    Raises:
        UserError: if no row has such a key, or its values have no order.
    """
    name, backwards = key.removeprefix("-"), key.startswith("-")
    _check(rows, "--sort", name)
    values = [(row.to_dict()[name], row) for row in rows]
    known = [(value, row) for value, row in values if value is not None]
    numbers = all(isinstance(value, int | float) for value, _ in known)
    try:
        known.sort(key=lambda pair: pair[0], reverse=numbers != backwards)
    except TypeError:
        raise UserError(f"--sort: {name} has no order; expected a key such as speedup") from None
    return [row for _, row in known] + [row for value, row in values if value is None]


def _condition(text: str, sign: str, value: str) -> Callable[[Any], bool]:
    if sign in COMPARISONS:
        try:
            bound = float(value)
        except ValueError:
            raise UserError(
                f"--where: {text!r}: {value!r} is not a number; expected one after {sign}"
            ) from None
        return lambda found: isinstance(found, int | float) and COMPARISONS[sign](found, bound)
    pattern = value.lower()
    return lambda found: (found is not None and fnmatchcase(_text(found), pattern)) == (sign == "=")


def _text(value: Any) -> str:
    """As it is typed: 1.5 and not 1.5000000001, seeds as 0,1,2."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _check(rows: Sequence[Row], option: str, key: str) -> None:
    keys = sorted(rows[0].to_dict()) if rows else [key]
    if key not in keys:
        hint = did_you_mean(key, keys) or f"expected one of: {', '.join(keys)}"
        raise UserError(f"{option}: {key!r} is no key of a row; {hint}")
