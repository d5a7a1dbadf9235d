"""Thousands of runs out of MLflow's SQLite file in a second: three queries instead of a page of objects each.

`search_runs` builds every run with all its params and the metrics of its epochs: 163 s for ten thousand runs, of
which a leaderboard needs a tenth of the values. The file is opened read-only, and only where its tables are of
a version that this was written for: MLflow changes them now and then, and its own reader always fits.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from raytrain_speedup.metric import ACCURACY, Metric
from raytrain_speedup.tracking.tracker import EPOCH, OURS, Entry

SQLITE = "sqlite:///"
"""How the tracking URI of a file begins."""

KNOWN_SCHEMAS = {"dc11669786a5"}
"""Versions of MLflow's tables (`alembic_version`) whose columns read below are as they are read."""

PARENT = "mlflow.parentRunId"
"""MLflow's tag of a run that another one holds."""

CHOSEN = """
SELECT r.run_uuid, r.name, e.name, r.start_time, p.value
FROM runs r
JOIN experiments e ON e.experiment_id = r.experiment_id
JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = :tag AND t.value != ''
LEFT JOIN tags p ON p.run_uuid = r.run_uuid AND p.key = :parent_tag
WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'
AND (:experiment IS NULL OR e.name = :experiment)
AND (:value IS NULL OR t.value = :value)
AND (:parent IS NULL OR p.value = :parent)
ORDER BY r.start_time, r.run_uuid
"""
TAGS = "SELECT number, key, value FROM chosen CROSS JOIN tags USING (run_uuid) WHERE key >= ? AND key < ?"
METRICS = """
SELECT number, key, value, is_nan FROM chosen JOIN latest_metrics USING (run_uuid) WHERE key < ? OR key >= ?
"""

SOME_METRICS = """
SELECT number, key, value, is_nan FROM chosen CROSS JOIN latest_metrics USING (run_uuid) WHERE key IN ({})
"""
"""A cross join keeps the order: each key of each run is one look into the primary key."""

METRIC = f"{OURS}metric"


def read_runs(
    path: Path,
    *,
    experiment: str | None,
    tag: str,
    value: str | None,
    parent: str | None,
    wanted: Collection[str] | None = None,
) -> list[Entry] | None:
    """As `Tracker.runs`; None where the tables are of a version that is not known here.

    Args:
        path: the SQLite file.
    """
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
        versions = {version for (version,) in database.execute("SELECT version_num FROM alembic_version")}
        if not versions <= KNOWN_SCHEMAS:
            return None
        database.execute("BEGIN")  # all that follows is of one moment
        asked = {"experiment": experiment, "tag": tag, "value": value, "parent": parent}
        chosen = database.execute(CHOSEN, {**asked, "parent_tag": PARENT}).fetchall()
        # Numbers for ids: half a million strings of 32 characters take as long to make as all else. In the order of
        # the indices: in that of time each look meets another page, and reading takes twice as long.
        database.execute("CREATE TEMP TABLE chosen (number INTEGER, run_uuid TEXT)")
        ids = sorted((run_id, number) for number, (run_id, *_) in enumerate(chosen))
        database.executemany("INSERT INTO chosen (run_uuid, number) VALUES (?, ?)", ids)
        tags: list[dict[str, str]] = [{} for _ in chosen]
        for number, key, text in database.execute(TAGS, _range(OURS)):
            tags[number][key] = text
        metrics: list[dict[str, float]] = [{} for _ in chosen]
        for number, key, measured, is_nan in _metrics(database, tags, wanted):
            metrics[number][key] = math.nan if is_nan else measured
    return [
        Entry(run_id, name or run_id[:8], of, started, above, tags[number], metrics[number])
        for number, (run_id, name, of, started, above) in enumerate(chosen)
    ]


def _metrics(
    database: sqlite3.Connection, tags: Sequence[Mapping[str, str]], wanted: Collection[str] | None
) -> Iterator[tuple[int, str, float, int]]:
    """Number, key, value and whether it is NaN, of all final metrics or of those wanted, each looked up."""
    if wanted is None:
        return database.execute(METRICS, _range(EPOCH))
    ranking = [Metric(name) for name in {run.get(METRIC, ACCURACY.name) for run in tags}]
    keys = sorted({*wanted, *(metric.key(split) for metric in ranking for split in ("test", "validation"))})
    return database.execute(SOME_METRICS.format(", ".join("?" * len(keys))), keys)


def _range(prefix: str) -> tuple[str, str]:
    """What keys with a prefix are not below, and what they are below."""
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)
