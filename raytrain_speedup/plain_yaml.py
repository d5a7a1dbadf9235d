"""YAML that holds nothing but values: the file of a stranger is read in a moment, or refused in a line.

What JSON can say is allowed. Aliases are not: under a kilobyte of nested ones stands for more values than a
machine can go through. Neither are dates, sets, or a file too large or too deep to be one of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from raytrain_speedup.settings import UserError

LARGEST_FILE = 1 << 16


class _Dumper(yaml.SafeDumper):
    """Writes every value out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """Refuses aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            problem = f"aliases (*{event.anchor}) are not allowed; expected every value written out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


def dump(content: Mapping[str, Any]) -> str:
    """The content as YAML, keys in their order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


def load(source: str | Path) -> Any:
    """The values in a file.

    Args:
        source: a path, or a file:, http: or https: URL.

    Raises:
        UserError: if it cannot be read, or holds more than plain values.
    """
    return parse(_fetch(source), source)


def parse(raw: bytes, source: str | Path) -> Any:
    """The values in the bytes of a file.

    Args:
        source: what to call it.

    Raises:
        UserError: if it holds more than plain values.
    """
    try:
        content = yaml.load(raw.decode("utf-8"), Loader=_Loader)
        json.dumps(content, sort_keys=True)
    except RecursionError:
        raise UserError(f"{source}: nested too deeply; expected plain keys and values") from None
    except TypeError as error:
        raise UserError(f"{source}: {error}; expected plain keys and values") from None
    except (yaml.YAMLError, ValueError) as error:  # a number or date of no meaning, or bytes of none
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    return content


def _fetch(source: str | Path) -> bytes:
    try:
        if str(source).startswith(("http://", "https://", "file:")):
            with urlopen(str(source), timeout=30) as answer:
                raw: bytes = answer.read(LARGEST_FILE + 1)
        else:
            with Path(source).open("rb") as file:
                raw = file.read(LARGEST_FILE + 1)
    except (OSError, URLError, ValueError) as error:
        raise UserError(f"{source}: cannot be read ({error}); expected a file") from None
    if len(raw) > LARGEST_FILE:
        raise UserError(f"{source}: is larger than {LARGEST_FILE} bytes; expected a small file of values")
    return raw
