"""Every link of the README, the docs and the results leads to a file that is there, and to a heading in it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")])
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    shown = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in shown}


def broken(page: Path, text: str) -> list[str]:
    found = []
    for name, anchor in _LINK.findall(_CODE.sub("", text)):
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            found.append(f"{name} is not there")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            found.append(f"{name}#{anchor}: there is no such heading")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken(page, page.read_text(encoding="utf-8"))


def test_a_link_to_nowhere_is_noticed() -> None:
    page = ROOT / "README.md"
    assert broken(
        page, "[a](docs/none.md) [b](docs/data.md#none) [c](#layout-of-nothing) [d](docs/data.md)"
    ) == [
        "docs/none.md is not there",
        "docs/data.md#none: there is no such heading",
        "#layout-of-nothing: there is no such heading",
    ]
