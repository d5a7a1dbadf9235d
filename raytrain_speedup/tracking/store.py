"""Where the runs are kept: the MLflow server, its experiments, and what a run says when it is read back.

By default a SQLite file beside the working directory, named as MLflow names it, so that `mlflow ui` started
there shows the same runs. The address is always absolute: Ray's workers run in other directories.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # these are read at import
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from raytrain_speedup.engine.verdict import Plan
from raytrain_speedup.settings import UserError

logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database is no news

PARENT = "mlflow.parentRunId"
ROLE, STATE, SEED, METHOD, SETTINGS = (
    f"speedup.{name}" for name in ("role", "state", "seed", "method", "settings")
)
GROUP, PARAMS, REASON, SWEEP, MARGIN, PLAN = (
    f"speedup.{name}" for name in ("group", "params", "reason", "sweep", "margin", "plan")
)
TEXTS = ("baseline_key", "train_key", "setup", "hardware", "metric")
"""Figures of a run that are words; kept as tags, because an MLflow metric is a number."""


FIRST_QUESTION = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def resolve_uri(uri: str | None = None) -> str:
    """The tracking address: the one given, else MLFLOW_TRACKING_URI, else ./mlflow.db as an absolute URI."""
    given = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    if given.startswith("sqlite:///") and not given.startswith("sqlite:////"):
        return f"sqlite:///{Path(given.removeprefix('sqlite:///')).absolute()}"
    return given


def connect(uri: str | None = None) -> MlflowClient:
    """A client whose database exists: processes that create it together on first use break each other.

    Raises:
        UserError: if nothing answers there.
    """
    address = resolve_uri(uri)
    try:
        client = MlflowClient(tracking_uri=address)
        with _impatient():
            client.search_experiments(max_results=1)
    except Exception as error:  # SQLAlchemy's, requests' and MLflow's own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise UserError(
            f"tracking uri {address!r} does not answer ({first}); expected an MLflow server such as "
            "http://host:5000, or sqlite:///file.db"
        ) from error
    mlflow.set_tracking_uri(address)  # artifacts and models are resolved through the global address
    return client


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow asks a server that is not there for four minutes; a first question may fail sooner."""
    given = {name: os.environ.get(name) for name in FIRST_QUESTION}
    os.environ.update({name: value for name, value in FIRST_QUESTION.items() if given[name] is None})
    try:
        yield
    finally:
        for name, value in given.items():
            if value is None:
                del os.environ[name]


def experiment_id(client: MlflowClient, name: str) -> str:
    """The id of an MLflow experiment, created if need be, its artifacts beside a SQLite database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    address, place = client.tracking_uri, None
    if address.startswith("sqlite:///"):
        place = (Path(address.removeprefix("sqlite:///")).parent / "mlruns" / name).as_uri()
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
        figures: the final figures of the run, words included; empty before it has finished.
        params: what the search chose, by experiment key.
        plan: of the confirmation that this run is a part of.
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
    figures: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    plan: Plan | None = None

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    def run(self) -> dict[str, Any]:
        """The figures as `engine.compare` takes them."""
        return {**self.figures, "seed": self.seed}


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
        figures={**finals, **texts},
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
