"""Writing runs down: settings, metrics per epoch, final metrics, and how it ended.

Metrics of an epoch are named `epoch/...`; final metrics have names of their own (`accuracy`), because a
table of MLflow runs shows the last value of a name. An epoch that is replayed after a fault is logged once.
A sweep writes all its runs from the driver (`tuning/callback.py`): a trial that is killed cannot leave its
run behind as running.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raytrain_speedup.engine.cost.measure import PHASES
from raytrain_speedup.engine.final_metrics import TEXTS, FinalMetrics, is_final
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.statistics.verdict import Plan
from raytrain_speedup.script import AnyExperiment
from raytrain_speedup.settings import Settings, UserError, flatten, tag_of
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.provenance import provenance
from raytrain_speedup.tracking.tracker import EPOCH, OURS, NotTracked, State, Tracker

LONGEST_PARAM = 500
EXPERIMENT_FILE = "experiment.yaml"
"""The file of a run with its settings, every default written out."""

SECTIONS_OF_METHODS = ("pruning", "curriculum", "distillation")
BESIDE_THE_QUESTION = ("name", "about", "tracking", "scaling", "python_path")


def seconds_of(metrics: Mapping[str, Any]) -> float:
    """Wall seconds that a run had taken by a report, of all its phases."""
    return float(sum(metrics.get(f"{phase}_seconds", 0.0) for phase in PHASES))


class RunLog:
    """One run of a tracker.

    Args:
        run_id: the run, running.
        last_epoch: epochs up to this one are logged already.
        data: what the run is trained on, as `data_of` has it.

    Attributes:
        ended: whether its end is written down.
    """

    def __init__(
        self, tracker: Tracker, run_id: str, *, data: Mapping[str, str], last_epoch: int = 0
    ) -> None:
        self.tracker = tracker
        self.run_id = run_id
        self.last_epoch = last_epoch
        self.data = data
        self.ended = False
        self._spent = 0.0

    @classmethod
    def start(
        cls,
        tracker: Tracker,
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
            into: name of the tracker's experiment.
            role, parent, params, margin, plan, folder: as in `store.Record`.
        """
        tags = provenance() | {
            store.ROLE: role,
            store.STATE: "running",
            store.SEED: str(experiment.train.seed),
            store.METHOD: method_of(experiment),
            store.SETTINGS: settings_of(experiment, params or {}),
            store.GROUP: group_of(experiment),
            store.PARAMS: json.dumps(dict(params or {})),
            store.DATA: experiment.data.source,
            store.MODEL: experiment.model.name,
        }
        if margin is not None:
            tags[store.MARGIN] = str(margin)
        if plan is not None:
            tags[store.PLAN] = json.dumps(plan.to_dict())
        if folder is not None:
            tags[store.FOLDER] = folder
        run_id = tracker.start(into, name, tags, parent=parent)
        flat = flatten(experiment.to_dict())
        tracker.log_params(run_id, {key: str(value)[:LONGEST_PARAM] for key, value in flat.items()})
        tracker.log_text(run_id, experiment.to_yaml(), EXPERIMENT_FILE)
        return cls(tracker, run_id, data=data_of(experiment))

    @classmethod
    def reopen(cls, tracker: Tracker, run_id: str, experiment: AnyExperiment) -> RunLog:
        """Go on with an interrupted run."""
        tracker.reopen(run_id)
        tracker.set_tags(run_id, {store.STATE: "running"})
        epochs = tracker.curve(run_id, EPOCH + "epoch")
        last = int(epochs[-1][1]) if epochs else 0
        return cls(tracker, run_id, last_epoch=last, data=data_of(experiment))

    def __call__(self, kind: str, metrics: Mapping[str, Any]) -> None:
        """Listen to a run in this process: a report of an epoch or of the end, or an image."""
        if kind == "report":
            if is_final(metrics):
                self.finish(FinalMetrics.from_dict(metrics))
            else:
                self.epoch(metrics)
        elif kind == "image":
            self.image(metrics["name"], metrics["png"])

    def image(self, name: str, png: bytes) -> None:
        """Keep a PNG file among the run's artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            file.write_bytes(png)
            self.tracker.log_file(self.run_id, file, "images")

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of an epoch, once however often it is reported."""
        self._spent = max(self._spent, seconds_of(metrics))  # a checkpoint within an epoch tells none
        number = int(metrics.get("epoch", 0))
        if number <= self.last_epoch:
            return
        self._metrics(metrics, step=number, prefix=EPOCH)
        self.last_epoch = number

    def finish(self, metrics: FinalMetrics) -> None:
        """Log the final metrics and end the run. A tracker's metrics are numbers, so words are kept as tags."""
        plain = metrics.to_dict()
        self._metrics(plain, step=0, prefix="")
        self.tracker.set_tags(self.run_id, {OURS + key: plain[key] for key in TEXTS if key in plain})
        if metrics.data_fingerprint:
            self.tracker.log_dataset(self.run_id, self.data["source"], metrics.data_fingerprint, self.data)
        self.end("finished")

    def end(self, state: State, reason: str = "") -> None:
        """End the run."""
        tags = {store.STATE: str(state)} | ({store.REASON: reason[:LONGEST_PARAM]} if reason else {})
        if state != "finished" and self._spent:
            tags[store.SPENT] = f"{self._spent:.3f}"
        self.tracker.set_tags(self.run_id, tags)
        self.tracker.end(self.run_id, state)
        self.ended = True

    def _metrics(self, metrics: Mapping[str, Any], *, step: int, prefix: str) -> None:
        numbers = {
            prefix + key: float(value)
            for key, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self.tracker.log_metrics(self.run_id, numbers, step)


@contextmanager
def log_run(
    experiment: AnyExperiment, *, tracking_uri: str | None = None, run_id: str | None = None
) -> Iterator[RunLog]:
    """The run of one `speedup train`: call it with each report, image and the final metrics.

    A run that is resumed goes on in its own, `run_id`, where this tracker has it.
    It ends as failed after an exception, as interrupted after Ctrl-C, and as interrupted too if nobody
    called `finish`. A user's mistake that is found before the first epoch is no run: it is taken back.
    """
    tracker = open_tracker(tracking_uri or experiment.tracking.uri)
    into = experiment.tracking.experiment or experiment.name
    role = "baseline" if method_of(experiment) == "none" else "run"
    again = run_id is not None and _is_there(tracker, run_id)
    if again:
        log = RunLog.reopen(tracker, str(run_id), experiment)
    else:
        log = RunLog.start(tracker, experiment, name=experiment.name, into=into, role=role)
    try:
        yield log
    except UserError as error:
        log.end("interrupted" if isinstance(error, Stopped) else "failed", str(error))
        if type(error) is UserError and not log.last_epoch and not again:
            tracker.delete(log.run_id)
        raise
    except Exception as error:
        log.end("failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if not log.ended:
            log.end("interrupted")


def _is_there(tracker: Tracker, run_id: str) -> bool:
    try:
        tracker.run(run_id)
    except NotTracked:  # deleted, or of another tracker
        return False
    return True


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
        key: _inner(getattr(section, key), value)
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


def data_of(experiment: AnyExperiment) -> dict[str, str]:
    """Where the samples come from: the source, and the settings that are not its defaults."""
    data = experiment.data.model_dump(mode="json", exclude_defaults=True)
    return {"source": experiment.data.source} | {key: str(value) for key, value in data.items()}


def _inner(section: Any, changed: Any) -> Any:
    """What is not the default of a section within another, behind its name where it has one."""
    name = tag_of(type(section)) if isinstance(section, Settings) else None
    if name is None:
        return changed
    inside = ",".join(f"{key}={_short(value)}" for key, value in changed.items())
    return f"{name}({inside})" if inside else name


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", "")
