"""Where the runs are kept: the MLflow server, its experiments, and what a run says when it is read back.

By default a SQLite file beside the working directory, named as MLflow names it, so that `mlflow ui` started
there shows the same runs. The URI is always absolute: Ray's workers run in other directories.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # these are read at import
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from filelock import FileLock
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from raytrain_speedup.engine.verdict import Plan
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.patience import PatientClient, reason_of

logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database is no news
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its errors are raised, and told once

PARENT = "mlflow.parentRunId"
ROLE, STATE, SEED, METHOD, SETTINGS = (
    f"speedup.{name}" for name in ("role", "state", "seed", "method", "settings")
)
GROUP, PARAMS, REASON, SWEEP, MARGIN, PLAN = (
    f"speedup.{name}" for name in ("group", "params", "reason", "sweep", "margin", "plan")
)
FOLDER, DRIVER, VERDICT = (f"speedup.{name}" for name in ("folder", "driver", "verdict"))
TEXTS = ("baseline_key", "train_key", "setup", "hardware", "metric")
"""Metrics of a run that are words; kept as tags, because an MLflow metric is a number."""


SQLITE = "sqlite:///"
FIRST_TIMEOUT = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def resolve_uri(uri: str | None = None) -> str:
    """The tracking URI: the one given, else MLFLOW_TRACKING_URI, else ./mlflow.db as an absolute URI."""
    given = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return f"{SQLITE}{Path.cwd() / 'mlflow.db'}"
    if given.startswith(SQLITE) and not given.startswith(f"{SQLITE}/"):
        return f"{SQLITE}{Path(given.removeprefix(SQLITE)).absolute()}"
    return given


def connect(uri: str | None = None) -> PatientClient:
    """A client of a server that answers, or of a database that is there; it is made if need be.

    Raises:
        UserError: if nothing answers there.
    """
    uri_ = resolve_uri(uri)
    try:
        if uri_.startswith(SQLITE):
            _database(Path(uri_.removeprefix(SQLITE)))
        with _impatient():
            MlflowClient(tracking_uri=uri_).search_experiments(max_results=1)
    except Exception as error:  # SQLite's, SQLAlchemy's, requests' and MLflow's own
        raise UserError(
            f"tracking uri {uri_!r} does not answer ({reason_of(error)}); expected an MLflow server such as "
            "http://host:5000, or sqlite:///file.db"
        ) from error
    mlflow.set_tracking_uri(uri_)  # artifacts and models are resolved through the global URI
    return PatientClient(uri_)


def _database(path: Path) -> None:
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


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of an MLflow experiment, created if need be, its artifacts beside a SQLite database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    uri_, place = client.tracking_uri, None
    if uri_.startswith(SQLITE):
        place = (Path(uri_.removeprefix(SQLITE)).parent / "mlruns" / name).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:  # someone else was faster
        return str(client.get_experiment_by_name(name).experiment_id)


@dataclass(frozen=True)
class Record:
    """A run as it was logged.

    Attributes:
        role: `baseline`, a control's name, `trial`, `winner`, or `run` for a single `speedup train`.
        state: running, finished, stopped (early), failed or interrupted.
        group: equal for runs that differ in their seed alone.
        metrics: the final metrics of the run, words included; empty before it has finished.
        params: what the search chose, by experiment key.
        plan: of the confirmation that this run is a part of.
        folder: name of a sweep's run's own folder for checkpoints; an interrupted run goes on in it.
    """

    run_id: str
    name: str
    role: str
    state: str
    method: str
    settings: str
    seed: int
    group: str
    started: int
    experiment: str
    parent: str | None = None
    margin: float | None = None
    reason: str = ""
    folder: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    def run(self) -> dict[str, Any]:
        """The metrics as `engine.compare` takes them."""
        return {**self.metrics, "seed": self.seed}


def read(run: Run, experiment: str = "") -> Record:
    """A run of ours, read back."""
    tags = run.data.tags
    finals = {key: value for key, value in run.data.metrics.items() if not key.startswith("epoch/")}
    texts = {key: tags[f"speedup.{key}"] for key in TEXTS if f"speedup.{key}" in tags}
    return Record(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id[:8],
        role=tags.get(ROLE, "run"),
        state=tags.get(STATE, "running"),
        method=tags.get(METHOD, ""),
        settings=tags.get(SETTINGS, ""),
        seed=int(tags.get(SEED, 0)),
        group=tags.get(GROUP, ""),
        started=run.info.start_time,
        experiment=experiment,
        parent=tags.get(PARENT),
        margin=float(tags[MARGIN]) if MARGIN in tags else None,
        reason=tags.get(REASON, ""),
        folder=tags.get(FOLDER, ""),
        metrics={**finals, **texts},
        params=json.loads(tags.get(PARAMS, "{}")),
        plan=Plan.from_dict(json.loads(tags[PLAN])) if PLAN in tags else None,
    )


def records(
    client: MlflowClient, experiment: str | None = None, *, parent: str | None = None
) -> list[Record]:
    """Our runs (not the sweeps that hold them), oldest first; of all experiments where none is named.

    Raises:
        UserError: if there is no such experiment; it names those there are.
    """
    names = {found.experiment_id: found.name for found in client.search_experiments()}
    if experiment is not None:
        chosen = [key for key, name in names.items() if name == experiment]
        if not chosen:
            known = ", ".join(sorted(set(names.values()) - {"Default"})) or "none yet"
            raise UserError(f"experiment {experiment!r}: no such MLflow experiment; expected one of: {known}")
    else:
        chosen = list(names)
    wanted = f"tags.`{GROUP}` != ''" + (f" and tags.`{PARENT}` = '{parent}'" if parent else "")
    found, token = [], None
    while True:
        page = client.search_runs(chosen, wanted, order_by=["attributes.start_time ASC"], page_token=token)
        found += [read(run, names[run.info.experiment_id]) for run in page]
        token = page.token
        if not token:
            return found
