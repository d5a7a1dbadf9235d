"""Writing runs down in MLflow: settings, metrics per epoch, final metrics, and how it ended.

Metrics of an epoch are named `epoch/...`; final metrics have names of their own (`accuracy`), because a
table of MLflow runs shows the last value of a name. An epoch that is replayed after a fault is logged once.
A sweep writes all its runs from the driver (`tuning/callback.py`): a trial that is killed cannot leave its
run behind as RUNNING.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.verdict import Plan
from raytrain_speedup.script import AnyExperiment
from raytrain_speedup.settings import UserError, flatten
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.leaderboard import Row

ENDINGS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}
"""Our states and MLflow's; a trial that was stopped early is no finished run."""

LONGEST_PARAM = 500
SECTIONS_OF_METHODS = ("pruning", "curriculum", "distillation")
BESIDE_THE_QUESTION = ("name", "about", "tracking", "scaling", "python_path")


def is_final(metrics: Mapping[str, Any]) -> bool:
    """Whether these are the metrics of the whole run and not of an epoch."""
    return "baseline_key" in metrics


class RunLog:
    """One MLflow run.

    Args:
        client: of `store.connect`.
        run_id: the run, RUNNING.
        last_epoch: epochs up to this one are logged already.
    """

    def __init__(self, client: MlflowClient, run_id: str, last_epoch: int = 0) -> None:
        self.client = client
        self.run_id = run_id
        self.last_epoch = last_epoch

    @classmethod
    def start(
        cls,
        client: MlflowClient,
        experiment: AnyExperiment,
        *,
        name: str,
        into: str,
        role: str = "run",
        parent: str | None = None,
        params: Mapping[str, Any] | None = None,
        margin: float | None = None,
        plan: Plan | None = None,
        folder: str | None = None,
    ) -> RunLog:
        """Create a run with its settings.

        Args:
            into: id of the MLflow experiment.
            role, parent, params, margin, plan, folder: as in `store.Record`.
        """
        tags = {
            store.ROLE: role,
            store.STATE: "running",
            store.SEED: str(experiment.train.seed),
            store.METHOD: method_of(experiment),
            store.SETTINGS: settings_of(experiment, params or {}),
            store.GROUP: group_of(experiment),
            store.PARAMS: json.dumps(dict(params or {})),
            "mlflow.runName": name,
        }
        if parent is not None:
            tags[store.PARENT] = parent
        if margin is not None:
            tags[store.MARGIN] = str(margin)
        if plan is not None:
            tags[store.PLAN] = json.dumps(plan.to_dict())
        if folder is not None:
            tags[store.FOLDER] = folder
        run_id = client.create_run(into, tags=tags).info.run_id
        flat = flatten(experiment.to_dict())
        logged = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in flat.items()]
        client.log_batch(run_id, params=logged)
        client.log_text(run_id, experiment.to_yaml(), "experiment.yaml")
        return cls(client, run_id)

    @classmethod
    def reopen(cls, client: MlflowClient, run_id: str) -> RunLog:
        """Go on with an interrupted run."""
        client.update_run(run_id, status="RUNNING")
        client.set_tag(run_id, store.STATE, "running")
        last = client.get_run(run_id).data.metrics.get("epoch/epoch", 0)
        return cls(client, run_id, int(last))

    def __call__(self, kind: str, metrics: Mapping[str, Any]) -> None:
        """Listen to a run in this process: a report of an epoch or of the end, or an image."""
        if kind == "report":
            (self.finish if is_final(metrics) else self.epoch)(metrics)
        elif kind == "image":
            self.image(metrics["name"], metrics["png"])

    def image(self, name: str, png: bytes) -> None:
        """Keep a PNG file among the run's artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(png)
            self.client.log_artifact(self.run_id, str(file), "images")

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of an epoch, once however often it is reported."""
        number = int(metrics.get("epoch", 0))
        if number <= self.last_epoch:
            return
        self._metrics(metrics, step=number, prefix="epoch/")
        self.last_epoch = number

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Log the final metrics and end the run."""
        self._metrics(metrics, step=0, prefix="")
        for key in store.TEXTS:
            if key in metrics:
                self.client.set_tag(self.run_id, f"speedup.{key}", str(metrics[key]))
        self.end("finished")

    def end(self, state: str, reason: str = "") -> None:
        """End the run as `finished`, `stopped`, `failed` or `interrupted`."""
        tags = {store.STATE: state} | ({store.REASON: reason[:LONGEST_PARAM]} if reason else {})
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self.client.set_terminated(self.run_id, ENDINGS[state])

    def _metrics(self, metrics: Mapping[str, Any], *, step: int, prefix: str) -> None:
        now = int(time.time() * 1000)
        numbers = {
            key: float(value)
            for key, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.client.log_batch(
            self.run_id, metrics=[Metric(prefix + key, value, now, step) for key, value in numbers.items()]
        )


def log_outcome(client: MlflowClient, run_id: str, row: Row) -> None:
    """Write a sweep's answer down with its own run: the speedup and the difference, each with its bounds, and the
    verdict."""
    values = {"speedup": row.speedup, "difference": row.difference, "flops_ratio": row.flops_ratio}
    bounds = {"speedup": row.speedup_interval, "difference": row.interval}
    for name, interval in bounds.items():
        low, high = interval or (None, None)
        values |= {f"{name}_low": low, f"{name}_high": high}
    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in values.items() if value is not None],
        tags=[
            RunTag(store.VERDICT, row.verdict or "not yet known"),
            RunTag(store.SETTINGS, f"{row.label} {row.settings}".strip()),
        ],
    )


@contextmanager
def log_run(experiment: AnyExperiment, *, tracking_uri: str | None = None) -> Iterator[RunLog]:
    """The MLflow run of one `speedup train`: call `epoch` with each report and `finish` with the metrics.

    It ends as failed after an exception, as interrupted after Ctrl-C, and as interrupted too if nobody
    called `finish`. A user's mistake that is found before the first epoch is no run: it is taken back.
    """
    client = store.connect(tracking_uri or experiment.tracking.uri)
    into = store.experiment_id(client, experiment.tracking.experiment or experiment.name)
    role = "baseline" if method_of(experiment) == "none" else "run"
    log = RunLog.start(client, experiment, name=experiment.name, into=into, role=role)
    try:
        yield log
    except UserError as error:
        log.end("interrupted" if isinstance(error, Stopped) else "failed", str(error))
        if type(error) is UserError and not log.last_epoch:
            client.delete_run(log.run_id)
        raise
    except Exception as error:
        log.end("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if client.get_run(log.run_id).info.status == "RUNNING":
            log.end("interrupted")


def method_of(experiment: AnyExperiment) -> str:
    """The methods of a run, such as `infobatch + efficienttrain`; `none` for a plain one."""
    used = [section.method for section in _sections(experiment)]
    return " + ".join(name for name in used if name != "none") or "none"


def _sections(experiment: AnyExperiment) -> list[Any]:
    """The sections of methods that an experiment has."""
    sections = [getattr(experiment, name) for name in SECTIONS_OF_METHODS]
    return [section for section in sections if section is not None]


def settings_of(experiment: AnyExperiment, params: Mapping[str, Any]) -> str:
    """The settings worth a column: those of the methods that are not the default, and those searched."""
    changed = {
        key: value
        for section in _sections(experiment)
        for key, value in section.model_dump(mode="json", exclude_defaults=True).items()
    }
    searched = {key.rpartition(".")[2]: value for key, value in params.items()}
    shown = {
        key: value for key, value in (changed | searched).items() if key != "method" and value is not None
    }
    return " ".join(f"{key}={_short(shown[key])}" for key in sorted(shown))


def group_of(experiment: AnyExperiment) -> str:
    """Equal for experiments that differ in their seed alone (or in their names and places)."""
    content = experiment.to_dict()
    content["train"].pop("seed")
    for section in BESIDE_THE_QUESTION:
        content.pop(section, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", "")
