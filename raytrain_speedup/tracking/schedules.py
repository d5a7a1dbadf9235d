"""Schedules by name: looked up where they were published, listed, compared, and promoted to an alias.

A production loop asks for `models:/NAME@production`; which version that is, is decided by `speedup schedules
promote`, without touching the loop.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from raytrain_speedup.schedule_file import Schedule, parse_schedule
from raytrain_speedup.settings import UserError, flatten
from raytrain_speedup.tracking import mlflow_rest, open_tracker, uri_or_default
from raytrain_speedup.tracking.export import find
from raytrain_speedup.tracking.tracker import SCHEDULE_FILE, NotTracked, Tracker, Version, split_name

WHOLE_ID = 32
EXPECTED = "expected models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME or runs:/RUN"


def published_text(uri: str, tracking_uri: str | None = None) -> str:
    """The text of a schedule in a tracker.

    Where MLflow is not installed, its server is asked directly.

    Args:
        uri: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/NAME` or `runs:/RUN`.

    Raises:
        UserError: if there is none, or no way to it.
    """
    where = uri_or_default(tracking_uri)
    scheme, _, name = uri.partition(":/")
    try:
        tracker = open_tracker(where)
    except ImportError:
        if not where.startswith("http"):
            raise UserError(
                f"{uri}: {where} cannot be read without MLflow; expected `pip install mlflow`, a tracking "
                "server (http://host:5000), or the schedule's file"
            ) from None
        return mlflow_rest.published_text(where, uri)
    try:
        run_id = _run_id(tracker, name) if scheme == "runs" else version_of(tracker, name).run_id
        return tracker.read_text(run_id, SCHEDULE_FILE)
    except NotTracked as error:
        raise UserError(f"{uri}: {error}; {EXPECTED} that `speedup export` has written") from None


def _run_id(tracker: Tracker, beginning: str) -> str:
    """A run's whole id; its beginning is what the leaderboard shows."""
    return beginning if len(beginning) == WHOLE_ID else find(tracker, beginning).run_id


def version_of(tracker: Tracker, name: str) -> Version:
    """The version that is called so.

    Raises:
        NotTracked: naming those there are.
    """
    return tracker.version(*split_name(name))


def read_version(tracker: Tracker, version: Version) -> Schedule:
    """The schedule that a version is.

    Raises:
        UserError: if it cannot be read.
    """
    source = f"models:/{version.name}/{version.version}"
    try:
        return parse_schedule(tracker.read_text(version.run_id, SCHEDULE_FILE), source)
    except NotTracked as error:
        raise UserError(f"{source}: {error}") from None


def promote(tracker: Tracker, name: str, alias: str, *, unproven: bool = False) -> Version:
    """Let an alias point at a version, and at no other from now on.

    Args:
        name: as in `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `models:/NAME`.
        unproven: also where its evidence is not that nothing is lost.

    Raises:
        UserError: if there is no such version, or it is not proven.
    """
    try:
        version = version_of(tracker, name)
        schedule = read_version(tracker, version)
        if not schedule.proven and not unproven:
            raise UserError(
                f"{version.name}/{version.version}: not proven ({schedule.headline()}); expected a lossless "
                "schedule, or --unproven"
            )
        tracker.set_alias(version.name, alias.removeprefix("@"), version.version)
    except NotTracked as error:
        raise UserError(str(error)) from None
    return version


def list_table(tracker: Tracker, name: str | None = None) -> Table:
    """The versions of a schedule, or of all."""
    table = Table("schedule", "aliases", "tuned on", "evidence", "run")
    for version in tracker.versions(name):
        schedule = read_version(tracker, version)
        tuned = schedule.tuned_on
        table.add_row(
            f"{version.name}/{version.version}",
            " ".join(f"@{alias}" for alias in version.aliases),
            f"{tuned.data.get('source')}, {tuned.model.get('name')}, {tuned.train.get('epochs')} epochs",
            schedule.headline(),
            version.run_id[:8],
        )
    return table


def compare_table(tracker: Tracker, names: tuple[str, str]) -> Table:
    """Every key in which two schedules differ.

    Raises:
        UserError: if there is no such schedule.
    """
    try:
        versions = [version_of(tracker, name) for name in names]
    except NotTracked as error:
        raise UserError(str(error)) from None
    contents = [flatten(read_version(tracker, version).model_dump(mode="json")) for version in versions]
    table = Table("key", *(f"{version.name}/{version.version}" for version in versions))
    for key in dict.fromkeys(key for content in contents for key in content):
        values = [content.get(key) for content in contents]
        if values[0] != values[1]:
            table.add_row(key, *map(_shown, values))
    return table


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
