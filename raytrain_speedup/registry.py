"""Registries of methods, data sources and tasks: those of the package, and those of anyone's own.

An entry is a settings class; its tag (`method`, `source` or `kind`) is its name. Beside the package's own
entries a registry knows those that were registered in this process, by a module of an experiment's `plugins`
or by hand,

    @PRUNERS.register
    class TopLossSettings(PrunerSettings):
        method: Literal["top-loss"] = "top-loss"
        ...

and those that installed packages bring by an entry point of the registry's group. It is read whenever a
section is validated, so that an entry that comes later is as good as one of the package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticKnownError, core_schema

from raytrain_speedup.settings import Settings, UserError
from raytrain_speedup.user_code import is_import_path, what_happened

log = logging.getLogger("raytrain_speedup")

S = TypeVar("S", bound=Settings)


class Registry(Mapping[str, type[S]]):
    """Settings classes by name.

    Args:
        base: what every entry inherits from.
        tag: the field that holds an entry's name.
        group: of the entry points of installed packages.
        entries: those of this package.
        by_path: reads the sections whose tag is an import path, where such sections are allowed.
    """

    def __init__(
        self,
        base: type[S],
        *,
        tag: str,
        group: str,
        entries: Mapping[str, type[S]],
        by_path: type[S] | None = None,
    ) -> None:
        self.base, self.tag, self.group, self.by_path = base, tag, group, by_path
        self._known: dict[str, type[S]] = dict(entries)
        self._broken: set[str] = set()

    def __getitem__(self, name: str) -> type[S]:
        """The entry of a name.

        Raises:
            KeyError: if there is none.
            UserError: if an installed package names one that cannot be loaded, or is no such class.
        """
        if name not in self._known:
            point = next((point for point in self._points() if point.name == name), None)
            if point is None:
                raise KeyError(name)
            self._known[name] = self._load(point)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        """Every name; an installed one that cannot be loaded is left out, with a warning."""
        for point in self._points():
            if point.name not in self._known and point.name not in self._broken:
                try:
                    self._known[point.name] = self._load(point)
                except UserError as error:
                    self._broken.add(point.name)
                    log.warning("left out: %s", error)
        return iter(list(self._known))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def register(self, entry: type[S]) -> type[S]:
        """Add an entry under its tag; a class decorator.

        Raises:
            UserError: if it is no class of settings for this registry, or its name is taken.
        """
        name = self._name_of(entry, entry.__name__)
        other = self._known.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (
            entry.__module__,
            entry.__qualname__,
        ):
            raise UserError(
                f"{entry.__name__}.{self.tag}: {name!r} is {other.__module__}.{other.__qualname__} already; "
                "expected a name of its own"
            )
        self._known[name] = entry
        return entry

    def read(self, section: Any) -> S:
        """A section of an experiment by the entry that its tag names; made ones are taken as they are.

        Raises:
            PydanticKnownError, ValidationError: as pydantic does for a union with a discriminator; the place
                of an error has the name of the class in it.
            UserError: as `__getitem__`.
        """
        if isinstance(section, self.base):
            return section
        if not isinstance(section, Mapping):
            raise PydanticKnownError("dict_type")
        if self.tag not in section:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": repr(self.tag)})
        entry = self._entry_for(str(section[self.tag]))
        try:
            return entry.model_validate(section)
        except ValidationError as error:
            raise _inside(entry.__name__, error) from None

    def _entry_for(self, name: str) -> type[S]:
        if self.by_path is not None and is_import_path(name):
            return self.by_path
        try:
            return self[name]
        except KeyError:
            context = {"discriminator": repr(self.tag), "tag": name, "expected_tags": ", ".join(self)}
            raise PydanticKnownError("union_tag_invalid", context) from None

    def sections(self) -> list[type[S]]:
        """Every class that may read a section."""
        return [*self.values(), *([] if self.by_path is None else [self.by_path])]

    def _points(self) -> tuple[EntryPoint, ...]:
        return tuple(entry_points(group=self.group))

    def _load(self, point: EntryPoint) -> type[S]:
        where = f"entry point {point.name} = {point.value} of {self.group}"
        try:
            entry = point.load()
        except Exception as error:
            raise UserError(f"{where}: cannot be loaded: {what_happened(error)}") from error
        if (name := self._name_of(entry, where)) != point.name:
            raise UserError(f"{where}: its {self.tag} is {name!r}; expected the entry point's name")
        return entry

    def _name_of(self, entry: Any, where: str) -> str:
        """The name of an entry; `where` stands in front of a message."""
        if not (isinstance(entry, type) and issubclass(entry, self.base)):
            raise UserError(f"{where}: {entry!r} is no entry; expected a subclass of {self.base.__name__}")
        field = entry.model_fields[self.tag]
        if not isinstance(field.default, str) or get_args(field.annotation) != (field.default,):
            raise UserError(
                f"{where}: {entry.__name__} has no name; expected a field such as "
                f'{self.tag}: Literal["mine"] = "mine"'
            )
        return field.default


@dataclass(frozen=True, eq=False)
class Chosen:
    """Says of a field that a registry reads it: `Annotated[PrunerSettings, Chosen(PRUNERS)]`."""

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.registry.read)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """A section that one of the entries reads; which, its tag says."""
        entries = [handler(entry.__pydantic_core_schema__) for entry in self.registry.sections()]
        return {"type": "object", "required": [self.registry.tag], "anyOf": entries}


def _inside(name: str, error: ValidationError) -> ValidationError:
    """The same errors a step further inside."""
    details: list[InitErrorDetails] = [
        {
            "type": line["type"],
            "loc": (name, *line["loc"]),
            "input": line["input"],
            "ctx": line.get("ctx", {}),
        }
        for line in error.errors()
    ]
    return ValidationError.from_exception_data(name, details)
