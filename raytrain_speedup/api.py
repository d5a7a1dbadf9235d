"""The commands as functions, with objects in place of names: `from raytrain_speedup import train, sweep,
leaderboard`.

    result = train(
        model=build,                             # called with num_classes; a torch.nn.Module
        data={"train": train_set, "test": test_set},
        pruning=InfoBatchSettings(prune_ratio=0.5),
        overrides={"train.epochs": 20, "data.mean": [0.5], "data.std": [0.25]},
    )
    result.metrics["accuracy"], result.model     # percent on the test split, the file of the weights

A run is measured and recorded as that of the command line. An object that is a function or class of a module
goes by its import path, so that other processes can import it and other runs can be compared. Any other
object (a lambda, an instance, whatever a script or notebook itself defines) works in this process alone: in
`train` with one worker, not in `sweep`; its runs are compared with those of the same object in this process,
and a run with it cannot go on in another process.
"""

from __future__ import annotations

import sys
import sysconfig
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from raytrain_speedup.config import Experiment, load_experiment
from raytrain_speedup.data import DataSettings
from raytrain_speedup.environment import set_environment
from raytrain_speedup.experiment_file import REGISTRIES, parse_overrides
from raytrain_speedup.methods.curriculum import CurriculumSettings
from raytrain_speedup.methods.pruning import PrunerSettings
from raytrain_speedup.settings import Settings, UserError
from raytrain_speedup.tasks import Task, TaskSettings
from raytrain_speedup.user_code import THIS_PROCESS, named

if TYPE_CHECKING:
    from raytrain_speedup.engine.final_metrics import FinalMetrics
    from raytrain_speedup.engine.local import Listener
    from raytrain_speedup.script import AnyExperiment
    from raytrain_speedup.tracking.leaderboard import Row
    from raytrain_speedup.tuning.sweep import SweepResult

Model = str | nn.Module | Callable[..., nn.Module]
"""A name, a network (copied, so that each run starts from its weights), or what builds one: called with
`num_classes`, with `in_channels` where it takes it, and with `model.options`."""

Data = str | DataSettings | Mapping[str, Any] | Callable[..., Any]
"""A source's name, settings of one, map-style data sets by split (`train`, `test` and perhaps `val`), or what
gives the data set of a split: called with `split` and `data.options`. Their items: see
`raytrain_speedup.data.python`."""

TaskLike = str | TaskSettings | Task | Callable[..., Task]
"""A kind, settings of one, a task, or a subclass of `Task` or function that makes one, called with
`task.options`."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        final: what the run found and cost, typed.
        folder: of the run, with its checkpoints; `train(..., resume=folder)` goes on from them.
        model: the file of the evaluated weights, a state dict; None where none is kept, or the folder is a URI.
        run_id: of the run in MLflow.
    """

    final: FinalMetrics
    folder: str
    model: Path | None
    run_id: str

    @property
    def metrics(self) -> dict[str, Any]:
        """The final metrics by the names that trackers have for them: `accuracy` (or what `metric` names) in
        percent on the test split, `val_accuracy`, `train_seconds`, `train_flops`, `passes_saved`, ..."""
        return self.final.to_dict()


def train(
    experiment: str | Path | Mapping[str, Any] | Experiment | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    model: Model | None = None,
    data: Data | None = None,
    task: TaskLike | None = None,
    pruning: PrunerSettings | None = None,
    curriculum: CurriculumSettings | None = None,
    resume: str | Path | None = None,
    tracking_uri: str | None = None,
    listener: Listener | None = None,
) -> TrainResult:
    """Train one model, with or without an acceleration, and measure it.

    Args:
        experiment: a recipe's name, a YAML file, its content, or an experiment; default: nothing but its name.
        overrides: keys set to other values, over those of the objects: `{"train.epochs": 5}` or a list of
            `"train.epochs=5"`.
        model, data, task, pruning, curriculum: instead of the sections of the experiment.
        resume: folder or URI of an earlier run to go on with.
        tracking_uri: MLflow server or database; MLFLOW_TRACKING_URI, else SQLite in the working directory.
        listener: called with ("report" or "progress", metrics) while it trains, and with ("phase", {"name": ...})
            before: what it is at.

    Raises:
        UserError: for whatever the user can mend, in one line that names the key: among it a model whose
            outputs are not (b, num_classes), or (b, num_classes, H, W) where every pixel has a class; an item
            that is not (image, target); and an object that other processes cannot import where there are
            several workers.
        Stopped: after a Ctrl-C.
    """
    given = _Objects(model=model, data=data, task=task, pruning=pruning, curriculum=curriculum)
    loaded = given.experiment(experiment, overrides)
    if loaded.scaling.most_workers > 1:
        given.refuse_local(f"scaling.workers: {loaded.scaling.workers} workers are processes of their own")
    return run(loaded, run_folder(loaded, resume), tracking_uri=tracking_uri, listener=listener)


def sweep(
    file: str | Path,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    model: Model | None = None,
    data: Data | None = None,
    task: TaskLike | None = None,
    pruning: PrunerSettings | None = None,
    curriculum: CurriculumSettings | None = None,
    **options: Any,
) -> SweepResult:
    """Search for the settings that train fastest without losing accuracy, and confirm the best.

    Args:
        file: the search-space file.
        overrides: experiment keys set for every run, over those of the objects.
        model, data, task, pruning, curriculum: instead of the sections of the file's experiment.
        options: `trials`, `seed`, `concurrency`, `tracking_uri`, `out`, `resume` and `console`, as
            `raytrain_speedup.tuning.sweep.sweep` has them.

    Raises:
        UserError: for a mistake in the file, before anything runs; for an object that no other process can
            import; and where the baseline fails.
    """
    given = _Objects(model=model, data=data, task=task, pruning=pruning, curriculum=curriculum)
    given.refuse_local("sweep: every trial runs in a process of its own")
    set_environment()
    from raytrain_speedup.tuning.sweep import sweep as run_sweep

    return run_sweep(file, overrides=given.keys | parse_overrides(overrides), **options)


def leaderboard(experiment: str | None = None, *, tracking_uri: str | None = None) -> list[Row]:
    """What is faster, by how much, at what accuracy, and how sure that is: a row for each setting.

    Args:
        experiment: the MLflow experiment; all of them by default.
        tracking_uri: MLflow server or database; MLFLOW_TRACKING_URI, else SQLite in the working directory.

    Raises:
        UserError: if there is no such experiment, or MLflow does not answer.
    """
    set_environment()
    from raytrain_speedup.tracking.leaderboard import leaderboard as rows_of

    return rows_of(experiment, tracking_uri=tracking_uri)


def run(
    experiment: AnyExperiment,
    folder: str,
    *,
    tracking_uri: str | None = None,
    listener: Listener | None = None,
) -> TrainResult:
    """Run an experiment in a folder or URI, and record it in MLflow.

    Raises:
        UserError: for whatever the user can mend.
    """
    set_environment()
    from raytrain_speedup.scaling.launch import launch, termination_as_interrupt
    from raytrain_speedup.scaling.storage import is_uri, keep_run_id, kept_run_id
    from raytrain_speedup.tracking.run_log import log_run

    logged = log_run(experiment, tracking_uri=tracking_uri, run_id=kept_run_id(folder))
    with termination_as_interrupt(), logged as log:
        keep_run_id(folder, log.run_id)

        def listen(kind: str, metrics: Mapping[str, Any]) -> None:
            if listener is not None:
                listener(kind, metrics)
            log(kind, metrics)

        final = launch(experiment, folder, listen)
    weights = [] if is_uri(folder) else Path(folder).glob("checkpoint*/model.pt")
    return TrainResult(final, folder, max(weights, default=None), log.run_id)


def run_folder(experiment: AnyExperiment, resume: str | Path | None) -> str:
    """A new folder for a run, or that of the earlier one to go on with.

    Raises:
        UserError: if there is nothing to go on with.
    """
    from raytrain_speedup.scaling.storage import exists, folder_name, inside, may_hold_checkpoint

    if resume is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{folder_name(experiment.name)}-{stamp}-{uuid.uuid4().hex[:4]}"
        return inside(experiment.scaling.storage or "runs", name)
    if not exists(str(resume)):
        raise UserError(f"--resume: {resume} is not a folder; expected the folder of an earlier run")
    if not may_hold_checkpoint(str(resume)):
        raise UserError(f"--resume: {resume} holds no checkpoint; expected the folder of an earlier run")
    return str(resume)


class _Objects:
    """Objects in place of names, as keys of an experiment.

    Attributes:
        keys: dotted keys.
        local: the arguments that only this process can make anything of.
    """

    def __init__(self, **objects: Any) -> None:
        self.keys: dict[str, Any] = {}
        self.local: list[str] = []
        self._modules: set[str] = set()
        for argument, value in objects.items():
            if value is None:
                continue
            if isinstance(value, Settings):
                self._add_settings(argument, value)
            elif argument == "model":
                self.keys["model.name"] = value if isinstance(value, str) else self._path(argument, value)
            elif argument == "data":
                self._add_data(value)
            elif argument == "task":
                made = Given(value) if isinstance(value, Task) else value
                self.keys["task.kind"] = value if isinstance(value, str) else self._path(argument, made)
            else:
                raise UserError(
                    f"{argument}: {type(value).__name__} is not allowed; expected settings, such as those of "
                    + ", ".join(REGISTRIES[argument])
                )
        if folders := self._folders():
            self.keys["python_path"] = folders

    def experiment(
        self,
        base: str | Path | Mapping[str, Any] | Experiment | None,
        overrides: Iterable[str] | Mapping[str, Any],
    ) -> Experiment:
        """The experiment with the objects in it."""
        keys = self.keys | parse_overrides(overrides)
        if isinstance(base, Experiment):
            return base.with_overrides(keys)
        return load_experiment({"name": "python"} if base is None else base, keys)

    def refuse_local(self, why: str) -> None:
        """Where other processes have to import the objects."""
        if self.local:
            raise UserError(
                f"{self.local[0]}: this object works in this process alone, and {why}; expected a function or "
                "class of a module that can be imported"
            )

    def _add_settings(self, argument: str, settings: Settings) -> None:
        registry, kind = REGISTRIES[argument], type(settings)
        if not isinstance(settings, registry.base):
            raise UserError(
                f"{argument}: {kind.__name__} is not allowed; expected a {registry.base.__name__}"
            )
        tag = getattr(settings, registry.tag)
        if tag not in registry:
            registry.register(kind)
        if not kind.__module__.startswith("raytrain_speedup."):
            if kind.__module__ == "__main__":
                self.local.append(argument)
            else:
                self._modules.add(kind.__module__)
                self.keys["plugins"] = sorted({*self.keys.get("plugins", ()), kind.__module__})
        self.keys |= {f"{argument}.{key}": value for key, value in settings.model_dump(mode="json").items()}

    def _add_data(self, value: Data) -> None:
        if isinstance(value, str):
            self.keys["data.source"] = value
            return
        made = Given(value) if isinstance(value, Mapping) else value
        self.keys |= {"data.source": "python", "data.dataset": self._path("data", made)}

    def _path(self, argument: str, value: Any) -> str:
        path = named(value)
        module = path.partition(":")[0]
        if module == THIS_PROCESS:
            self.local.append(argument)
        else:
            self._modules.add(module)
        return path

    def _folders(self) -> list[str]:
        """Where other processes find the modules: the folders above those that are not installed."""
        tops = {name.partition(".")[0] for name in self._modules}
        files = [Path(file) for top in sorted(tops) if (file := getattr(sys.modules[top], "__file__", None))]
        folders = [file.parent.parent if file.name == "__init__.py" else file.parent for file in files]
        installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
        return list(dict.fromkeys(str(folder) for folder in folders if folder not in installed))


class Given:
    """An object that is there already, to be asked for as if it were made: a task, or the data sets of the
    splits."""

    def __init__(self, value: Task | Mapping[str, Any]) -> None:
        self.value = value
        self.__name__ = type(value).__name__

    def __call__(self, **arguments: str) -> Any:
        return self.value.get(arguments["split"]) if isinstance(self.value, Mapping) else self.value
