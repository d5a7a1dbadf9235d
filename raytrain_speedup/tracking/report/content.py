"""What a report says, gathered from the leaderboard and the runs it was made of.

Every verdict, interval and speedup is the leaderboard's. Added is what only makes sense of a whole search: what it
cost and when that is paid back, what a verdict still lacks, and what was left out of it and why.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from raytrain_speedup.tracking.leaderboard import SEARCHED, Row, best, rows, safest
from raytrain_speedup.tracking.outcome import control_sentence, verdict_sentence
from raytrain_speedup.tracking.store import Record, short_ids
from raytrain_speedup.tracking.tracker import EPOCH, Tracker

CURVES = 24
"""Runs whose curves are drawn: each is three questions to a tracker, and more lines are a tangle."""

COMPUTE = ("train_flops", "compute_spent", "samples_shown")
"""An epoch's metrics that count compute; the first that a run has is drawn."""

SECONDS = "train_seconds"

Importances = Mapping[str, Mapping[str, float]]
"""By objective, the fraction of its variation over the trials that each searched key explains."""


@dataclass(frozen=True)
class Curve:
    """A run's quality over what it had cost by then: pairs of cost and quality."""

    row: Row
    by_compute: Sequence[tuple[float, float]]
    by_time: Sequence[tuple[float, float]]
    compute: str


@dataclass(frozen=True)
class Cost:
    """What the runs took, in wall seconds, and what the answer saves.

    Attributes:
        unknown: runs that did not finish and were never heard of; their time is missing.
        saved: training seconds that one run of the baseline's budget saves; None where no setting is proven.
    """

    runs: int
    seconds: float
    unknown: int
    saved: float | None

    @property
    def pays_after(self) -> int | None:
        """How many runs in production save what the search cost; None where none does."""
        return math.ceil(self.seconds / self.saved) if self.saved and self.saved > 0 else None


@dataclass(frozen=True)
class Missing:
    """What a row lacks to a verdict, should its estimate stay: seeds, and wall seconds of them and the baseline's.
    None where no number would do."""

    row: Row
    seeds: int | None
    seconds: float | None


@dataclass(frozen=True)
class LeftOut:
    """Runs that are no evidence, for one reason."""

    state: str
    reason: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Report:
    """The content of a page.

    Attributes:
        target: what the commands of the page name: the sweep or the experiment.
        about: the question, in a sentence.
        control: what does as well without the method, in a sentence.
        answer: the proven setting, or else the one whose loss is bounded best.
        confirmed: rows that have, or could have, a verdict; `trials` are the finished ones of the search.
        negative: of these, what lost accuracy or saved no time.
        importances: by objective; empty where there were too few trials to tell.
    """

    target: str
    experiment: str
    about: str
    sentence: str
    control: str | None
    baseline: Row | None
    answer: Row | None
    confirmed: Sequence[Row]
    trials: Sequence[Row]
    controls: Sequence[Row]
    negative: Sequence[Row]
    left_out: Sequence[LeftOut]
    missing: Sequence[Missing]
    cost: Cost
    ids: Mapping[str, str]
    curves: Sequence[Curve] = ()
    importances: Importances = field(default_factory=dict)

    @property
    def proven(self) -> bool:
        return self.answer is not None and self.answer.verdict == "lossless"


def gather(
    records: Sequence[Record],
    *,
    target: str,
    about: str = "",
    tracker: Tracker | None = None,
    importances: Importances | None = None,
) -> Report:
    """The content of a report.

    Args:
        records: the runs of a sweep, or of an experiment.
        tracker: has their curves; without it none are drawn.
        importances: of the searched keys.
    """
    found = rows(records)
    finished = [row for row in found if row.state == "finished"]
    baseline = next((row for row in finished if row.role == "baseline"), None)
    confirmed = [row for row in finished if row.role not in ("trial", "baseline")]
    trials = [row for row in finished if row.role == "trial"]
    answer = best(found) or safest(found)
    return Report(
        target=target,
        experiment=records[0].experiment if records else target,
        about=about,
        sentence=verdict_sentence(found),
        control=control_sentence(found),
        baseline=baseline,
        answer=answer,
        confirmed=confirmed,
        trials=trials,
        controls=[row for row in confirmed if row.role not in (*SEARCHED, "run")],
        negative=[row for row in confirmed if row.verdict == "lossy" or (row.speedup or math.inf) < 1],
        left_out=_left_out(found),
        missing=_missing(confirmed, baseline, records),
        cost=_cost(records, baseline, best(found)),
        ids=short_ids(run_id for row in found for run_id in row.run_ids),
        curves=[] if tracker is None else _curves(tracker, finished),
        importances=importances or {},
    )


def _cost(records: Sequence[Record], baseline: Row | None, proven: Row | None) -> Cost:
    saved = None
    if proven is not None and proven.speedup and baseline is not None and baseline.train_seconds:
        saved = baseline.train_seconds * (1 - 1 / proven.speedup)
    seconds = [record.wall_seconds for record in records]
    return Cost(len(records), sum(seconds), sum(not one for one in seconds), saved)


def _left_out(found: Sequence[Row]) -> list[LeftOut]:
    """By state and reason, the most frequent first: what did not finish, and what could not be compared."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in found:
        if row.state != "finished" or row.note:
            groups[("not compared" if row.state == "finished" else row.state, row.note)].append(row)
    sets = [LeftOut(state, reason, group) for (state, reason), group in groups.items()]
    return sorted(sets, key=lambda one: (-len(one.rows), one.state, one.reason))


def _missing(confirmed: Sequence[Row], baseline: Row | None, records: Sequence[Record]) -> list[Missing]:
    """Of rows without a verdict: a seed takes a run of theirs and one of the baseline."""
    seconds = {record.run_id: record.wall_seconds for record in records}

    def one_run(row: Row | None) -> float:
        return 0.0 if row is None else fmean(seconds[run_id] for run_id in row.run_ids)

    found = []
    for row in confirmed:
        if row.comparison is not None and row.verdict == "not yet known":
            seeds = row.comparison.look.seeds_missing
            more = None if seeds is None else seeds * (one_run(row) + one_run(baseline))
            found.append(Missing(row, seeds, more))
    return found


def _curves(tracker: Tracker, finished: Sequence[Row]) -> list[Curve]:
    """Of the first run of each row, in the order of the leaderboard; the trials come after all others."""
    ordered = sorted(finished, key=lambda row: row.role == "trial")
    found = (_curve(tracker, row) for row in ordered[:CURVES])
    return [curve for curve in found if curve is not None]


def _curve(tracker: Tracker, row: Row) -> Curve | None:
    quality = tracker.curve(row.run_ids[0], EPOCH + row.ranking.key("validation"))
    if len(quality) < 2:
        return None
    for compute in COMPUTE:
        if spent := dict(tracker.curve(row.run_ids[0], EPOCH + compute)):
            break
    seconds = dict(tracker.curve(row.run_ids[0], EPOCH + SECONDS))
    return Curve(row, _pairs(spent, quality), _pairs(seconds, quality), compute)


def _pairs(costs: Mapping[int, float], quality: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    both = [(costs[step], value) for step, value in quality if step in costs]
    return [(cost, value) for cost, value in both if math.isfinite(cost) and math.isfinite(value)]
