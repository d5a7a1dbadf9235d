"""The search-space file: what is varied, how it is searched, and what it is compared with.

One YAML file per question. Every key in it is tried on the experiment model before anything runs, at both
ends of its range, so a typing error costs a second and not a night.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from pydantic import ValidationError

from raytrain_speedup.experiment_file import parse_overrides, read_yaml
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.methods.plain_loop import loop_budget, loop_pruner
from raytrain_speedup.metric import Direction
from raytrain_speedup.script import SETTINGS, AnyExperiment, ScriptExperiment, load_any, load_script
from raytrain_speedup.settings import UserError, explain, flatten
from raytrain_speedup.tuning.groups import (
    draw_of,
    is_active,
    meaning_of,
    scaled,
    with_rows,
)
from raytrain_speedup.tuning.objective import Objective
from raytrain_speedup.tuning.sweep_settings import COSTS, SEARCH_SEED, Overrides, SweepSettings

MAY_DIFFER_ON_RESUME = (
    *("about", "concurrency"),  # no metric depends on them
    *("trials", "points_to_evaluate"),  # the search may go on
    *("budget.hours", "budget.gpu_hours", "budget.patience"),
    *("seeds", "confirm.until", "confirm.max_seeds"),  # and so may the proof
)
"""Keys of a search-space file (dotted, where they are in a section) that may be others when a sweep is resumed.
All the rest is the question; with another question it would be another sweep."""

ANY_NUMBER = 10_000
"""Of samples: which savings can be reached hardly depends on it."""


@dataclass(frozen=True)
class Sweep:
    """A search-space file together with the experiment it varies."""

    settings: SweepSettings
    base: AnyExperiment

    def experiment(self, keys: Mapping[str, Any], seed: int) -> AnyExperiment:
        """The base experiment with other settings and another seed; one of the search has its proxy's too."""
        full = self.base.with_overrides(with_rows({**keys, "train.seed": seed}))
        if seed < SEARCH_SEED or not self.settings.proxy:
            return full
        return full.with_overrides(scaled(self.settings.proxy, flatten(full.to_dict())))

    def trial(self, params: Mapping[str, Any], seed: int) -> AnyExperiment:
        """A trial's experiment: `params` are the values the search chose."""
        return self.experiment({**self.settings.trial, **params}, seed)

    @property
    def objective(self) -> Objective:
        settings = self.settings
        return Objective(settings.objective, settings.objectives, settings.margin)

    def distributions(self) -> dict[str, BaseDistribution]:
        """What a sampler draws, by name; `meant` says what it means."""
        search = self.settings.search.items()
        return {name: kind for key, entry in search for name, kind in entry.numbers(key).items()}

    def meant(self, drawn: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What is drawn in the experiment's terms, and the numbers that these settings do not have."""
        return meaning_of(self.settings.search, drawn)

    def drawn(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse, of all settings or of some."""
        return draw_of(self.settings.search, params)

    @property
    def gpus_per_run(self) -> float:
        return self.base.scaling.most_workers * self.base.scaling.gpus_per_worker

    @property
    def tracked_as(self) -> str:
        """The name of its MLflow experiment."""
        return self.base.tracking.experiment or self.settings.name

    @property
    def key(self) -> str:
        """Equal for files that ask the same question, see `MAY_DIFFER_ON_RESUME`."""
        in_base = {"experiment", "trainable", "settings", "overrides"}
        said = flatten(self.settings.model_dump(mode="json", exclude=in_base))
        asked = {key: value for key, value in said.items() if key not in MAY_DIFFER_ON_RESUME}
        base = {key: value for key, value in self.base.to_dict().items() if key != "python_path"}
        text = json.dumps([asked, base], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_sweep(file: str | Path, overrides: Iterable[str] | Mapping[str, Any] = (), **settings: Any) -> Sweep:
    """Read a search-space file and try all it may do on the experiment model.

    Args:
        file: the YAML file.
        overrides: experiment keys to set for every run, over those of the file.
        settings: keys of the file to replace, such as `trials`; None leaves the file's.

    Raises:
        UserError: naming each wrong key, its value and what was expected.
    """
    path = Path(file)
    content = read_yaml(path) | {key: value for key, value in settings.items() if value is not None}
    try:
        read = SweepSettings.model_validate(content)
    except ValidationError as error:
        raise explain(error, SweepSettings, where=str(path)) from None
    base = _load_base(path, read).with_overrides(parse_overrides(overrides))
    if isinstance(base, ScriptExperiment):
        base = base.model_copy(update={"varies": _varied_settings(read, base)})
    elif base.distillation is None and not base.data.val_fraction:  # else synthetic images are kept back
        base = base.with_overrides({"data.val_fraction": read.val_fraction})
    if not read.objectives:
        read = read.model_copy(update={"objectives": default_objectives(base)})
    _check_objectives(path, read.objectives, base)
    sweep = Sweep(read, base)
    if base.scaling.elastic:
        raise UserError(
            f"{path}: scaling.workers: [{base.scaling.least_workers}, {base.scaling.most_workers}] is not allowed "
            "in a sweep; expected one number: a run whose workers come and go is compared with no other"
        )
    if read.budget.gpu_hours is not None and not sweep.gpus_per_run:
        raise UserError(
            f"{path}: budget.gpu_hours: {read.budget.gpu_hours:g} is never spent; expected "
            "scaling.gpus_per_worker above 0"
        )
    for what, keys in _to_try(read):
        with _told(path, what):
            _check_saving(sweep.experiment(keys, SEARCH_SEED if what == "proxy" else 0))
    return sweep


def _check_saving(experiment: AnyExperiment) -> None:
    """Refuse a saving that the budget cannot bring. (With a curriculum that is known once there are data.)"""
    if isinstance(experiment, ScriptExperiment) or experiment.curriculum.method != "none":
        return
    pruning = experiment.pruning
    if getattr(pruning, "saving", None) is None:
        return
    loop_pruner(
        pruning, ANY_NUMBER, loop_budget(pruning, [FULL], experiment.train.epochs, ANY_NUMBER), seed=0
    )


def _check_objectives(path: Path, objectives: Mapping[str, Direction], base: AnyExperiment) -> None:
    merits = _merits_of(base)
    for name, direction in objectives.items():
        if name not in merits and name not in COSTS and not _is_scripts(name, base):
            raise UserError(
                f"{path}: objectives: no run has a metric '{name}' to be tuned by; expected one of: "
                + ", ".join((*merits, *COSTS))
            )
        if direction != merits.get(name, direction):
            raise UserError(
                f"{path}: objectives: {name}: '{direction}' is not allowed; expected '{merits[name]}', by which it "
                "is better"
            )


def _load_base(path: Path, read: SweepSettings) -> AnyExperiment:
    """The experiment that a search-space file names, or that of its script."""
    if read.trainable is not None:
        script = {"name": read.name, "trainable": read.trainable, "settings": read.settings}
        return load_script(script, read.overrides, folder=path.parent, where=path)
    beside = path.parent / str(read.experiment)
    with _told(path, "experiment"):
        return load_any(
            beside if beside.suffix in (".yaml", ".yml") else str(read.experiment),
            read.overrides,
            beside=path,
        )


def _varied_settings(read: SweepSettings, base: ScriptExperiment) -> tuple[str, ...]:
    """The script's settings in which the runs of a sweep may differ, beside those it says itself."""
    sets = (read.search, read.trial, read.baseline, *read.controls.values())
    keys = {key.removeprefix(SETTINGS) for keys in sets for key in keys if key.startswith(SETTINGS)}
    known = flatten(base.settings)  # an unknown key is reported where it is tried
    return tuple(sorted(keys & known.keys() | set(base.varies)))


def baseline_of(sweep: Sweep) -> Overrides:
    """The keys that make the baseline of a sweep out of any run of it: a script's settings are those of the file
    again, whatever the run was tuned to."""
    if not isinstance(sweep.base, ScriptExperiment):
        return sweep.settings.baseline
    return {**flatten(sweep.base.settings, SETTINGS), **sweep.settings.baseline}


def _is_scripts(name: str, base: AnyExperiment) -> bool:
    """Whether a metric may be one of a script, which has names of its own."""
    return isinstance(base, ScriptExperiment) and name.startswith("val_")


def default_objectives(experiment: AnyExperiment) -> dict[str, Direction]:
    """The task's metric and the FLOPs; without data, and of a script, quality and the seconds.

    FLOPs rather than seconds, because what a search learns must not depend on what else the machine was doing;
    but a synthesis and the student's steps differ in how well they use a device, and trade seconds, not FLOPs,
    with one another. Seconds are what is reported in any case.
    """
    if experiment.distillation is not None:
        return {"val_agreement": "max", "train_seconds": "min"}
    if isinstance(experiment, ScriptExperiment):
        return {experiment.ranking.key("validation"): experiment.direction, "train_seconds": "min"}
    metric = experiment.task.build().ranking
    return {metric.key("validation"): metric.direction, "train_flops": "min"}


def _merits_of(experiment: AnyExperiment) -> dict[str, Direction]:
    """Metrics of quality that a search may use, and which way they are better: those of the test split are read
    once, when it is over."""
    if isinstance(experiment, ScriptExperiment):
        return {experiment.ranking.key("validation"): experiment.direction}
    task = experiment.task.build()
    judged: dict[str, Direction] = {"agreement": "max"}
    if experiment.distillation is None:
        judged = {task.metric: task.direction, **task.others}
    judged.setdefault("loss", "min")
    return {f"val_{name}": direction for name, direction in judged.items()}


def _to_try(settings: SweepSettings) -> Iterator[tuple[str, Overrides]]:
    """Every set of keys the sweep will combine, named for a message: each end of each range once."""
    first = {key: entry.ends()[0] for key, entry in settings.search.items()}

    def together(point: Overrides) -> Overrides:
        """With the first values of the others, as far as the point has them."""
        keys = {**settings.trial, **first, **point}
        return {key: value for key, value in keys.items() if is_active(settings.search, key, keys)}

    for key, entry in settings.search.items():
        required = {name: values[0] for name, values in entry.when.items()}
        for value in entry.ends():
            yield "search", together({**required, key: value})
    for point in settings.points_to_evaluate:
        yield "points_to_evaluate", together(point)
    if settings.proxy:
        yield "proxy", settings.baseline
    yield "baseline", settings.baseline
    for name, keys in settings.controls.items():
        yield f"controls.{name}", keys


@contextmanager
def _told(path: Path, section: str) -> Iterator[None]:
    """Puts the file and its section in front of a message from the experiment model."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {section}: {error}") from None
