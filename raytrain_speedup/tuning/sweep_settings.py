"""What a search-space file may say: pydantic models, whose descriptions `speedup schema` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator

from raytrain_speedup.metric import Direction
from raytrain_speedup.settings import Settings, explain
from raytrain_speedup.tuning.distributions import Distribution
from raytrain_speedup.tuning.groups import check_conditions, draw_of
from raytrain_speedup.tuning.objective import Kind

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


SEARCH_SEED = 1_000_003
"""The search trains with a seed of its own, so that a winner's luck is no evidence for it, however many seeds are
asked for later."""

PATIENCE = 6
"""Trials without one that is 2 % cheaper, which end a search for one setting where no budget is given: on known
surfaces that and stopping spare half of its compute (tests/benchmarks/results/cpu-search.md)."""


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
