"""The evidence of a sweep as a file that can be judged again, without the tracker it came from.

What is written is not the verdict but the runs it is of: their tags and final metrics, seed by seed, and what is
claimed of the best setting. Whoever gets the file, a continuous integration for instance, compares again and
believes what it finds. Names of users are left out.

The runs themselves are taken at their word: a file is no proof that they took place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.leaderboard import Row, best, rows, safest
from raytrain_speedup.tracking.tracker import Entry

VERSION = 1
CLAIMED = (
    *("method", "settings", "data", "model", "hardware", "metric", "direction", "split", "seeds", "accuracy"),
    *("baseline_accuracy", "difference", "interval", "margin", "verdict", "looks"),
    *("speedup", "speedup_interval", "speedup_clock", "flops_ratio", "passes_saved", "disturbed"),
)
"""Keys of `Row.to_dict` that a submission claims of its setting."""

LEFT_OUT = {store.USER, store.DRIVER, store.FOLDER}
RELATIVE, ABSOLUTE = 1e-9, 1e-12


def write_submission(entries: Sequence[Entry], path: Path) -> Row:
    """Write the finished runs of a sweep, but for the trials of the search, and what they say of its best setting.

    Raises:
        UserError: if no setting was run over several seeds.
    """
    kept = [entry for entry in entries if _is_evidence(entry)]
    row = _answer(kept)
    if row is None:
        raise UserError("--submit: no setting was confirmed over the seeds; expected a sweep with winners")
    content = {
        "version": VERSION,
        "claim": {key: row.to_dict()[key] for key in CLAIMED},
        "runs": [_plain(entry) for entry in kept],
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return row


def score(path: Path) -> tuple[Row, list[str]]:
    """Judge a submission by its runs alone.

    Returns:
        What they say of the best setting, and what was claimed otherwise, a line for each key.

    Raises:
        UserError: if the file is no submission.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise UserError(f"{path}: version {content['version']!r} is not known; expected {VERSION}")
        row, claim = _answer([_entry(one) for one in content["runs"]]), dict(content["claim"])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a row file") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: is no row file ({type(error).__name__}: {error}); expected one of `speedup report --submit`"
        ) from None
    if row is None:
        raise UserError(f"{path}: holds no setting with seeds and a baseline; expected confirmed runs")
    found = row.to_dict()
    wrong = [key for key in CLAIMED if not _same(found[key], claim.get(key))]
    return row, [f"{key}: {claim.get(key)!r} is claimed, the runs say {found[key]!r}" for key in wrong]


def _is_evidence(entry: Entry) -> bool:
    record = store.record_of(entry)
    return record.finished and record.role != "trial"


def _answer(entries: Sequence[Entry]) -> Row | None:
    found = rows([store.record_of(entry) for entry in entries])
    return best(found) or safest(found)


def _plain(entry: Entry) -> dict[str, Any]:
    """An entry as JSON has it, which has no number for what is none."""
    tags = {key: value for key, value in entry.tags.items() if key not in LEFT_OUT}
    metrics = {key: value if math.isfinite(value) else str(value) for key, value in entry.metrics.items()}
    return asdict(entry) | {"tags": tags, "metrics": metrics}


def _entry(plain: Mapping[str, Any]) -> Entry:
    metrics = {key: float(value) for key, value in plain["metrics"].items()}
    return Entry(**{**plain, "metrics": metrics})


def _same(found: Any, claimed: Any) -> bool:
    """Equal but for the last digits of numbers, which another machine may round otherwise."""
    if isinstance(found, tuple | list):
        alike = isinstance(claimed, tuple | list) and len(found) == len(claimed)
        return alike and all(_same(*pair) for pair in zip(found, claimed, strict=True))
    if isinstance(found, int | float) and isinstance(claimed, int | float):
        return math.isclose(found, claimed, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    return bool(found == claimed)
