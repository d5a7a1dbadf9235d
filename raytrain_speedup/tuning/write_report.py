"""`speedup report`: the page of a sweep, or of the single runs of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.report.content import Report, gather
from raytrain_speedup.tracking.report.page import html_page
from raytrain_speedup.tracking.report.submission import write_submission
from raytrain_speedup.tracking.store import Record
from raytrain_speedup.tracking.tracker import Entry, Tracker
from raytrain_speedup.tuning.parent import find_sweep, read_sweep
from raytrain_speedup.tuning.space import Sweep
from raytrain_speedup.tuning.study import importances


@dataclass(frozen=True)
class Source:
    """What a report is of: the runs of a sweep, or, where `sweep` is None, all those of an experiment."""

    tracker: Tracker
    target: str
    entries: list[Entry]
    sweep: Sweep | None

    @property
    def records(self) -> list[Record]:
        return [store.record_of(entry) for entry in self.entries]


def write_report(
    target: str | None, out: Path, *, submit: Path | None = None, tracking_uri: str | None = None
) -> Report:
    """Write the report of a sweep or an experiment.

    Args:
        target: as `find_source` takes it.
        out: the file of HTML.
        submit: a row file to write as well.

    Raises:
        UserError: if there is no such sweep or experiment, or nothing to submit.
    """
    tracker = open_tracker(tracking_uri)
    source = find_source(tracker, target)
    records = source.records
    about, found = "", {}
    if source.sweep is not None:
        about = source.sweep.settings.about
        found = importances(source.sweep, records)
    report = gather(records, target=source.target, about=about, tracker=source.tracker, importances=found)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html_page(report), encoding="utf-8")
    if submit is not None:
        write_submission(source.entries, submit)
    return report


def find_source(tracker: Tracker, target: str | None) -> Source:
    """The runs that a report is of.

    Args:
        target: a sweep's name (its last one) or the beginning of its run's id, or an experiment's name; None is
            the tracker's last sweep.

    Raises:
        UserError: naming what there is.
    """
    sweeps = tracker.runs(tag=store.SWEEP)
    name = target or (sweeps[-1].run_id if sweeps else None)
    parent = find_sweep(tracker, name) if name is not None else None
    if parent is not None:
        run = tracker.run(parent)
        entries = tracker.runs(run.experiment, tag=store.GROUP, parent=parent)
        return Source(tracker, run.name, entries, read_sweep(tracker, parent))
    known = sorted({sweep.name for sweep in sweeps} | set(tracker.experiments()))
    if target not in known:
        raise UserError(
            f"{target or 'report'}: no such sweep or experiment at {tracker.uri}; expected one of: "
            f"{', '.join(known) or 'none yet'}"
        )
    return Source(tracker, str(target), tracker.runs(target, tag=store.GROUP), None)
