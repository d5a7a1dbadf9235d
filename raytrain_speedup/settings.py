"""The ground floor: what a settings section is, and how a user's mistake is told.

Every section of an experiment is a frozen pydantic model that refuses unknown keys. Whatever a user can
get wrong ends in one `UserError`; the command line prints its message and exits with code 2, so nobody
reads a traceback for a typing error.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class UserError(Exception):
    """Something the user can mend; the message names the key or file, the value and what was expected."""

    exit_code = 2


class RunFailed(UserError):
    """A run that began and could not end; the message names what is left of it."""

    exit_code = 1


class Settings(BaseModel):
    """A frozen section of an experiment. Unknown keys are errors, and so are values of the wrong kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def explain(error: ValidationError, model: type[BaseModel], *, where: str = "") -> UserError:
    """One line per wrong key: the key, the value found and what was expected.

    Args:
        error: what pydantic raised while reading `model`.
        model: the settings class that was read; its field names are offered for a mistyped key.
        where: a file or command line to name in front.
    """
    lines = [_line(details, model) for details in error.errors()]
    head = f"{where}: " if where else ""
    return UserError("\n".join(head + line for line in lines))


def _line(details: ErrorDetails, model: type[BaseModel]) -> str:
    keys = details["loc"]
    sections, known = _follow(model, keys)
    key = ".".join(sections) or "(the whole file)"
    if details["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(keys[-1]), known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"{key}: unknown key{hint} (known here: {', '.join(sorted(known))})"
    if details["type"] == "missing":
        return f"{key}: missing; a value is required"
    expected = details["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if details["type"] == "value_error":
        return f"{key}: {expected}"
    return f"{key}: {details['input']!r} is not allowed; expected {expected}"


def _follow(model: type[BaseModel], keys: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """Drop the tags that pydantic puts into the path of a union, and list the fields known at its end."""
    shown: list[str] = []
    here: list[type[BaseModel]] = [model]
    known: list[str] = []
    for key in keys:
        if isinstance(key, int):  # a position in a list, whose members were followed with its field
            shown.append(str(key))
            continue
        known = sorted({name for section in here for name in section.model_fields})
        fields = [section.model_fields[key] for section in here if key in section.model_fields]
        if fields:
            shown.append(key)
            here = [section for field in fields for section in _sections(field.annotation)]
        elif key == keys[-1]:
            shown.append(key)
        else:  # a union's tag: keep to the member that carries it
            tagged = [section for section in here if _tag(section) == key]
            here = tagged or here
    return shown, known


def _sections(annotation: Any) -> Iterable[type[BaseModel]]:
    """The settings classes inside an annotation: itself, or the members of a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _tag(section: type[BaseModel]) -> str | None:
    for field in section.model_fields.values():
        if isinstance(field.default, str) and get_args(field.annotation) == (field.default,):
            return field.default
    return None
