"""The report as one HTML file: the answer first, then what it rests on, then what is missing.

Style and script are in the page, which asks for nothing from elsewhere; without the script all of it can be read,
and nothing sorted. It follows the reader's dark or light, fits a telephone, and prints.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from importlib import resources

from raytrain_speedup.tracking.leaderboard import Row
from raytrain_speedup.tracking.provenance import package_version
from raytrain_speedup.tracking.report import sections
from raytrain_speedup.tracking.report.content import Report
from raytrain_speedup.tracking.report.html import Html, element
from raytrain_speedup.tracking.report.words import (
    bounds,
    difference_of,
    margin_of,
    seed_count,
    speedup_of,
    spoken_time,
    verdict_class,
)

SECTIONS = (
    ("Speedup against quality", sections.front_section),
    ("Every setting, best first", sections.ranking),
    ("Quality against compute and against time", sections.curves),
    ("Which settings matter", sections.importance_section),
    ("Controls and negative results", sections.negative),
    ("Left out, and why", sections.left_out),
    ("Still missing for a verdict", sections.missing),
    ("What the search cost", sections.cost),
    ("How to use it", sections.use),
)
"""Heading and content, in their order on the page."""


def html_page(report: Report) -> str:
    """The whole file."""
    body = element(
        "main",
        _head(report),
        [element("section", element("h2", title), content(report)) for title, content in SECTIONS],
        _foot(report),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{report.target}: {report.sentence}"),
        element("style", _file("page.css")),
    )
    page = element("html", head, element("body", body, element("script", _file("page.js"))), lang="en")
    return f"<!doctype html>\n{page}\n"


def _file(name: str) -> Html:
    """Of this folder; ours, so no text of a user's."""
    return Html(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _head(report: Report) -> Html:
    return element(
        "header",
        element("p", f"{report.target}, {datetime.now():%d %B %Y}", class_="quiet"),
        element("h1", report.sentence),
        element("p", report.control, class_="caution") if report.control else None,
        element("p", report.about) if report.about else None,
        _facts(report),
    )


def _facts(report: Report) -> Html:
    """What a reader came for, in five boxes."""
    row, cost = report.answer, report.cost
    if row is None:
        return element("p", f"{cost.runs} runs, none of which can be compared with a baseline yet.")
    verdict = row.verdict or "not yet known"
    pays = "" if cost.pays_after is None else f"; paid back after {cost.pays_after:,} training runs"
    use = f"speedup export {report.ids[row.run_id]}" + ("" if report.proven else " --unproven")
    facts = [
        ("How much faster", speedup_of(row), bounds(row.speedup_interval, "{:.2f}".format, "90 %")),
        (
            f"At what {row.ranking.spoken}",
            difference_of(row),
            bounds(row.interval, partial(row.ranking.text, signed=True), "95 %"),
        ),
        ("How sure", verdict, _certainty(row)),
        ("What the search cost", spoken_time(cost.seconds), f"{cost.runs} runs{pays}"),
        ("How to use it", element("code", use), "then load_schedule in your loop"),
    ]
    return element(
        "dl",
        [
            element("div", element("dt", name), element("dd", value, class_="value"), element("dd", more))
            for name, value, more in facts
        ],
        class_=f"facts {verdict_class(row)}",
    )


def _certainty(row: Row) -> str:
    over = f"over {seed_count(len(row.seeds))}, margin {margin_of(row)}"
    return over if row.plan is None else f"{over}, error {row.plan.error:.0%} over all looks and winners"


def _foot(report: Report) -> Html:
    words = f"Made by raytrain_speedup {package_version()}: speedup report {report.target}"
    return element("footer", element("p", words, class_="quiet"))
