"""The tuned schedule: a small YAML file that any PyTorch loop can use, with the evidence for it.

    from raytrain_speedup.schedule import load_schedule

    schedule = load_schedule("schedule.yaml")
    pruner = schedule.pruner(len(dataset), epochs=200)
    for epoch in range(200):
        for index, weight in pruner.plan(epoch).batches(128):
            losses = criterion(model(inputs[index]), target[index])   # one loss per sample
            pruner.observe(index, losses.detach())
            (losses * weight).mean().backward()
            ...

Where the schedule has a curriculum, the budget says how many epochs there are and what each step shows:

    budget = schedule.budget(200, len(dataset), 224, stride=32)       # 200 epochs' compute
    pruner = schedule.pruner(len(dataset), budget)
    for epoch in range(len(budget.epoch_ends())):
        plan = pruner.plan(epoch)
        for number, (index, weight) in enumerate(plan.batches(128)):
            progress = budget.progress(epoch, number * 128 / plan.kept)
            if progress >= 1:                                         # within the last epoch
                break
            size = budget.stage_at(progress).size or 224
            x = crop_batch(images[index], size, mean=mean, std=std, kernel=schedule.curriculum.kernel)
            ...

The file is data: reading it runs no code, and needs neither Ray nor MLflow. Its settings are functions of
progress, so they carry over to another number of epochs. A checksum guards the evidence: figures that were
changed by hand are no evidence.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError
from urllib.request import urlopen

import torch
import yaml
from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from raytrain_speedup.methods.curriculum import CURRICULA, CurriculumSettings
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.pruning import PRUNERS, Pruner, PrunerSettings, equal_epochs
from raytrain_speedup.settings import Settings, UserError, explain

VERSION = 1
LARGEST_FILE = 1 << 20
HEADER = "# A tuned training schedule; use it with raytrain_speedup.schedule.load_schedule.\n"


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
    split: Literal["test", "validation"] = Field("test", description="the data that accuracy is of")
    seeds: tuple[int, ...] = Field(description="seeds of the runs with this schedule")
    accuracy: float = Field(description="mean over the seeds")
    accuracy_std: float | None = Field(None, description="standard deviation over the seeds")
    baseline_accuracy: float = Field(description="mean of the baseline")
    difference: float = Field(description="method - baseline")
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

    def pruner(
        self, num_samples: int, epochs: int | Budget, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> Pruner:
        """A pruner for a plain loop of `epochs` epochs, or those of a budget, over `num_samples` samples.

        Raises:
            UserError: if the schedule's saving is out of reach in so few epochs.
        """
        if isinstance(epochs, int):
            return self.pruning.build(num_samples, equal_epochs(epochs), seed=seed, device=device)
        share = epochs.last_epoch_share
        ends = epochs.epoch_ends()
        return self.pruning.build(num_samples, ends, last_epoch_share=share, seed=seed, device=device)

    def budget(
        self, epochs: float, num_samples: int, image_size: int, *, stride: int = 4, replay: bool = False
    ) -> Budget:
        """What the compute of `epochs` full passes buys under the curriculum; see `stages`.

        Args:
            replay: whether the loop shows samples again where a stage says so (`ReplayBuffer`); else every
                sample is read when it is shown, and the same compute makes more passes.
        """
        stages = self.stages(image_size, stride=stride)
        if not replay:
            stages = [replace(stage, replay=1) for stage in stages]
        return Budget(epochs, num_samples, stages)

    def stages(self, image_size: int, *, stride: int = 4) -> Sequence[Stage]:
        """The curriculum's stages for images of side `image_size`; sizes are multiples of `stride`."""
        return self.curriculum.stages(
            image_size, stride=stride, model=str(self.tuned_on.model.get("name", ""))
        )

    @property
    def proven(self) -> bool:
        """Whether the evidence says that nothing is lost."""
        return self.evidence is not None and self.evidence.verdict == "lossless"

    def to_yaml(self) -> str:
        """The text of the schedule file."""
        content = self.model_dump(mode="json")
        doubt = "" if self.proven else f"# Not proven lossless: {self.headline()}\n"
        return doubt + HEADER + yaml.safe_dump({**content, "checksum": checksum(content)}, sort_keys=False)

    def headline(self) -> str:
        """The evidence in a line."""
        if self.evidence is None:
            return "no baseline to compare with"
        found = self.evidence
        text = "no time believed" if found.speedup is None else f"{found.speedup:.2f} x as fast"
        if found.speedup_interval is not None:
            text += f" [{found.speedup_interval[0]:.2f}, {found.speedup_interval[1]:.2f}]"
        text += f", {found.difference:+.2f} points"
        if found.interval is not None:
            text += f" [{found.interval[0]:+.2f}, {found.interval[1]:+.2f}]"
        count = len(found.seeds)
        return f"{text} over {count} seed{'s' if count > 1 else ''}: {found.verdict}"


def save_schedule(schedule: Schedule, path: str | Path) -> Path:
    """Write the file."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(schedule.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); expected a file name") from error
    return path


def load_schedule(source: str | Path) -> Schedule:
    """Read a schedule.

    Args:
        source: a path, or a file:, http: or https: address.

    Raises:
        UserError: if it cannot be read, is of another version, has wrong keys, or was changed since.
    """
    try:
        content = yaml.safe_load(_fetch(source))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
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
            f"{source}: checksum: {found!r} does not fit the content; the file was changed after it was "
            "written. Expected an unchanged export: put own settings into an experiment file instead"
        )
    return schedule


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content, whatever its layout as text."""
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


def _fetch(source: str | Path) -> str:
    try:
        if str(source).startswith(("http://", "https://", "file:")):
            with urlopen(str(source), timeout=30) as answer:
                raw = answer.read(LARGEST_FILE + 1)
        else:
            with Path(source).open("rb") as file:
                raw = file.read(LARGEST_FILE + 1)
    except (OSError, URLError, ValueError) as error:
        raise UserError(f"{source}: cannot be read ({error}); expected a schedule file") from None
    if len(raw) > LARGEST_FILE:
        raise UserError(f"{source}: is larger than {LARGEST_FILE} bytes; expected a schedule file")
    return raw.decode("utf-8")
