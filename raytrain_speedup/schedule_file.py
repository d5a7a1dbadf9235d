"""What a schedule holds: settings of methods, what they were tuned on, the evidence; as a YAML file and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from raytrain_speedup import plain_yaml
from raytrain_speedup.methods.curriculum import CURRICULA, CurriculumSettings
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.plain_loop import loop_budget, loop_pruner
from raytrain_speedup.methods.pruning import PRUNERS, Pruner, PrunerSettings
from raytrain_speedup.metric import Direction, Metric, SplitName
from raytrain_speedup.settings import Settings, UserError, explain
from raytrain_speedup.transfer import HasSections, transfer_differences

VERSION = 1
HEADER = "# A tuned training schedule; use it with raytrain_speedup.schedule.load_schedule.\n"


class UnprovenSchedule(UserWarning):
    """A schedule was loaded that was not found lossless."""


class TunedOn(Settings):
    """What the schedule was found on; elsewhere it is a good start, not a promise."""

    experiment: str = Field(description="the experiment's name")
    run_id: str = Field(description="the MLflow run it comes from")
    data: dict[str, Any] = Field(description="the experiment's data section")
    model: dict[str, Any] = Field(description="the experiment's model section")
    train: dict[str, Any] = Field(description="the experiment's train section, the budget among it")
    workers: int = Field(ge=1, description="Ray Train workers")
    hardware: str = Field(description="what it ran on")
    package_version: str = Field(description="version of raytrain_speedup")


class Evidence(Settings):
    """What was measured. Accuracies and differences are in points, ratios are times."""

    metric: str = Field("accuracy", description="the task's metric that is called accuracy here")
    direction: Direction = Field("max", description="whether larger or smaller values of it are better")
    split: SplitName = Field("test", description="the data that accuracy is of")
    seeds: tuple[int, ...] = Field(description="seeds of the runs with this schedule")
    accuracy: float = Field(description="mean over the seeds")
    accuracy_std: float | None = Field(None, description="standard deviation over the seeds")
    baseline_accuracy: float = Field(description="mean of the baseline")
    difference: float = Field(description="method - baseline, in the metric as it is")
    interval: tuple[float, float] | None = Field(None, description="95 % bounds of the difference")
    margin: float = Field(description="points below the baseline that count as no loss")
    verdict: Literal["lossless", "lossy", "not yet known"] = Field(description="of the interval")
    plan: dict[str, Any] | None = Field(
        None, description="how the difference was to be judged, made before the runs: looks, levels, error"
    )
    looks: int | None = Field(None, description="how often the data were looked at by then")
    speedup: float | None = Field(description="baseline cost / cost; null where no clock is believed")
    speedup_interval: tuple[float, float] | None = Field(None, description="90 % bounds of the speedup")
    speedup_clock: Literal["reference steps", "wall seconds", "none"] = Field(
        "wall seconds", description="what the cost was counted in"
    )
    wall_speedup: float | None = Field(None, description="by wall seconds of training")
    flops_ratio: float | None = Field(None, description="baseline FLOPs / FLOPs of training")
    disturbed: str = Field("", description="what disturbed the runs")
    passes_saved: float = Field(description="fraction of the budget's sample passes not shown")


class Schedule(Settings):
    """The settings of the methods, what they were tuned on, and what was measured there."""

    version: Literal[1] = Field(description="of this format")
    pruning: SerializeAsAny[PrunerSettings] = Field(description="which samples an epoch shows")
    curriculum: SerializeAsAny[CurriculumSettings] = Field(description="how much of each sample is shown")
    tuned_on: TunedOn = Field(description="where the settings come from")
    evidence: Evidence | None = Field(None, description="null where there was no baseline to compare with")

    @field_validator("pruning", mode="before")
    @classmethod
    def _pruning(cls, section: Any) -> Any:
        return _from_registry(section, PRUNERS)

    @field_validator("curriculum", mode="before")
    @classmethod
    def _curriculum(cls, section: Any) -> Any:
        return _from_registry(section, CURRICULA)

    @model_validator(mode="before")
    @classmethod
    def _warm_up_is_a_progress(cls, content: Any) -> Any:
        """Earlier files count the warm-up in epochs of the budget they were tuned on. Exact without a
        curriculum; with one, early epochs are shorter in progress, so the warm-up is longer than it was."""
        try:
            pruning, warmup = dict(content["pruning"]), content["pruning"]["warmup_epochs"]
            progress = float(warmup / TunedOn.model_validate(content["tuned_on"]).train["epochs"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return content  # as written now, or wrong in a way that is reported below
        del pruning["warmup_epochs"]
        return {**content, "pruning": pruning | {"prune_from": progress if warmup > 1 else 0.0}}

    @property
    def proven(self) -> bool:
        """Whether the evidence is that nothing is lost."""
        return self.evidence is not None and self.evidence.verdict == "lossless"

    def pruner(
        self,
        num_samples: int,
        epochs: int | Budget,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> Pruner:
        """A pruner for a plain loop of `epochs` epochs, or those of a budget, over `num_samples` samples.

        Args:
            num_samples: N, the size of the data set.
            epochs: how many the loop makes, or the budget of `budget`.
            seed, device: see `PrunerSettings.build`.

        Raises:
            UserError: if there are no samples or epochs, or the saving is out of reach in so few of them.
        """
        return loop_pruner(self.pruning, num_samples, epochs, seed=seed, device=device)

    def budget(
        self, epochs: float, num_samples: int, image_size: int, *, stride: int = 4, replay: bool = False
    ) -> Budget:
        """What the compute of `epochs` full passes buys under the curriculum; see `stages`.

        A schedule that saves by fewer epochs gives the budget of those.

        Args:
            replay: whether the loop shows samples again where a stage says so (`ReplayBuffer`); else every
                sample is read when it is shown, and the same compute makes more passes.

        Raises:
            UserError: if there are no epochs or samples, or no stages for the size.
        """
        stages = self.stages(image_size, stride=stride)
        return loop_budget(self.pruning, stages, epochs, num_samples, replay=replay)

    def stages(self, image_size: int, *, stride: int = 4) -> Sequence[Stage]:
        """The curriculum's stages for images of size `image_size`; sizes are multiples of `stride`."""
        return self.curriculum.stages(
            image_size, stride=stride, model=str(self.tuned_on.model.get("name", ""))
        )

    def check(
        self, experiment: Mapping[str, Any] | HasSections, source: str | Path = "this schedule"
    ) -> None:
        """Refuse to be used on other data, another model or another budget than the schedule was tuned on.

        Args:
            experiment: as in `load_schedule`.
            source: what to call the schedule.

        Raises:
            UserError: naming every key that differs.
        """
        if other := transfer_differences(self.tuned_on.model_dump(), experiment):
            raise UserError(
                f"{source}: tuned on something else: {'; '.join(other)}. Expected the same data, model and budget, "
                "or allow_transfer=True, by which it is a good start and its evidence holds no more"
            )

    def to_yaml(self) -> str:
        """The text of the schedule file."""
        content = self.model_dump(mode="json")
        doubt = "" if self.proven else f"# Not proven lossless: {self.headline()}\n"
        return doubt + HEADER + plain_yaml.dump({**content, "checksum": checksum(content)})

    def headline(self) -> str:
        """The evidence in a line."""
        if self.evidence is None:
            return "no baseline to compare with"
        found = self.evidence
        text = "no time believed" if found.speedup is None else f"{found.speedup:.2f} x as fast"
        if found.speedup_interval is not None:
            text += f" [{found.speedup_interval[0]:.2f}, {found.speedup_interval[1]:.2f}]"
        difference = Metric(found.metric, found.direction).difference(found.difference, found.interval)
        count = len(found.seeds)
        return f"{text}, {difference} over {count} seed{'s' if count > 1 else ''}: {found.verdict}"


def save_schedule(schedule: Schedule, path: str | Path) -> Path:
    """Write the file."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(schedule.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); expected a file name") from error
    return path


def read_schedule(source: str | Path) -> Schedule:
    """The schedule of a file, whatever its evidence.

    Args:
        source: a path, or a file:, http: or https: URL.

    Raises:
        UserError: if it cannot be read, is of another version, has wrong keys, or was changed since.
    """
    return _checked(plain_yaml.load(source), source)


def parse_schedule(text: str, source: str | Path) -> Schedule:
    """The schedule in the text of a file, whatever its evidence.

    Args:
        source: what to call it.

    Raises:
        UserError: as `read_schedule`.
    """
    return _checked(plain_yaml.parse(text.encode("utf-8"), source), source)


def _checked(content: Any, source: str | Path) -> Schedule:
    """The schedule that a file holds."""
    if not isinstance(content, dict) or "version" not in content:
        raise UserError(f"{source}: not a schedule; expected a file written by `speedup export`")
    if content["version"] != VERSION:
        raise UserError(
            f"{source}: version: {content['version']!r} is unknown here; expected {VERSION} "
            "(a newer raytrain_speedup may read it)"
        )
    found = content.pop("checksum", None)
    try:
        schedule = Schedule.model_validate(content)
    except ValidationError as error:
        raise explain(error, Schedule, where=str(source)) from None
    if found != checksum(content):
        raise UserError(
            f"{source}: checksum: {found!r} does not fit the content; the file was changed or damaged after it was "
            "written (that is all the checksum can tell: it is no signature). Expected an unchanged export: put "
            "own settings into an experiment file instead"
        )
    return schedule


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content, whatever its layout as text. It tells slips, not forgeries: anyone can compute it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _from_registry(section: Any, registry: Mapping[str, type[Settings]]) -> Any:
    """Read a section by the settings class that its `method` names."""
    if isinstance(section, Settings):
        return section
    method = str(section.get("method")) if isinstance(section, Mapping) else "(no section)"
    if method not in registry:
        raise ValueError(f"method: {method!r} is unknown; expected one of: {', '.join(registry)}")
    try:
        return registry[method].model_validate(section)
    except ValidationError as error:
        raise ValueError(str(explain(error, registry[method]))) from None
