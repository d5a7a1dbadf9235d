"""Baselines of earlier sweeps: a baseline that ran already, of the same everything, does not run again.

The first baseline of a sweep always runs. What it reports of itself (model, data and their fingerprint, training,
set-up, hardware) is what an earlier run must agree in, beside its settings, seed, commit and package version: so
nothing has to be guessed of data or machine that changed meanwhile. Cost is compared in reference steps, which an
earlier day's machine does not change (`engine/cost`).
"""

from __future__ import annotations

from operator import attrgetter

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.provenance import provenance
from raytrain_speedup.tracking.run_log import RunLog, group_of
from raytrain_speedup.tracking.tracker import OURS, Tracker
from raytrain_speedup.tuning.planned import BASELINE, PlannedRun

AGREES = attrgetter("baseline_key", "train_key", "data_fingerprint", "setup", "hardware", "epochs")
"""What is equal in a reused baseline and in the first one of the sweep."""

REUSED = f"{OURS}reused"
"""The tag of a copy that says of which run it is."""


class BaselineLibrary:
    """Finds baselines of other sweeps, and writes them down as runs of this one.

    Args:
        tracker: holds both.
        parent: the run that holds this sweep.
        into: the tracker's experiment of this sweep.
        margin: of this sweep.
    """

    def __init__(self, tracker: Tracker, parent: str, *, into: str, margin: float) -> None:
        self._tracker, self._parent, self._into, self._margin = tracker, parent, into, margin
        here = provenance()
        self._code = here.get(store.COMMIT, ""), here.get(store.PACKAGE, "")
        dirty = self._code[0].endswith("-dirty")
        entries = [] if dirty else tracker.runs(tag=store.ROLE, value=BASELINE)
        self._known = [
            store.record_of(entry)
            for entry in entries
            if (entry.tags.get(store.COMMIT, ""), entry.tags.get(store.PACKAGE, "")) == self._code
            and entry.parent != parent
            and REUSED not in entry.tags
        ]

    def borrow(self, run: PlannedRun, first: FinalMetrics) -> FinalMetrics | None:
        """The final metrics of a baseline that has run elsewhere, written down here; None if there is none.

        Args:
            run: a baseline that is about to run.
            first: final metrics of the first baseline of this sweep.
        """
        group, seed = group_of(run.experiment), run.experiment.train.seed
        for known in reversed(self._known):
            if known.metrics is None or (known.group, known.seed) != (group, seed):
                continue
            if AGREES(known.metrics) == AGREES(first):
                self._copy(run, known)
                return known.metrics
        return None

    def _copy(self, run: PlannedRun, known: store.Record) -> None:
        log = RunLog.start(
            self._tracker,
            run.experiment,
            name=run.name,
            into=self._into,
            role=run.role,
            parent=self._parent,
            params=run.params,
            margin=self._margin,
        )
        self._tracker.set_tags(log.run_id, {REUSED: known.run_id})
        log.finish(known.final)
