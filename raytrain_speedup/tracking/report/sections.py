"""What a report's answer rests on, and what is missing: a section each."""

from __future__ import annotations

from collections.abc import Sequence

from raytrain_speedup.tracking.leaderboard import Row
from raytrain_speedup.tracking.outcome import row_in_words
from raytrain_speedup.tracking.report import plots
from raytrain_speedup.tracking.report.content import Missing, Report
from raytrain_speedup.tracking.report.html import Html, element, joined
from raytrain_speedup.tracking.report.words import margin_of, spoken_time, verdict_class
from raytrain_speedup.tracking.table import cells, columns

MOST_TRIALS = 40
"""Rows of the search in the table: the best ones."""

KINDS = ("baseline", "winner", "control", "trial")
MOST_IDS = 6
COMMIT_CHARACTERS = 10


def _legend(*kinds: str) -> Html:
    return element("span", [element("span", kind, class_=f"key {kind}") for kind in kinds], class_="keys")


def front_section(report: Report) -> Html:
    """Speedup against the difference, with both intervals."""
    drawn = plots.front(report)
    if drawn is None:
        return element("p", "No run can be compared with a baseline yet.")
    return joined(
        element("figure", drawn),
        element(
            "p",
            _legend(*KINDS, "front"),
            " To the right is faster, up is better; the bars are the intervals of both, cut where "
            "they leave the frame. A trial is one seed, on validation data: chosen, and no evidence. Nothing that "
            "is confirmed beats the front in both.",
            class_="quiet",
        ),
    )


def ranking(report: Report) -> Html:
    """The leaderboard as a table that sorts."""
    shown = [*([report.baseline] if report.baseline else []), *report.confirmed, *report.trials[:MOST_TRIALS]]
    if not shown:
        return element("p", "No run has finished.")
    places = [_Place("command", [row.command for row in shown]),
              _Place("commit", [_commit(row.commit) for row in shown]),
              _Place("hardware", [row.hardware for row in shown])]  # fmt: skip
    own = [place for place in places if place.differs]
    heads = ["setting", *columns(shown, wide=True), "cost s", "verdict", "run"]
    table = element(
        "table",
        element(
            "thead",
            element("tr", [element("th", head, scope="col") for head in [*heads, *(p.name for p in own)]]),
        ),
        element("tbody", [_table_row(row, report, own, number) for number, row in enumerate(shown)]),
        class_="sortable",
    )
    same = [f"{place.name}: {place.values[0]}" for place in places if not place.differs and place.values[0]]
    left = len(report.trials) - MOST_TRIALS
    return joined(
        element("div", table, class_="wide"),
        element("p", "All of them: " + " · ".join(same), class_="quiet") if same else None,
        element("p", f"and {left:,} trials more: speedup leaderboard --all", class_="quiet")
        if left > 0
        else None,
        _disturbances(shown, report),
    )


def _disturbances(rows: Sequence[Row], report: Report) -> Html:
    """What a tilde beside a speedup means, for who asks: on a busy machine it is a long list."""
    words = [
        (row, ", ".join(filter(None, [row.comparison.speedup.disturbed, row.comparison.speedup.doubt])))
        for row in rows
        if row.comparison is not None
    ]
    disturbed = [(row, why) for row, why in words if why]
    if not disturbed:
        return element("p", "Nothing disturbed the runs of these settings.", class_="quiet")
    return element(
        "details",
        element("summary", f"~ What disturbed {len(disturbed)} of {len(words)} settings"),
        element(
            "ul",
            [element("li", element("code", report.ids[row.run_id]), f" {why}") for row, why in disturbed],
        ),
    )


class _Place:
    """What may differ from row to row: a column if it does, a line below the table if not."""

    def __init__(self, name: str, values: Sequence[str]) -> None:
        self.name, self.values = name, values
        self.differs = len(set(values)) > 1


def _commit(commit: str) -> str:
    sha, dash, dirty = commit.partition("-")
    return sha[:COMMIT_CHARACTERS] + dash + dirty


def _table_row(row: Row, report: Report, places: Sequence[_Place], number: int) -> Html:
    setting, *numbers, verdict = (str(cell) for cell in cells(row, wide=True))
    keys = (row.accuracy, row.difference, row.speedup, row.passes_saved, len(row.seeds), row.flops_ratio)
    cost = "" if row.train_seconds is None else f"{row.train_seconds:,.1f}"
    sorted_by = [*zip(numbers, keys, strict=True), (cost, row.train_seconds)]
    grey = row.role == "trial"
    return element(
        "tr",
        element("th", setting, scope="row", data_key=number),
        [element("td", text, class_="number", data_key=key) for text, key in sorted_by],
        element("td", verdict, class_=None if grey else verdict_class(row) if row.verdict else None),
        element("td", element("code", report.ids[row.run_id])),
        [element("td", place.values[number]) for place in places],
        class_="trial" if grey else None,
        data_run=row.run_id,
    )


def curves(report: Report) -> Html:
    """What quality a run had at what cost."""
    drawn = plots.learning_curves(report)
    if not drawn:
        return element("p", "No run was evaluated more than once.")
    return joined(
        element("div", [element("figure", one) for one in drawn], class_="pair"),
        element("p", _legend(*KINDS), " Validation data, after every evaluation; of a setting with several seeds "
                "the first. Seconds are wall seconds of training, which a busy machine stretches.", class_="quiet"),
    )  # fmt: skip


def importance_section(report: Report) -> Html:
    """Of the searched keys."""
    if not report.importances:
        return element("p", "Too few trials finished to tell: it takes four, and two values of a setting.")
    return joined(
        element("div", [plots.importance_bars(objective, found) for objective, found in report.importances.items()],
                class_="pair"),
        element("p", "Fraction of what varies over the finished trials that a setting explains (Optuna). Of few "
                "trials it is a hint.", class_="quiet"),
    )  # fmt: skip


def negative(report: Report) -> Html:
    """What a control does, and what did not help."""
    controls = [f"control: {row_in_words(row)}." for row in report.controls]
    worse = [f"{row_in_words(row)}." for row in report.negative if row not in report.controls]
    below = [row for row in report.trials if row.gain is not None and row.gain < -row.margin]
    lines = [*controls, *worse]
    if below:
        lines.append(
            f"{len(below)} of {len(report.trials)} trials of the search ended more than the margin of "
            f"{margin_of(below[0])} below the baseline (one seed, validation data)."
        )
    if not report.controls:
        lines.append("No control ran beside the baseline: nothing says that a simpler saving would not do.")
    return element("ul", [element("li", line) for line in lines])


def left_out(report: Report) -> Html:
    """Runs that are no evidence."""
    if not report.left_out:
        return element("p", "Nothing: every run finished and was compared.")
    return _table(
        ("what happened", "why", "runs", "which"),
        [
            (one.state, one.reason if one.reason != one.state else "", len(one.rows), _some(one.rows, report))
            for one in report.left_out
        ],
    )


def _some(found: Sequence[Row], report: Report) -> str:
    names = [f"{row.settings or row.label} ({report.ids[row.run_id]})" for row in found[:MOST_IDS]]
    return ", ".join(names) + (f" and {len(found) - MOST_IDS} more" if len(found) > MOST_IDS else "")


def missing(report: Report) -> Html:
    """What it takes to a verdict."""
    if not report.confirmed:
        return joined(
            element(
                "p", "No setting was run over several seeds, so there is no verdict on any. This runs them:"
            ),
            element("pre", f"speedup confirm {report.target}"),
        )
    if not report.missing:
        return element("p", "Nothing: every confirmed setting has its verdict.")
    table = _table(
        ("setting", "seeds more", "time more", "why"),
        [
            (
                f"{one.row.label} {one.row.settings}".strip(),
                "" if one.seeds is None else one.seeds,
                "" if one.seconds is None else spoken_time(one.seconds),
                _why_open(one),
            )
            for one in report.missing
        ],
    )
    return joined(table, element("pre", f"speedup confirm {report.target} --max-seeds N"))


def _why_open(one: Missing) -> str:
    if one.row.plan is None:
        return "outside the plan of the confirmation: its seeds are those that were asked for"
    if one.seeds is None:
        return "its estimate is too close to the margin for any number of seeds"
    return (
        "should the estimate stay as it is; the time is of this setting and the baseline, one after the other"
    )


def cost(report: Report) -> Html:
    """In time, and in runs that pay it back."""
    spent, baseline = report.cost, report.baseline
    lines = [f"{spent.runs} runs took {spoken_time(spent.seconds)} of wall time, one after the other."]
    if spent.unknown:
        lines.append(f"Of {spent.unknown} of them, which did not finish, the time is not known.")
    if spent.pays_after is not None and baseline is not None:
        lines.append(
            f"The proven setting saves {spoken_time(spent.saved or 0.0)} of the "
            f"{spoken_time(baseline.train_seconds or 0.0)} that the baseline trains, so the search is paid back "
            f"after {spent.pays_after:,} such runs."
        )
    else:
        lines.append("No proven setting saves time, so it is not paid back yet.")
    return element("p", " ".join(lines))


def use(report: Report) -> Html:
    """The commands and the loop."""
    if report.answer is None:
        return element("p", "There is nothing to use yet.")
    run, name = report.ids[report.answer.run_id], f"{report.experiment}-schedule"
    if report.proven:
        export, words = (
            f"speedup export {run} -o schedule.yaml",
            "Write the proven setting as a schedule file:",
        )
    else:
        export = f"speedup export {run} -o schedule.yaml --unproven"
        words = (
            "No setting is proven. This writes the safest one all the same; a loop that loads it is warned:"
        )
    loop = (
        "from raytrain_speedup.schedule import load_schedule\n\n"
        'pruner = load_schedule("schedule.yaml").pruner(len(inputs), epochs=10)\n'
        "for epoch in range(10):\n"
        "    for index, weight in pruner.plan(epoch).batches(64):\n"
        '        losses = cross_entropy(model(inputs[index]), target[index], reduction="none")\n'
        "        pruner.observe(index, losses.detach())\n"
        "        (losses * weight).mean().backward()\n"
    )
    by_name = f'load_schedule("models:/{name}@proven")'
    return joined(
        element("p", words), element("pre", export),
        element("p", "and any loop of PyTorch takes it:"), element("pre", loop),
        element("p", "or, without a file, ", element("code", by_name)) if report.proven else None,
    )  # fmt: skip


def _table(heads: Sequence[str], lines: Sequence[Sequence[object]]) -> Html:
    """A small table."""
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", [element("th", head, scope="col") for head in heads])),
            element("tbody", [element("tr", [element("td", cell) for cell in line]) for line in lines]),
        ),
        class_="wide",
    )
