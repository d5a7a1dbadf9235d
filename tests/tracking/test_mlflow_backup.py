"""What was kept of a head's database is what it was, on another machine too."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.mlflow_backup import back_up, bring_back
from raytrain_speedup.tracking.mlflow_tracker import MlflowTracker
from raytrain_speedup.tracking.tracker import Tracker


def test_a_database_and_its_files_survive_their_machine(tracker: Tracker, tmp_path: Path) -> None:
    head, home, kept = tmp_path / "head", tmp_path / "home", (tmp_path / "kept").as_uri()
    head.mkdir()
    back_up(tracker.uri, head)  # tables are made in seconds, and copied in none
    shutil.rmtree(head / "mlruns", ignore_errors=True)
    tracker = MlflowTracker(f"sqlite:///{head}/mlflow.db")
    run = tracker.start("sweep", "one", {"mine": "yes"})
    tracker.log_metrics(run, {"accuracy": 0.5})
    tracker.log_text(run, "prune: .5", "schedule/schedule.yaml")
    assert back_up(tracker.uri, kept) == 2
    tracker.log_metrics(run, {"accuracy": 0.75}, step=1)
    assert back_up(tracker.uri, kept) == 1, "the file has not changed, the database has"
    tracker.log_text(run, "prune: .7", "schedule/schedule.yaml")
    assert back_up(tracker.uri, kept) == 2, "as long as before, and another one"
    shutil.rmtree(head)

    assert bring_back(kept, f"sqlite:///{home}/mlflow.db") == 2
    found = MlflowTracker(f"sqlite:///{home}/mlflow.db")
    assert found.curve(run, "accuracy") == [(0, 0.5), (1, 0.75)]
    assert found.read_text(run, "schedule/schedule.yaml") == "prune: .7"
    other = found.start("sweep", "two", {})  # into the experiment of the head
    found.log_text(other, "new", "note.txt")
    assert [path.name for path in (home / "mlruns").rglob("note.txt")] and not head.exists()


def test_a_backup_that_breaks_off_has_lost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, kept = tmp_path / "head", tmp_path / "kept"
    head.mkdir()
    with closing(sqlite3.connect(head / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE runs (artifact_uri TEXT)")
    uri = f"sqlite:///{head}/mlflow.db"
    assert back_up(uri, kept) == 1
    before = (kept / "mlflow.db").read_bytes()

    def half(source: str, goal: str, **where: object) -> None:
        Path(goal).write_bytes(Path(source).read_bytes()[:100])
        raise OSError("the network is away")

    monkeypatch.setattr("raytrain_speedup.tracking.mlflow_backup.copy_files", half)
    with pytest.raises(
        UserError, match=r"kept: cannot be written \(the network is away\); expected a folder"
    ):
        back_up(uri, kept)
    assert (kept / "mlflow.db").read_bytes() == before
    with pytest.raises(UserError, match=r"kept: cannot be read \(the network is away\); expected a folder"):
        bring_back(kept, f"sqlite:///{tmp_path}/new/mlflow.db")
    assert not (tmp_path / "new" / "mlflow.db").exists(), "no half database"


def test_writers_of_the_database_go_on(tmp_path: Path) -> None:
    """What one of them has begun and not committed is not kept; a plain copy of the file would hold half of it."""
    path, kept = tmp_path / "mlflow.db", tmp_path / "kept"
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE metrics (value REAL)")
        writer.execute("INSERT INTO metrics VALUES (1)")
        writer.commit()
        writer.execute("INSERT INTO metrics VALUES (2)")
        back_up(f"sqlite:///{path}", kept)
        writer.commit()
    with closing(sqlite3.connect(kept / "mlflow.db")) as copy:
        assert copy.execute("SELECT value FROM metrics").fetchall() == [(1.0,)]


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    kept = str(tmp_path / "kept")

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["cluster", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "nothing was kept yet" in said("restore", kept)
    assert "there is no database yet" in said("backup", kept)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE runs (artifact_uri TEXT)")
    assert f"{kept}: 1 files copied" in said("backup", kept)
    assert "is there already, and stays as it is" in said("restore", kept)
    (tmp_path / "mlflow.db").unlink()
    assert "mlflow.db: 1 files copied" in said("restore", kept)


@pytest.mark.parametrize("command", [["backup"], ["restore"]])
def test_another_tracker_is_refused(command: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["cluster", *command, str(tmp_path), "--tracking-uri", "http://127.0.0.1:9"]
    )
    assert "is no file of this machine; expected sqlite:///FILE" in str(result.exception)
