"""What an experiment's file holds before it is checked: found, read, with the command line's overrides in it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from raytrain_speedup import user_code
from raytrain_speedup.data import SOURCES
from raytrain_speedup.methods.curriculum import CURRICULA
from raytrain_speedup.methods.distillation import SYNTHESIZERS
from raytrain_speedup.methods.pruning import PRUNERS
from raytrain_speedup.registry import Registry
from raytrain_speedup.settings import UserError, did_you_mean
from raytrain_speedup.tasks import TASKS

REGISTRIES: dict[str, Registry[Any]] = {
    "task": TASKS,
    "data": SOURCES,
    "pruning": PRUNERS,
    "curriculum": CURRICULA,
    "distillation": SYNTHESIZERS,
}
"""By section, what reads it."""

TAGS = {section: registry.tag for section, registry in REGISTRIES.items()}
"""The key of each section that says which registry entry it is; changing it starts the section afresh."""


def find_experiment(name: str | Path) -> Path:
    """The file of a recipe or path."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(
                f"{name}: no such file; expected an experiment (YAML) or one of: {', '.join(recipes())}"
            )
        return path
    if str(name) not in recipes():
        expected = (
            did_you_mean(str(name), list(recipes()))
            or f"expected a YAML file or one of: {', '.join(recipes())}"
        )
        raise UserError(f"{name}: no such recipe; {expected}")
    return recipes()[str(name)]


def recipes() -> dict[str, Path]:
    """The ready experiments by name."""
    folder = Path(str(resources.files("raytrain_speedup"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: naming the file and, where YAML knows it, the line.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{path}: holds {found}; expected sections such as 'data:' and 'train:'")
    return content


def parse_overrides(overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """`["a.b=1"]` as `{"a.b": 1}`; values are read as YAML."""
    if isinstance(overrides, Mapping):
        return dict(overrides)
    parsed = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{text!r}: expected key=value, such as pruning.prune_ratio=0.4")
        try:
            parsed[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{key}: {value!r} is not a YAML value") from error
    return parsed


def overridden(content: dict[str, Any], overrides: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(content)
    parsed = parse_overrides(overrides)
    tags = {f"{section}.{tag}" for section, tag in TAGS.items()}
    for key, value in sorted(parsed.items(), key=lambda item: item[0] not in tags):
        *sections, name = key.split(".")
        if not all([*sections, name]):
            raise UserError(f"{key!r}: expected a dotted key, such as pruning.prune_ratio")
        if key in tags and _tag_of(content.get(sections[0]), name) != value:
            content[sections[0]] = {}  # another method: the old one's keys mean nothing to it
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"{key}: '{section}' is a value, not a section; nothing can be set inside it")
        inner[name] = copy.deepcopy(value)
    return content


def _tag_of(section: Any, tag: str) -> Any:
    return section.get(tag) if isinstance(section, dict) else None


def import_own_code(content: Mapping[str, Any]) -> None:
    """Make the code of the user's own importable, and import the plugins. Of values of the wrong kind, which
    their fields report, nothing is imported."""
    user_code.search(Path(folder) for folder in _texts(content.get("python_path")))
    for module in _texts(content.get("plugins")):
        user_code.import_module(module, "plugins")


def names_own_code(content: Mapping[str, Any]) -> bool:
    """Whether an experiment has anything to import."""
    teacher = content.get("teacher")
    keys = (("model", "name"), ("task", "kind"), ("data", "dataset"))
    named = [(content.get(section), key) for section, key in keys]
    named += [(teacher.get("model"), "name")] if isinstance(teacher, dict) else []
    paths = [section.get(key) for section, key in named if isinstance(section, dict)]
    return bool(content.get("plugins")) or any(user_code.is_import_path(str(path)) for path in paths)


def _texts(value: Any) -> list[Any]:
    """The strings and paths of a list of them."""
    values = value if isinstance(value, list | tuple) else []
    return [text for text in values if isinstance(text, str | Path)]


def absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: absolute(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(absolute(inner) for inner in value)
    return str(value.absolute()) if isinstance(value, Path) else value
