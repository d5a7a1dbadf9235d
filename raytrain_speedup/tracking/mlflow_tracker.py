"""MLflow as a `Tracker`: a SQLite file, or a server.

What MLflow's own pages look for is set beside our tags: the kind of an experiment (else it opens among GenAI
traces), the source, user and commit of a run, its data set, its parent, and a note in Markdown.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import sqlite3
import time
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from raytrain_speedup.tracking.mlflow_database import SQLITE, open_database  # isort: skip - before MLflow

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from raytrain_speedup.tracking.mlflow_sql import PARENT, read_runs
from raytrain_speedup.tracking.patience import Patience, first_sentence
from raytrain_speedup.tracking.store import COMMAND, COMMIT, USER
from raytrain_speedup.tracking.tracker import (
    EPOCH,
    OURS,
    SCHEDULE_FILE,
    Entry,
    NotTracked,
    State,
    Tracker,
    TrackingLost,
    Version,
)

ENDINGS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}
"""Our states and MLflow's; a trial that was stopped early is no finished run."""

NOTE, KIND = "mlflow.note.content", "mlflow.experimentKind"
OWN_KIND = "custom_model_development"
EXPERIMENT_NOTE = (
    "Runs of raytrain_speedup. A sweep is a run that holds its trials; its note has the answer. "
    "`speedup leaderboard` compares them all."
)
UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` is by default."""

SHA = re.compile(r"[0-9a-f]{40}")
LONGEST_DIGEST = 36

PASSING = {"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED"}
"""MLflow's codes of what may pass: a database's operational errors, no answer, a server's own fault."""


class PatientClient(MlflowClient):
    """An `MlflowClient` whose calls are repeated while nothing answers."""

    def __init__(self, tracking_uri: str, patience: Patience) -> None:
        super().__init__(tracking_uri=tracking_uri)
        self._patience = patience

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return found if name.startswith("_") or not callable(found) else partial(self._patience, found)


class MlflowTracker(Tracker):
    """Runs in MLflow.

    Args:
        uri: as MLflow has it.

    Raises:
        UserError: if nothing answers there.
    """

    def __init__(self, uri: str) -> None:
        self.uri = open_database(uri)
        mlflow.set_tracking_uri(self.uri)  # versions of models are resolved through the global URI
        self.patience = Patience(self.uri, _may_pass)
        self.client: MlflowClient = PatientClient(self.uri, self.patience)
        self._ids: dict[str, str] = {}

    @property
    def lost(self) -> TrackingLost | None:
        return self.patience.lost

    def impatient(self) -> MlflowTracker:
        other = copy.copy(self)
        other.client = MlflowClient(self.uri)
        return other

    def how_to_look(self, run_id: str) -> str:
        # Without the last part MLflow's pages begin with traces of language models, whatever the experiment's kind.
        of = self.client.get_run(run_id).info.experiment_id
        page = f"/#/experiments/{of}/runs/{run_id}?workflowType=machine_learning"
        if self.uri.startswith("http"):
            return self.uri.rstrip("/") + page
        return f"mlflow ui --backend-store-uri {self.uri}, then {UI}{page}"

    def start(self, experiment: str, name: str, tags: Mapping[str, str], *, parent: str | None = None) -> str:
        native = {"mlflow.source.type": "LOCAL"} | ({PARENT: parent} if parent is not None else {})
        native |= {"mlflow.user": tags[USER]} if USER in tags else {}
        native |= {"mlflow.source.name": tags[COMMAND]} if COMMAND in tags else {}
        if commit := SHA.match(tags.get(COMMIT, "")):
            native["mlflow.source.git.commit"] = commit[0]
        into = self._experiment_id(experiment)
        return str(self.client.create_run(into, tags={**native, **tags}, run_name=name).info.run_id)

    def _experiment_id(self, name: str) -> str:
        """Of an experiment, made if need be, its artifacts beside a SQLite database."""
        if name not in self._ids:
            found = self.client.get_experiment_by_name(name) or self._new_experiment(name)
            if KIND not in found.tags:  # by an earlier version
                self.client.set_experiment_tag(found.experiment_id, KIND, OWN_KIND)
            self._ids[name] = str(found.experiment_id)
        return self._ids[name]

    def _new_experiment(self, name: str) -> Any:
        place = None
        if self.uri.startswith(SQLITE):
            place = (Path(self.uri.removeprefix(SQLITE)).parent / "mlruns" / name).as_uri()
        with contextlib.suppress(MlflowException):  # someone else was faster
            tags = {KIND: OWN_KIND, NOTE: EXPERIMENT_NOTE}
            self.client.create_experiment(name, artifact_location=place, tags=tags)
        return self.client.get_experiment_by_name(name)

    def reopen(self, run_id: str) -> None:
        self.client.update_run(run_id, status="RUNNING")

    def end(self, run_id: str, state: State) -> None:
        self.client.set_terminated(run_id, ENDINGS[state])

    def delete(self, run_id: str) -> None:
        self.client.delete_run(run_id)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def remove_tag(self, run_id: str, key: str) -> None:
        self.client.delete_tag(run_id, key)

    def log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, params=[Param(key, value) for key, value in params.items()])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        found = [Metric(key, float(value), now, step) for key, value in metrics.items()]
        self.client.log_batch(run_id, metrics=found)

    def log_dataset(self, run_id: str, name: str, digest: str, source: Mapping[str, str]) -> None:
        dataset = Dataset(name, digest[:LONGEST_DIGEST], "local", json.dumps(dict(source)))
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])

    def log_text(self, run_id: str, text: str, path: str) -> None:
        self.client.log_text(run_id, text, path)

    def log_file(self, run_id: str, file: Path, folder: str = "") -> None:
        self.client.log_artifact(run_id, str(file), folder or None)

    def describe(self, run_id: str, markdown: str) -> None:
        self.client.set_tag(run_id, NOTE, markdown)

    def file_link(self, run_id: str, path: str) -> str:
        return f"get-artifact?path={quote(path)}&run_uuid={run_id}"

    def experiments(self) -> list[str]:
        return [found.name for found in self.client.search_experiments() if found.experiment_id != "0"]

    def run(self, run_id: str) -> Entry:
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            raise NotTracked(f"run {run_id}: {first_sentence(error)}") from error
        if run.info.lifecycle_stage != "active":
            raise NotTracked(f"run {run_id}: deleted")
        return _entry(run, self.client.get_experiment(run.info.experiment_id).name)

    def runs(
        self,
        experiment: str | None = None,
        *,
        tag: str,
        value: str | None = None,
        parent: str | None = None,
        wanted: Collection[str] | None = None,
    ) -> list[Entry]:
        if self.uri.startswith(SQLITE):
            file = Path(self.uri.removeprefix(SQLITE))
            asked = partial(
                read_runs, experiment=experiment, tag=tag, value=value, parent=parent, wanted=wanted
            )
            found = self.patience(asked, file)
            if found is not None:
                return found
        return self._search(experiment, tag, value, parent)

    def _search(self, experiment: str | None, tag: str, value: str | None, parent: str | None) -> list[Entry]:
        """As `runs`, through MLflow's own search."""
        found = self.client.search_experiments()
        names = {one.experiment_id: one.name for one in found if experiment in (None, one.name)}
        wanted = [f"tags.`{tag}` != ''" if value is None else f"tags.`{tag}` = '{value}'"]
        wanted += [f"tags.`{PARENT}` = '{parent}'"] if parent is not None else []
        runs: list[Run] = []
        token = None if names else ""  # of no experiment there are no runs
        while token != "":
            page = self.client.search_runs(
                list(names), " and ".join(wanted), order_by=["attributes.start_time ASC"], page_token=token
            )
            runs += page
            token = page.token or ""
        return sorted((_entry(run, names[run.info.experiment_id]) for run in runs), key=_in_order)

    def curve(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(run_id, metric)
        return sorted((point.step, point.value) for point in history)

    def read_text(self, run_id: str, path: str) -> str:
        with TemporaryDirectory() as folder:
            try:  # not by the patient client, to which a file that is not there is an error that may pass
                file = mlflow.artifacts.download_artifacts(
                    f"runs:/{run_id}/{path}", dst_path=folder, tracking_uri=self.uri
                )
                return Path(file).read_text(encoding="utf-8")
            except (MlflowException, OSError) as error:
                raise NotTracked(f"run {run_id[:8]}: its {path} cannot be read ({error})") from None

    def publish(self, name: str, run_id: str) -> Version:
        with contextlib.suppress(MlflowException):  # there already
            self.client.create_registered_model(name)
        folder = SCHEDULE_FILE.rpartition("/")[0]
        made = self.client.create_model_version(name, source=f"runs:/{run_id}/{folder}", run_id=run_id)
        return Version(name, int(made.version), run_id, made.creation_timestamp)

    def versions(self, name: str | None = None) -> list[Version]:
        wanted = None if name is None else f'name = "{name}"'
        models = self.client.search_registered_models(filter_string=wanted, max_results=1000)
        return [version for model in models for version in self._versions_of(model.name, dict(model.aliases))]

    def _versions_of(self, name: str, aliases: Mapping[str, Any]) -> list[Version]:
        """Those that are schedules: a server has other models too."""
        folder = "/" + SCHEDULE_FILE.rpartition("/")[0]
        found = self.client.search_model_versions(f'name = "{name}"', max_results=10_000)
        versions = [
            Version(
                name,
                int(one.version),
                one.run_id,
                one.creation_timestamp,
                tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(one.version))),
            )
            for one in found
            if str(one.source).endswith(folder)
        ]
        return sorted(versions, key=lambda one: one.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        try:
            self.client.set_registered_model_alias(name, alias, str(version))
        except MlflowException as error:
            raise NotTracked(f"{name}: {error}") from None


def _in_order(entry: Entry) -> tuple[int, str]:
    """Oldest first; of one moment, by their ids."""
    return entry.started, entry.run_id


def _entry(run: Run, experiment: str) -> Entry:
    return Entry(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id[:8],
        experiment=experiment,
        started=run.info.start_time,
        parent=run.data.tags.get(PARENT),
        tags={key: value for key, value in run.data.tags.items() if key.startswith(OURS)},
        metrics={key: value for key, value in run.data.metrics.items() if not key.startswith(EPOCH)},
    )


def _may_pass(error: Exception) -> bool:
    if isinstance(error, MlflowException):
        return error.error_code in PASSING
    return isinstance(error, OSError | sqlite3.OperationalError)
