"""The database: made once, by whoever is first; and what cannot be one is told in a line."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from full_disk import fill, tiny_disk

from raytrain_speedup import retry, tracking
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import open_tracker
from raytrain_speedup.tracking.patience import first_sentence
from raytrain_speedup.tracking.tracker import Tracker, TrackingLost

FIRST_COMMAND = """
import sys, time
from pathlib import Path
from raytrain_speedup.tracking import open_tracker
Path(sys.argv[2]).touch()
while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
print(open_tracker(f"sqlite:///{sys.argv[1]}").start("shared", "first", {"speedup.role": "run"}))
"""


def first_command(database: Path, ready: Path, together: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FIRST_COMMAND, str(database), str(ready), str(together)],
        env=os.environ | {"PYTHONPATH": str(Path(tracking.__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_first_commands_killed_and_at_once_make_one_database(tmp_path: Path) -> None:
    """One is killed while it makes the tables; then two begin at the same moment. With MLflow alone either
    leaves tables that no migration gets past, for ever."""
    database, together = tmp_path / "new" / "mlflow.db", tmp_path / "go"
    together.touch()
    with first_command(database, tmp_path / "killed", together) as killed:
        while not any(file.stat().st_size for file in tmp_path.rglob("mlflow.db")) and killed.poll() is None:
            time.sleep(0.01)
        killed.kill()
    assert killed.returncode == -signal.SIGKILL
    together.unlink()
    ready = [tmp_path / f"ready-{number}" for number in range(2)]
    processes = [first_command(database, mark, together) for mark in ready]
    while not all(mark.exists() for mark in ready) and all(process.poll() is None for process in processes):
        time.sleep(0.05)
    together.touch()
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    found = open_tracker(f"sqlite:///{database}").runs("shared", tag="speedup.role")
    runs = {run.run_id for run in found}
    assert runs == {out.strip() for out, _ in told} and len(runs) == 2
    assert [file.name for file in database.parent.iterdir()] == ["mlflow.db"], "nothing is left lying about"


@pytest.mark.parametrize("content", [None, b"no database at all" * 100])
def test_what_is_no_database_is_reported_at_once(content: bytes | None, tmp_path: Path) -> None:
    place = tmp_path / "mlflow.db"
    if content is None:
        place.mkdir()
    else:
        place.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(UserError, match="does not answer .(unable to open|file is not a) database.") as told:
        open_tracker(f"sqlite:///{place}")
    assert len(str(told.value).splitlines()) == 1
    assert time.monotonic() - start < 20, "MLflow would try for 100 s"


def copied(tracker: Tracker, folder: Path) -> str:
    """A database with its tables, made in no time; gives its address."""
    place = folder / "mlflow.db"
    with (
        closing(sqlite3.connect(tracker.uri.removeprefix("sqlite:///"))) as source,
        closing(sqlite3.connect(place)) as target,
    ):
        source.backup(target)
    return f"sqlite:///{place}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with tiny_disk(tmp_path / "disk") as place:
        yield place


def test_a_full_disk_is_a_line(disk: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the database is made, and after; and where space comes in time nothing is lost."""
    filler = fill(disk)
    with pytest.raises(UserError, match="does not answer .*(No space left|disk is full)") as told:
        open_tracker(f"sqlite:///{disk / 'other.db'}")
    assert len(str(told.value).splitlines()) == 1
    filler.unlink()
    tracker = open_tracker(copied(tracker, disk))
    run = tracker.start("full", "run", {})
    tracker.log_text(run, "x", "small.txt")
    filler = fill(disk)
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 1.0)
    with pytest.raises(TrackingLost, match="disk is full") as lost:
        for number in range(100):  # the pages that are there have some room
            tracker.set_tags(run, {f"tag-{number}": "x" * 4000})
    assert len(str(lost.value).splitlines()) == 1 and tracker.lost is lost.value
    monkeypatch.setattr(retry, "PATIENCE_SECONDS", 30.0)
    start = time.monotonic()
    with pytest.raises(TrackingLost):
        tracker.set_tags(run, {"last": "x" * 5000})
    assert time.monotonic() - start < 15, "given up once, a call is tried once"
    filler.unlink()
    tracker.set_tags(run, {"last": "x" * 4000})


def test_a_database_that_is_away_for_a_while_is_waited_for(
    tmp_path: Path, tracker: Tracker, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "mlflow.db"
    tracker = open_tracker(copied(tracker, tmp_path))
    run = tracker.start("away", "run", {})
    mover = subprocess.Popen(
        f"mv {database} {database}.away; sleep 1.5; mv {database}.away {database}", shell=True
    )
    while database.exists():
        time.sleep(0.01)
    tracker.set_tags(run, {"speedup.meanwhile": "x"})
    assert mover.wait() == 0, "the call came back because the database did"
    assert tracker.run(run).tags["speedup.meanwhile"] == "x" and tracker.lost is None
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"tracking at sqlite:///{database} does not answer (")
    assert said[0].endswith("trying again for up to 120 s")


def test_the_reason_is_the_databases_own_word() -> None:
    page = "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO tags]\n(Background on this"
    advice = "(raised as a result of Query-invoked autoflush; consider using a no_autoflush block)\n"
    for text in (page, advice + page):
        assert first_sentence(Exception(text)) == "(sqlite3.OperationalError) database or disk is full"
    assert first_sentence(ValueError()) == "ValueError"


def test_a_mistake_is_not_waited_for(tracker: Tracker) -> None:
    start = time.monotonic()
    with pytest.raises(Exception, match="not found"):
        tracker.run("0" * 32)
    assert time.monotonic() - start < 5
    assert tracker.lost is None
