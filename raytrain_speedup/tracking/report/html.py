"""Markup that cannot be forgotten to be escaped: whatever is no `Html` is text."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = {"meta", "line", "path", "circle", "rect", "polyline", "polygon", "br"}
"""Elements that hold nothing."""


class Html(str):
    """Markup, as it is."""


def element(name: str, /, *content: object, **attributes: object) -> Html:
    """An HTML or SVG element.

    Args:
        content: elements as they are, all else as escaped text; None is left out, lists and iterators are taken
            one by one.
        attributes: `class_` is class, `data_run` is data-run; None is left out, True has no value.
    """
    opened = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{opened}/>" if name != "meta" else f"<{opened}>")
    return Html(f"<{opened}>{joined(*content)}</{name}>")


def joined(*content: object) -> Html:
    """Elements and texts one after the other."""
    return Html("".join(_one(part) for part in content))


def _one(part: object) -> str:
    if part is None:
        return ""
    if isinstance(part, Html):
        return part
    if isinstance(part, str) or not isinstance(part, Iterable):
        return escape(str(part))
    return joined(*part)


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
