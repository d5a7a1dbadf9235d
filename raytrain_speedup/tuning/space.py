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
from typing import Annotated, Any, Literal

from optuna.distributions import BaseDistribution
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from raytrain_speedup.experiment_file import parse_overrides, read_yaml
from raytrain_speedup.metric import Direction
from raytrain_speedup.script import SETTINGS, AnyExperiment, ScriptExperiment, load_any, load_script
from raytrain_speedup.settings import Settings, UserError, explain, flatten
from raytrain_speedup.tuning.distributions import Distribution
from raytrain_speedup.tuning.groups import (
    check_conditions,
    draw_of,
    is_active,
    meaning_of,
    scaled,
    with_rows,
)
from raytrain_speedup.tuning.objective import Kind, Objective

Overrides = dict[str, Any]

COSTS = (
    *("train_seconds", "reference_steps", "synthesis_seconds", "wall_seconds", "train_flops"),
    *(
        "compute_spent",
        "samples_shown",
        "samples_per_second",
        "passes_saved",
        "peak_memory_bytes",
        "bytes_read",
    ),
)
"""Final metrics of a run that quality may be traded against."""

MAY_DIFFER_ON_RESUME = (
    *("about", "concurrency"),  # no metric depends on them
    *("trials", "points_to_evaluate"),  # the search may go on
    *("budget.hours", "budget.gpu_hours", "budget.patience"),
    *("seeds", "confirm.until", "confirm.max_seeds"),  # and so may the proof
)
"""Keys of a search-space file (dotted, where they are in a section) that may be others when a sweep is resumed.
All the rest is the question; with another question it would be another sweep."""

PATIENCE = 6
"""Trials without one that is 2 % cheaper, which end a search for one setting where no budget is given: on known
surfaces that and stopping spare half of its compute (tests/benchmarks/results/cpu-search.md)."""

SEARCH_SEED = 1_000_003
"""The search trains with a seed of its own, so that a winner's luck is no evidence for it, however many seeds are
asked for later."""


class _Entry(Settings):
    """Carries one entry of `search` through pydantic, so that its messages name the entry."""

    entry: Distribution


class SchedulerSettings(Settings):
    """Which trials are stopped early."""

    method: Literal["bound", "asha", "none"] = Field(
        "none",
        description="bound: those that will hardly reach baseline - margin, judged by the curves of finished runs "
        "at equal progress, and those where a finished one is cheaper and believed to be as good; asha: "
        "asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), all but the cheapest of equal "
        "quality; none: every trial spends its budget",
    )
    grace: float = Field(0.25, gt=0, lt=1, description="progress before which no trial is stopped")
    chance: float = Field(
        0.1, gt=0, lt=0.5, description="bound: stop where the chance to reach it is below this"
    )
    reduction: float = Field(3, gt=1, description="asha: 1 in so many trials goes on past each rung")


class BudgetSettings(Settings):
    """What ends a search beside its number of trials; the confirmation comes after it."""

    hours: float | None = Field(None, gt=0, description="of the clock, since this command began")
    gpu_hours: float | None = Field(
        None, gt=0, description="of all runs of the search together, those of a resumed sweep included"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="the best setting has not moved for so many trials (cheapest-lossless: none lossless has been "
        "2 % cheaper), of at least 10 for each parameter, or half of all",
    )


class ConfirmSettings(Settings):
    """How the best trials are confirmed against the baseline; docs/measuring.md says why so."""

    winners: int = Field(2, ge=0, description="how many of the best trials")
    step_downs: int = Field(
        1,
        ge=0,
        le=4,
        description="how many safer ones come before them (cheapest-lossless): the safest is confirmed first, at "
        "the whole error, and each that is proven is followed by the next cheaper one",
    )
    until: Literal["verdict", "seeds"] = Field(
        "verdict",
        description="verdict: seed by seed until there is one; seeds: the seeds of the file, no more",
    )
    max_seeds: int = Field(12, ge=3, le=200, description="give up after so many")
    error: float = Field(
        0.05, gt=0, le=0.1, description="chance of a false verdict, over all looks and winners together"
    )
    pairing: Literal["paired", "unpaired"] = Field(
        "unpaired", description="compare seed by seed, or mean with mean; never decided after seeing the data"
    )

    @property
    def rungs(self) -> int:
        """Settings that are confirmed one after the other, at most."""
        return self.winners + self.step_downs if self.winners else 0


class SweepSettings(Settings):
    """A search-space file."""

    name: str = Field(min_length=1, description="what to call it; the MLflow experiment's name")
    about: str = Field("", description="the question it answers, in a sentence")
    experiment: str | None = Field(
        None, description="a recipe's name, or an experiment file relative to this file"
    )
    trainable: str | None = Field(
        None, description="instead of an experiment: a script of your own, such as my_package.train:main"
    )
    settings: Overrides = Field(
        default_factory=dict,
        description="the script's own keys, with their defaults; search varies settings.KEY",
    )
    overrides: Overrides = Field(default_factory=dict, description="experiment keys set for every run")
    trial: Overrides = Field(
        default_factory=dict,
        description="experiment keys that a trial sets beside what is searched (pruning.method: infobatch)",
    )
    search: dict[str, Distribution] = Field(
        default_factory=dict, description="experiment key: distribution, in Optuna's terms"
    )
    proxy: Overrides = Field(
        default_factory=dict,
        description="experiment keys of the search alone, trials and their baselines: a smaller budget or model; "
        "x0.1 is a tenth of what the run would have. The winners are confirmed without them",
    )
    trials: int = Field(20, ge=0, description="how many settings to try")
    seed: int = Field(0, ge=0, description="of the search itself")
    concurrency: int | None = Field(
        None, ge=1, description="runs at a time; as many as the cluster holds if unset"
    )
    objectives: dict[str, Direction] = Field(
        default_factory=dict,
        description="metrics to optimise, quality first; by default the task's own on the validation split "
        "(val_accuracy, val_miou, without data val_agreement) and what it costs",
    )
    objective: Kind = Field(
        default_factory=lambda said: (
            "cheapest-lossless" if len(said.get("objectives", ())) in (0, 2) else "pareto"
        ),
        description="cheapest-lossless: the smallest cost at a quality of at least baseline - margin; pareto: "
        "every trade between the objectives, be they two or not",
    )
    budget: BudgetSettings = Field(
        default_factory=lambda said: BudgetSettings(
            patience=None if said.get("objective") == "pareto" else PATIENCE
        ),
        description=f"what ends the search before that; by default patience {PATIENCE}, for pareto nothing",
    )
    sampler: Literal["frontier", "tpe", "gp", "nsga2", "random"] = Field(
        default_factory=lambda said: "tpe" if said.get("objective") == "pareto" else "frontier",
        description="frontier: ours, which searches where lossless ends (cheapest-lossless only); the others are "
        "Optuna's; by default frontier, for pareto tpe",
    )
    scheduler: SchedulerSettings = Field(
        default_factory=lambda said: SchedulerSettings(
            method="none" if said.get("objective") == "pareto" else "bound"
        ),
        description="stops trials early; by default by the bound, for pareto none",
    )
    points_to_evaluate: list[Overrides] = Field(
        default_factory=list, description="settings to try first, the published ones for instance"
    )
    val_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="fraction of the training data that every run keeps back to be tuned by, where the experiment "
        "trains on all of them (data.val_fraction: 0) and they have no validation split of their own",
    )
    baseline: Overrides = Field(
        default_factory=lambda: {"pruning.method": "none", "curriculum.method": "none"},
        description="experiment keys of what everything is compared with",
    )
    baselines: int = Field(
        2,
        ge=1,
        le=100,
        description="runs of the baseline that tell the search what is to be reached; one for ten trials is a good "
        "number where the noise of a run is as large as the margin (docs/sweeps.md)",
    )
    controls: dict[str, Overrides] = Field(
        default_factory=dict, description="name: experiment keys; run over the seeds beside the baseline"
    )
    seeds: tuple[Annotated[int, Field(ge=0, lt=SEARCH_SEED)], ...] = Field(
        (0, 1, 2), min_length=1, description="of the baseline, the controls and the confirmed winners"
    )
    confirm: ConfirmSettings = Field(
        default_factory=ConfirmSettings,
        description="how the best trials are confirmed; a number says how many of them",
    )
    margin: float = Field(0.5, ge=0, description="points worse than the baseline that still count as no loss")

    @field_validator("search", mode="before")
    @classmethod
    def _entries(cls, search: Any) -> Any:
        """Read the entries one by one: a message then names the entry and not only the section."""
        if not isinstance(search, Mapping):
            raise ValueError(f"{search!r} is not allowed; expected experiment keys with distributions")
        wrong = [line for key, entry in search.items() for line in _entry_errors(str(key), entry)]
        if wrong:
            raise ValueError("\n".join(wrong))
        return search

    @field_validator("confirm", mode="before")
    @classmethod
    def _number_of_winners(cls, confirm: Any) -> Any:
        return {"winners": confirm} if isinstance(confirm, int) else confirm

    @field_validator("overrides", "trial", "proxy", "baseline", "points_to_evaluate", "controls")
    @classmethod
    def _dotted(cls, value: Any, info: ValidationInfo) -> Any:
        several = {"points_to_evaluate": list, "controls": lambda named: list(named.values())}
        for keys in several.get(str(info.field_name), lambda one: [one])(value):
            for key, inner in keys.items():
                if isinstance(inner, Mapping):
                    raise ValueError(f"'{key}' holds a section; expected dotted keys, {key}.name: value")
        return value

    @model_validator(mode="after")
    def _asks_about_one_thing(self) -> SweepSettings:
        if (self.experiment is None) == (self.trainable is None):
            raise ValueError("experiment: expected either this or trainable, a script of your own")
        if self.settings and self.trainable is None:
            raise ValueError("settings: are those of a script; expected 'trainable' beside them")
        return self

    @model_validator(mode="after")
    def _holds_together(self) -> SweepSettings:
        if self.trials and not self.search:
            raise ValueError("search: is empty; expected experiment keys with distributions")
        if "train.seed" in self.search:
            raise ValueError("search: 'train.seed' is not searched; 'seeds' says what is repeated")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} is not allowed; expected every seed once")
        for point in self.points_to_evaluate:
            for key in point:
                if key not in self.search:
                    raise ValueError(
                        f"points_to_evaluate: '{key}' is not searched; expected keys of 'search': "
                        + ", ".join(self.search)
                    )
        check_conditions(self.search)
        for point in self.points_to_evaluate:
            draw_of(self.search, point)
        if {"baseline", "trial", "winner"} & self.controls.keys():
            raise ValueError("controls: 'baseline', 'trial' and 'winner' are taken; expected another name")
        return self

    @model_validator(mode="after")
    def _searches_for_something(self) -> SweepSettings:
        if self.objective == "pareto":
            if self.sampler == "frontier":
                raise ValueError(
                    "sampler: frontier is not allowed; expected another one for objective: pareto"
                )
            if self.scheduler.method == "bound":
                raise ValueError("scheduler.method: bound is not allowed; expected asha or none for pareto")
        elif len(self.objectives) not in (0, 2):
            raise ValueError(
                f"objective: cheapest-lossless is not allowed with {len(self.objectives)} objectives; expected "
                "a quality and a cost, or objective: pareto"
            )
        return self


def _entry_errors(key: str, entry: Any) -> list[str]:
    try:
        numbers = TypeAdapter(_Entry).validate_python({"entry": entry}).entry.numbers(key)
    except ValidationError as error:
        return [
            f"{key}: {line.removeprefix('entry.').removeprefix('entry: ')}"
            for line in str(explain(error, _Entry)).splitlines()
        ]
    except ValueError as error:  # Optuna's: low above high, a log range from 0, a step with log
        return [f"{key}: {error}"]
    single = any(number.single() for number in numbers.values())
    return [f"{key}: holds the single value {entry!r}; expected a range"] if single else []


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
            sweep.experiment(keys, SEARCH_SEED if what == "proxy" else 0)
    return sweep


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
