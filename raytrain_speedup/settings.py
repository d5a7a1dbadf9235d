"""The ground floor: what a settings section is, and how a user's mistake is reported.

Every section of an experiment is a frozen pydantic model that refuses unknown keys. Whatever a user can
get wrong ends in one `UserError`; the command line prints its message and exits with code 2, so nobody
reads a traceback for a typing error.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

log = logging.getLogger("raytrain_speedup")

RENAMED = {"val_share": "val_fraction", "max_corrupt_share": "max_corrupt_fraction", "share": "fraction"}
"""Keys of files written for an earlier version: read for one more, with a warning."""


class UserError(Exception):
    """Something the user can mend; the message names the key or file, the value and what was expected."""

    exit_code = 2


class RunFailed(UserError):
    """A run that began and could not end; the message names what is left of it."""

    exit_code = 1


class Stalled(RunFailed):
    """A run that waited for what did not come. A worker group starts again after it: another node may have it."""


class Settings(BaseModel):
    """A frozen section of an experiment. Unknown keys are errors, and so are values of the wrong kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def check_code(self) -> None:
        """Find the code of the user's own that the section names, before anything runs; most name none.

        Raises:
            UserError: if it is not there, or takes other arguments than it will get.
        """

    @model_validator(mode="before")
    @classmethod
    def _renamed_keys(cls, content: Any) -> Any:
        old = [key for key in RENAMED if isinstance(content, dict) and key in content]
        for key in old:
            if key not in cls.model_fields and (new := RENAMED[key]) in cls.model_fields:
                log.warning("%s is called %s now; the next version will not read the old name", key, new)
                content = {name: value for name, value in content.items() if name != key} | {
                    new: content[key]
                }
        return content


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
    """What is wrong with one key."""
    kind, value, context = details["type"], _shortened(details["input"]), details.get("ctx", {})
    shown, here = _follow(model, [str(part) for part in details["loc"]])
    key = ".".join(shown)
    if kind == "extra_forbidden":
        known = sorted({name for section in here for name in section.model_fields})
        return f"{key}: unknown key; {did_you_mean(shown[-1], known) or 'known here: ' + ', '.join(known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [tag for section in here if (tag := tag_of(section)) is not None]
        found = context.get("tag")
        head = f"{key}.{context['discriminator'].strip(chr(39))}: "
        head += "missing" if found is None else f"{found!r} is not allowed"
        close = f"; {did_you_mean(found, tags)}" if found is not None and did_you_mean(found, tags) else ""
        return f"{head}; expected one of {', '.join(tags)}{close}"
    if kind == "missing":
        return f"{key}: missing; expected {_description(model, shown) or 'a value'}"
    if kind == "value_error":
        message = details["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key}: {value} is not allowed; expected a section of keys and values"
    expected = details["msg"].removeprefix("Input should be ").removeprefix("Input is not ")
    return f"{key}: {value} is not allowed; expected {EXPECTED.get(kind, expected)}"


EXPECTED = {"path_type": "a path", "float_parsing": "a number", "int_parsing": "a whole number"}
"""Where pydantic's own words are hard to read."""


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def did_you_mean(name: str, known: list[str]) -> str:
    """The likeliest of the known names as a question, or nothing."""
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _follow(model: type[BaseModel], keys: list[str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The path without the tags pydantic puts into it for unions, and the settings classes at its end.

    Of an unknown key these are the classes that do not know it.
    """
    shown: list[str] = []
    here: list[type[BaseModel]] = [model]
    for key in keys:
        fields = [section.model_fields[key] for section in here if key in section.model_fields]
        tagged = [section for section in here if key in (section.__name__, tag_of(section))]
        if fields:
            here = [section for field in fields for section in sections_of(field)]
        elif len(here) > 1 and tagged:
            here = tagged
            continue
        shown.append(key)
    return shown, here


def _description(model: type[BaseModel], shown: list[str]) -> str | None:
    """What a field is, in the words of its class."""
    _, here = _follow(model, shown[:-1])
    found = [section.model_fields[shown[-1]] for section in here if shown[-1] in section.model_fields]
    return found[0].description if found else None


def sections_of(field: FieldInfo) -> Iterable[type[BaseModel]]:
    """The settings classes that may read a field: its own, the members of a union or a list, or those of its
    registry."""
    yield from _sections(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)


def _sections(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    if get_origin(annotation) is Annotated:
        registries = [mark.registry for mark in annotation.__metadata__ if hasattr(mark, "registry")]
        if registries:
            yield from registries[0].sections()
            return
    for part in get_args(annotation):
        yield from _sections(part)


def tag_of(section: type[BaseModel]) -> str | None:
    """The name of a settings class among those of its kind."""
    for field in section.model_fields.values():
        if isinstance(field.default, str) and get_args(field.annotation) == (field.default,):
            return field.default
    return None


def flatten(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= flatten(value, f"{above}{key}.") if isinstance(value, Mapping) else {above + key: value}
    return flat
