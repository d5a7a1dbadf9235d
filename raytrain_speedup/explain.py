"""Every key of an experiment as a table, read from the settings classes themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.markup import escape
from rich.table import Table

from raytrain_speedup.config import Experiment
from raytrain_speedup.experiment_file import REGISTRIES, TAGS
from raytrain_speedup.registry import Registry
from raytrain_speedup.settings import tag_of


def keys_table() -> Table:
    """Key, meaning and default of everything that can be set, a paragraph for each section."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    before = None
    for key, default, meaning in keys():
        section = key.partition(".")[0] if "." in key else ""
        if section != before:
            table.add_row()
        before = section
        told = f" [dim]({escape(default)})[/dim]" if default else ""
        table.add_row(escape(key), escape(meaning) + told)
    return table


def keys() -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, meaning), section after section."""
    for section, field in Experiment.model_fields.items():
        registry = REGISTRIES.get(section)
        if registry is not None:
            chosen = "none" if "none" in registry else next(iter(registry))
            default = chosen if field.default_factory is not None else ""
            own = ", or the import path of your own" if registry.by_path is not None else ""
            yield f"{section}.{TAGS[section]}", default, f"{field.description}: {', '.join(registry)}{own}"
            yield from _registry_keys(section, registry)
        elif (settings := _settings_class(field.annotation)) is not None:
            yield from _section_keys(section, settings)
        else:
            yield section, _default(field), field.description or ""


def _settings_class(annotation: Any) -> type[BaseModel] | None:
    """The class of a section that has one, also where the section may be absent."""
    parts = (annotation, *get_args(annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _registry_keys(section: str, registry: Registry[Any]) -> Iterator[tuple[str, str, str]]:
    """A key that several entries share is reported once, with the entries that have it."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    readers = registry.sections()
    for settings in readers:
        for row in _section_keys(section, settings):
            if row[0] != f"{section}.{TAGS[section]}":
                rows.setdefault(row, []).append(tag_of(settings) or "your own")
    for (key, default, meaning), names in rows.items():
        only = "" if len(names) == len(readers) else f"[{', '.join(names)}] "
        yield key, default, only + meaning


def _section_keys(section: str, settings: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    """The keys of a section and of those inside it, but for those that are sections of the experiment too."""
    told_elsewhere = {_settings_class(field.annotation) for field in Experiment.model_fields.values()}
    for name, field in settings.model_fields.items():
        choices = get_args(field.annotation)
        texts = [choice for choice in choices if isinstance(choice, str)]
        meaning = field.description or ""
        if len(texts) > 1:
            meaning += f" ({', '.join(texts)})"
        inner = _settings_class(field.annotation)
        if inner is None:
            yield f"{section}.{name}", _default(field), meaning
        else:
            yield f"{section}.{name}", "" if field.default is not PydanticUndefined else "required", meaning
            if inner not in told_elsewhere:
                yield from _section_keys(f"{section}.{name}", inner)


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required" if field.default_factory is None else ""
    if isinstance(field.default, tuple):
        return f"[{', '.join(map(str, field.default))}]"
    if isinstance(field.default, float):
        return f"{field.default:.4g}"
    return "" if field.default is None else str(field.default)
