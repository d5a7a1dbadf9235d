"""An MLflow server that answers, or a SQLite file with MLflow's tables, made if need be.

The environment variables below are read by MLflow when it is imported, so this module comes before it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow itself asks a server that is not there seven times, for four minutes and without a word.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")

from filelock import FileLock
from mlflow.tracking import MlflowClient

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.mlflow_sql import SQLITE
from raytrain_speedup.tracking.patience import first_sentence

logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database is no news
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its errors are raised, and told once

FIRST_TIMEOUT = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def open_database(uri: str) -> str:
    """The absolute URI of a server that answers, or of a database that is there.

    Raises:
        UserError: if nothing answers there.
    """
    uri = absolute_uri(uri)
    try:
        if uri.startswith(SQLITE):
            _make_if_missing(Path(uri.removeprefix(SQLITE)))
        with _impatient():
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except Exception as error:  # SQLite's, SQLAlchemy's, requests' and MLflow's own
        raise UserError(
            f"tracking uri {uri!r} does not answer ({first_sentence(error)}); expected an MLflow server such as "
            "http://host:5000, sqlite:///file.db, or json:folder"
        ) from error
    return uri


def absolute_uri(uri: str) -> str:
    """The URI of a file from wherever it is opened: Ray's workers run in other directories."""
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri.startswith(SQLITE) else uri


def _make_if_missing(path: Path) -> None:
    """Open a SQLite file, or make it with MLflow's tables, whole or not at all.

    MLflow makes its tables by dozens of migrations, each of which finds the file as the one before left it.
    Two processes at it at once, or one that is killed in the middle, leave tables behind that no later
    migration gets past. So they are made aside, by one process at a time, and renamed.
    """
    if path.exists():
        with closing(sqlite3.connect(path)) as database:  # MLflow tries for minutes what cannot be opened
            database.execute("PRAGMA schema_version")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, prefix = path.with_name(f".{path.name}.lock"), f".{path.name}.new-"
    with FileLock(lock):
        if not path.exists():
            for left in path.parent.glob(f"{prefix}*"):  # by a process that was killed
                shutil.rmtree(left)
            with TemporaryDirectory(dir=path.parent, prefix=prefix) as folder:
                aside = Path(folder) / path.name
                MlflowClient(tracking_uri=f"{SQLITE}{aside}").search_experiments(max_results=1)
                aside.replace(path)
        lock.unlink(missing_ok=True)  # whoever comes later finds the database and asks for no lock


@contextmanager
def _impatient() -> Iterator[None]:
    """A server that is not there may be found out sooner by the first question than by a later one."""
    name, seconds = FIRST_TIMEOUT
    given = os.environ.get(name)
    os.environ.setdefault(name, seconds)
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]
