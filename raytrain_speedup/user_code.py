"""Code of the user's own, named by its import path (`my_package.nets:build`): found, imported and called.

Whatever goes wrong on the way (no such module, no such name, other arguments than it takes, an exception
inside it) is the user's to mend, and one line: the key that names the code, and the file and line where it
failed.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from raytrain_speedup.settings import UserError, did_you_mean

THIS_PROCESS = "this_process"
"""Instead of a module: of objects that were handed over in Python and that no import leads to."""

_OTHERS = (
    "<frozen",
    *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib")),
    str(Path(__file__).parent),
)
"""Beginnings of the files whose code is nobody's own."""

_objects: dict[str, Any] = {}
_numbers = itertools.count(1)


def is_import_path(name: str) -> bool:
    """Whether a name is meant as `module:name`."""
    return ":" in name


def search(folders: Iterable[Path]) -> None:
    """Let modules be imported from these folders, the first one first, before all others."""
    for folder in reversed([str(folder.absolute()) for folder in folders]):
        if folder not in sys.path:
            sys.path.insert(0, folder)


def import_module(name: str, key: str) -> ModuleType:
    """A module by its dotted name.

    Args:
        key: which setting names it, for the message.

    Raises:
        UserError: if there is none, or its import fails.
    """
    importlib.invalidate_caches()  # it may have been written a moment ago
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if name != missing and not name.startswith(f"{missing}."):
            raise UserError(f"{key}: {name} imports {missing!r}, which is not installed") from error
        places = ", ".join(sys.path[:2])
        raise UserError(
            f"{key}: there is no module {missing!r} (looked in {places} and what is installed); expected one "
            "beside the experiment's file, in the working directory or in python_path"
        ) from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{key}: {name} cannot be imported: {what_happened(error)}") from error


def imported(path: str, key: str) -> Any:
    """What an import path names.

    Args:
        path: `module:name`, where the name may be dotted.
        key: which setting it is, for the message.

    Raises:
        UserError: if there is no such thing.
    """
    if path in _objects:
        return _objects[path]
    module_name, _, name = path.partition(":")
    if module_name == THIS_PROCESS:
        raise UserError(
            f"{key}: {path!r} was an object of another process; expected an import path, such as "
            "my_package.nets:build"
        )
    if not module_name or not name:
        raise UserError(f"{key}: {path!r} is not an import path; expected one such as my_package.nets:build")
    found: Any = import_module(module_name, key)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [name for name in vars(found) if not name.startswith("_")]
            hint = did_you_mean(part, known) or f"expected one of: {', '.join(known)}"
            raise UserError(f"{key}: {module_name} has no {name!r}; {hint}")
        found = getattr(found, part)
    return found


def named(value: Any) -> str:
    """An import path for an object: its own, or else one that only this process understands.

    A function or class of a module has one; a lambda, a function within another, an instance, and whatever a
    script or notebook itself defines has none.
    """
    path = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
    if not path.startswith("__main__:") and "<" not in path and _leads_to(path, value):
        return path
    for known, other in _objects.items():
        if other is value:
            return known
    label = getattr(value, "__name__", type(value).__name__).strip("<>")
    path = f"{THIS_PROCESS}:{label}-{next(_numbers)}"
    _objects[path] = value
    return path


def _leads_to(path: str, value: Any) -> bool:
    try:
        return imported(path, "") is value
    except UserError:
        return False


@dataclass(frozen=True)
class OwnCall:
    """A call of the user's code, as an experiment describes it.

    Attributes:
        key: the setting that holds the import path.
        path: the import path.
        options: further keyword arguments, from the setting `options_key`.
    """

    key: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    options_key: str = "options"

    def check(self, *arguments: str) -> None:
        """Find the function, and see that it takes these keyword arguments and the options.

        Raises:
            UserError: as `__call__`, but for what happens inside the function.
        """
        self._fitted(dict.fromkeys(arguments), {})

    def __call__(self, arguments: Mapping[str, Any], *, if_taken: Mapping[str, Any] | None = None) -> Any:
        """Call it by keywords.

        Args:
            arguments: what it has to take.
            if_taken: what it gets where its signature names it.

        Raises:
            UserError: if there is no such function, if it takes others, or if it fails.
        """
        function, fitted = self._fitted(arguments, if_taken or {})
        try:
            return function(**fitted)
        except UserError:
            raise
        except Exception as error:
            given = ", ".join(f"{name}={value!r}" for name, value in fitted.items())
            raise UserError(f"{self.key}: {self.path}({given}) failed: {what_happened(error)}") from error

    def _fitted(
        self, arguments: Mapping[str, Any], if_taken: Mapping[str, Any]
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        function = imported(self.path, self.key)
        if not callable(function):
            raise UserError(
                f"{self.key}: {self.path} is a {type(function).__name__}; expected something to call"
            )
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:  # of a builtin nothing is known before the call
            return function, {**arguments, **self.options}
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        by_name = {
            name
            for name, one in parameters.items()
            if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)
        }
        for key, given in ((self.key, arguments), (self.options_key, self.options)):
            if not takes_all and (unknown := [name for name in given if name not in by_name]):
                hint = did_you_mean(unknown[0], sorted(by_name)) or f"it takes ({', '.join(by_name)})"
                raise UserError(f"{key}: {self.path} takes no argument {unknown[0]!r}; {hint}")
        wished = {name: value for name, value in if_taken.items() if name in by_name}
        fitted = {**arguments, **wished, **self.options}
        required = [
            name
            for name, one in parameters.items()
            if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        ]
        if missing := [name for name in required if name not in {*fitted, *if_taken}]:
            raise UserError(
                f"{self.options_key}: {self.path} needs {missing[0]!r}, which is not given; expected it here"
            )
        return function, fitted


def what_happened(error: BaseException) -> str:
    """An exception of the user's code in one line, with where it was raised."""
    words = (str(error) or "no reason given").splitlines()[0]
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {words}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_OTHERS)]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {words}{place}"
