"""The experiment: one frozen model of everything that decides a run.

An experiment is a YAML file (or the name of a recipe) plus `key=value` overrides. The sections of methods,
data sources and tasks are the settings classes in their registries, so a new method brings its own keys and
this file does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from raytrain_speedup.data import SOURCES, DataSettings
from raytrain_speedup.experiment_file import (
    absolute,
    find_experiment,
    import_own_code,
    names_own_code,
    overridden,
    read_yaml,
    recipes,
)
from raytrain_speedup.methods.curriculum import CURRICULA, CurriculumSettings
from raytrain_speedup.methods.distillation import SYNTHESIZERS, SynthesisSettings
from raytrain_speedup.methods.pruning import PRUNERS, PrunerSettings
from raytrain_speedup.models import ModelSettings
from raytrain_speedup.registry import Chosen
from raytrain_speedup.settings import Settings, UserError, explain
from raytrain_speedup.tasks import TASKS, TaskSettings


class TrainSettings(Settings):
    """One training run: budget, optimizer, learning rate, numerics."""

    epochs: float = Field(
        10, gt=0, description="the budget in epoch equivalents: whole data set, full resolution"
    )
    batch_size: int = Field(128, ge=1, description="samples of an optimizer step, over all workers together")
    accumulate: int = Field(1, ge=1, description="parts a worker's batch is computed in, to save memory")
    seed: int = Field(0, ge=0, description="seeds initialisation, order, augmentation and pruning")

    optimizer: Literal["sgd", "adamw", "lamb", "lars", "muon"] = Field(
        "sgd",
        description="the optimizer; muon: timm's, for matrices and filters, beside AdamW for the classifier, "
        "embeddings and vectors at the same learning rate",
    )
    lr: float = Field(0.1, gt=0, description="peak learning rate")
    momentum: float = Field(
        0.9, ge=0, lt=1, description="momentum of sgd, lars and muon; beta1 of adamw and lamb"
    )
    beta2: float = Field(0.999, gt=0, lt=1, description="beta2 of adamw, lamb and muon's AdamW")
    weight_decay: float = Field(
        5e-4,
        ge=0,
        description="weight decay; spared are normalisations, biases and what a timm model exempts (position "
        "tables)",
    )
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="factor on the learning rate per layer below the head; for fine-tuning"
    )
    nesterov: bool = Field(False, description="Nesterov momentum (sgd, lars, muon)")
    schedule: Literal["cosine", "one-cycle", "constant"] = Field(
        "cosine", description="learning rate as a function of progress"
    )
    warmup: float = Field(
        0.05, ge=0, lt=1, description="fraction of the budget in which the learning rate rises"
    )
    start_div: float = Field(25.0, ge=1, description="the learning rate starts at lr / start_div")
    final_div: float = Field(1e4, ge=1, description="the learning rate ends at lr / (start_div * final_div)")

    clip_norm: float | None = Field(None, gt=0, description="largest global norm of the gradient")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup (arXiv 1710.09412); 0 is off")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix (arXiv 1905.04899); 0 is off")
    mix_switch: float = Field(0.5, ge=0, le=1, description="fraction of CutMix batches where both are on")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of the weights' moving average per full-data step; evaluated instead",
    )

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="arithmetic of the forward pass")
    channels_last: bool = Field(False, description="NHWC memory format; faster convolutions on most devices")
    compile: bool = Field(False, description="torch.compile the model")
    sync_batch_norm: bool = Field(
        False,
        description="with several workers, batch normalisation by the samples of all of them, as one worker has "
        "it; by default each takes those it has itself",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of a worker; by default torch's choice")

    eval_every: int = Field(
        1, ge=0, description="epochs between evaluations on the validation split; 0: only at the end"
    )
    checkpoint_every: int = Field(1, ge=0, description="epochs between checkpoints; 0: none but at Ctrl-C")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="also checkpoint every so many steps of an epoch"
    )
    checkpoint_minutes: float | None = Field(
        None, gt=0, description="also checkpoint when the last one is so many minutes old"
    )

    @model_validator(mode="after")
    def _normalises_whole_steps(self) -> TrainSettings:
        if self.sync_batch_norm and self.accumulate > 1:
            raise ValueError(
                f"sync_batch_norm: true is not allowed with accumulate {self.accumulate}; expected accumulate 1: a "
                "step in parts is nowhere as a whole"
            )
        return self


class ScalingSettings(Settings):
    """How many workers share a run, and what happens when one is lost."""

    workers: int | tuple[int, int] = Field(
        1,
        description="Ray Train workers; the batch is split among them. Two numbers, [2, 8]: as many as the cluster "
        "has room for, and another number from the last checkpoint on where nodes come or go",
    )
    strategy: Literal["ddp"] = Field(
        "ddp", description="each worker has the whole model, and gradients are averaged; there is no other"
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs reserved for a worker")
    gpus_per_worker: float = Field(0, ge=0, description="whole GPUs reserved for a worker; 0 trains on CPUs")
    max_failures: int = Field(
        2,
        ge=-1,
        description="restarts from the last checkpoint before giving up; those because a node was taken back with "
        "notice do not count; -1: for ever",
    )
    storage: str | None = Field(
        None,
        description="folder for checkpoints, shared by all nodes, or a URI such as s3://bucket/runs; ./runs "
        "where nothing is given",
    )
    start_timeout: float = Field(120, gt=0, description="seconds to wait for the workers' resources")
    timeout: float = Field(
        1800,
        gt=0,
        description="seconds that a worker waits for the others in a step; then all are started again",
    )
    resize_seconds: float = Field(
        60,
        gt=0,
        description="how often a group of [fewest, most] workers looks whether there is room for more",
    )

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change within a run."""
        return self.least_workers < self.most_workers

    @field_validator("workers", mode="before")
    @classmethod
    def _is_a_number_or_two(cls, workers: Any) -> Any:
        several = list(workers) if isinstance(workers, list | tuple) else [workers]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in several):
            raise ValueError(f"{workers!r} is not allowed; expected a whole number, or two: [fewest, most]")
        if min(several, default=0) < 1:
            raise ValueError(f"{workers!r} is not allowed; expected greater than or equal to 1")
        if len(several) > 2 or several != sorted(several):
            raise ValueError(f"{workers!r} is not allowed; expected two numbers, [fewest, most]")
        return several[0] if several[0] == several[-1] else tuple(several)

    @field_validator("strategy", mode="before")
    @classmethod
    def _is_not_sharded(cls, strategy: Any) -> Any:
        if strategy != "ddp":
            raise ValueError(
                f"{strategy!r} is not allowed; expected 'ddp': models are not sharded (FSDP2, HSDP), each worker "
                "holds weights, gradients and optimizer whole, up to 24 bytes a parameter"
            )
        return strategy

    @field_validator("gpus_per_worker")
    @classmethod
    def _is_timed_alone(cls, gpus: float) -> float:
        if gpus % 1:
            raise ValueError(
                f"{gpus:g} is not allowed; expected a whole number: workers that share a GPU take turns on it, and "
                "the seconds of a run would be those of its neighbours too"
            )
        return gpus


class TrackingSettings(Settings):
    """Where the metrics go."""

    experiment: str | None = Field(
        None, description="the tracker's experiment; this experiment's name by default"
    )
    uri: str | None = Field(
        None, description="MLflow server or database, or json:FOLDER; MLFLOW_TRACKING_URI, else ./mlflow.db"
    )


class TeacherSettings(Settings):
    """The network that distillation learns from: trained before, or first of all on the data set."""

    model: ModelSettings = Field(
        description="the teacher, by the keys of `model`; `pretrained` names its file, such as a run's "
        "model.pt, `weights` published ones; either is taken as it is, classifier included"
    )
    train: TrainSettings | None = Field(
        None,
        description="how to train it first, on the data set, by the keys of `train`, where it has neither file "
        "nor weights",
    )

    @model_validator(mode="after")
    def _has_knowledge(self) -> TeacherSettings:
        sources = [self.train, self.model.pretrained, self.model.weights]
        if sum(source is not None for source in sources) != 1:
            raise ValueError("expected exactly one of teacher.train, teacher.model.pretrained and .weights")
        return self


class Experiment(Settings):
    """Everything that decides a run; sections are explained by `speedup train --help`."""

    name: str = Field(description="what to call it", min_length=1)
    about: str = Field("", description="a sentence for `speedup recipes`")
    python_path: tuple[Path, ...] = Field(
        (),
        description="folders that code of your own is imported from; default: that of the experiment's file, "
        "and the working directory",
    )
    plugins: tuple[str, ...] = Field(
        (), description="modules of your own that register methods, tasks or data, such as my_package.methods"
    )
    task: Annotated[TaskSettings, Chosen(TASKS)] = Field(
        default_factory=lambda: TASKS["classification"](kind="classification"), description="loss and metric"
    )
    data: Annotated[DataSettings, Chosen(SOURCES)] = Field(
        description="where the samples come from, and how they are augmented"
    )
    model: ModelSettings = Field(description="the network")
    train: TrainSettings = Field(default_factory=TrainSettings, description="budget, optimizer, numerics")
    pruning: Annotated[PrunerSettings, Chosen(PRUNERS)] = Field(
        default_factory=lambda: PRUNERS["none"](method="none"), description="which samples an epoch shows"
    )
    curriculum: Annotated[CurriculumSettings, Chosen(CURRICULA)] = Field(
        default_factory=lambda: CURRICULA["none"](method="none"),
        description="how much of each sample is shown",
    )
    teacher: TeacherSettings | None = Field(None, description="what `distillation` learns from")
    distillation: Annotated[SynthesisSettings, Chosen(SYNTHESIZERS)] | None = Field(
        None, description="train `model` without data, on images synthesised from the teacher"
    )
    scaling: ScalingSettings = Field(default_factory=ScalingSettings, description="workers and faults")
    tracking: TrackingSettings = Field(default_factory=TrackingSettings, description="where the metrics go")

    @model_validator(mode="before")
    @classmethod
    def _own_code_first(cls, content: Any) -> Any:
        """What follows may be read by classes that a plugin registers."""
        if not isinstance(content, dict):
            return content
        if not content.get("python_path") and names_own_code(content):
            content = {**content, "python_path": (Path.cwd(),)}
        import_own_code(content)
        return content

    @field_validator("task", mode="before")
    @classmethod
    def _classification_unless_said(cls, task: Any) -> Any:
        return {"kind": "classification", **task} if isinstance(task, dict) else task

    @model_validator(mode="after")
    def _distillation_is_whole(self) -> Experiment:
        if (self.teacher is None) != (self.distillation is None):
            given, missing = ("teacher", "distillation") if self.teacher else ("distillation", "teacher")
            raise ValueError(f"{given}: given without the section '{missing}', which it needs")
        if self.distillation is not None:
            for section, idle in (("pruning", self.pruning), ("curriculum", self.curriculum)):
                if idle.method != "none":
                    raise ValueError(f"{section}.method: '{idle.method}' needs data; expected 'none' here")
        return self

    @model_validator(mode="after")
    def _targets_can_be_mixed(self) -> Experiment:
        taught = self.teacher.train if self.teacher is not None else None
        for section, train in (("train", self.train), ("teacher.train", taught)):
            for key in ("mixup", "cutmix"):
                if train is not None and getattr(train, key) and key not in self.task.build().mixes:
                    raise ValueError(
                        f"{section}.{key}: {getattr(train, key):g} is not allowed; expected 0 in "
                        f"{self.task.kind}, whose targets cannot be mixed so"
                    )
        return self

    @model_validator(mode="after")
    def _inputs_lie_where_the_task_wants_them(self) -> Experiment:
        wanted = self.task.build().normalisation or ()
        for key, value in zip(("mean", "std"), wanted, strict=False):
            found = getattr(self.data, key)
            if set(found) != {value}:
                given = ", ".join(f"{each:g}" for each in found)
                raise ValueError(
                    f"data.{key}: [{given}] is not allowed; expected [{value:g}] in {self.task.kind}, which relies "
                    "on the range of its inputs"
                )
        return self

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> Experiment:
        taught = self.teacher.train if self.teacher is not None else None
        for section, train in (("train", self.train), ("teacher.train", taught)):
            if train is None:
                continue
            workers = self.scaling.most_workers
            parts = workers * train.accumulate
            if self.scaling.elastic:  # nearly evenly, among any number
                if train.batch_size < 2 * parts:
                    raise ValueError(
                        f"{section}.batch_size: {train.batch_size} is too small for {workers} workers x "
                        f"{train.accumulate} accumulated parts; expected {2 * parts} at least"
                    )
            elif train.batch_size % parts:
                raise ValueError(
                    f"{section}.batch_size: {train.batch_size} does not split into {workers} "
                    f"workers x {train.accumulate} accumulated parts; expected a multiple of {parts}"
                )
        return self

    def check_code(self) -> None:
        for section in (self.task, self.data, self.model):
            section.check_code()
        if self.teacher is not None:
            try:
                self.teacher.model.check_code()
            except UserError as error:
                raise UserError(f"teacher.{error}") from error

    def with_overrides(self, overrides: Iterable[str] | Mapping[str, Any]) -> Experiment:
        """The same experiment with dotted keys set to other values (`{"pruning.prune_ratio": 0.4}`).

        Raises:
            UserError: as `load_experiment`.
        """
        changed = _validated(overridden(self.to_dict(), overrides), where=self.name)
        changed.check_code()
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in YAML."""
        return self.model_dump(mode="json")

    def shipped(self) -> dict[str, Any]:
        """Plain data for another process: with absolute paths, since it may work in another directory."""
        return absolute(self.model_dump())

    def to_yaml(self) -> str:
        """The experiment file that gives this experiment, with every default written out."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def load_experiment(
    name: str | Path | Mapping[str, Any],
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    beside: Path | None = None,
) -> Experiment:
    """Read an experiment.

    Args:
        name: a YAML file, the name of a recipe (`digits`), or the content of such a file.
        overrides: `["train.epochs=5"]` or `{"train.epochs": 5}`.
        beside: another file in whose folder code of the user's own may be.

    Raises:
        UserError: naming each wrong key, its value and what was expected; and where code of the user's own is
            not there, or takes other arguments than it will get.
    """
    if isinstance(name, Mapping):
        return load_content(name, overrides, files=(beside,), where=str(name.get("name", "experiment")))
    path = find_experiment(name)
    return load_content(read_yaml(path), overrides, files=(path, beside), where=str(name))


def load_content(
    content: Mapping[str, Any],
    overrides: Iterable[str] | Mapping[str, Any],
    *,
    files: Sequence[Path | None],
    where: str,
) -> Experiment:
    """As `load_experiment`, of what a file holds.

    Args:
        files: in whose folders code of the user's own may be.
        where: what to call the file.
    """
    experiment = _validated(_completed(content, overrides, files), where=where)
    experiment.check_code()
    return experiment


def _completed(
    content: Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any], files: Sequence[Path | None]
) -> dict[str, Any]:
    """A content with overrides, and where it names code of the user's own, with the folders to look for it in."""
    content = overridden(dict(content), overrides)
    if not content.get("python_path") and names_own_code(content):
        own = [file for file in files if file is not None and file not in recipes().values()]
        folders = [*(file.absolute().parent for file in own), Path.cwd()]
        content["python_path"] = list(dict.fromkeys(str(folder) for folder in folders))
    return content


def load_plugins(words: Sequence[str]) -> None:
    """Register what the plugins of a command line bring, for its help.

    Args:
        words: those of `speedup train`, an experiment or none and `key=value` overrides.

    Raises:
        UserError: if the experiment cannot be found, or a plugin not be imported.
    """
    overrides = [word for word in words if word.startswith(("plugins=", "python_path="))]
    named = [word for word in words if "=" not in word]
    path = find_experiment(named[0]) if named else None
    import_own_code(_completed(read_yaml(path) if path else {}, overrides, (path,)))


def _validated(content: dict[str, Any], *, where: str) -> Experiment:
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise explain(error, Experiment, where=where) from None


def load_experiment_dict(content: dict[str, Any]) -> Experiment:
    """An experiment from plain data, such as `Experiment.to_dict` gives."""
    return _validated(content, where=str(content.get("name", "experiment")))
