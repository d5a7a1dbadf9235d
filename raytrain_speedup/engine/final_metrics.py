"""What a run was, what it found and what it cost, once it is over: one object from the engine to the leaderboard.

It becomes plain data at the borders alone (`to_dict`, `from_dict`): Ray's reports, a tracker's numbers and tags,
the file in the last checkpoint. There it is flat, because a tracker shows a column for each name.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar, cast

from raytrain_speedup.engine.cost import costs
from raytrain_speedup.engine.cost.costs import Costs
from raytrain_speedup.metric import Metric, SplitName

FINAL = "final"
"""The key by which a report says that the run is over."""


Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class FinalMetrics:
    """The metrics of a run that has ended by itself. None and empty texts are what is not known: of a script, or of
    a run that an earlier version recorded.

    Attributes:
        metric: what ranks runs.
        seed: of the run.
        epochs: the budget, in epoch equivalents; `epoch` of them, or reports of a script, were made.
        progress: fraction of the budget that was spent.
        passes_saved: fraction of the sample passes of the budget that were not shown.
        baseline_key, train_key, setup, hardware: which runs may be compared; see `engine.identity`.
        data_fingerprint: of the data themselves.
        workers_min, workers_max: that trained it; a run may go on with another number.
        test_samples, val_samples: that the split has.
        samples_skipped: that could not be read.
        metrics: of the task or the script, by name: `val_NAME` of the validation split, `NAME` of the test split
            (of the loss `test_loss`), and what the data source tells.
    """

    metric: Metric
    seed: int
    progress: float
    passes_saved: float
    baseline_key: str
    train_key: str
    setup: str
    hardware: str
    costs: Costs
    metrics: Mapping[str, float]
    epoch: int = 0
    epochs: float | None = None
    data_fingerprint: str = ""
    workers_min: int | None = None
    workers_max: int | None = None
    test_samples: int | None = None
    val_samples: int | None = None
    samples_skipped: int | None = None

    def of(self, split: SplitName) -> float | None:
        """The metric that ranks runs, on a split; None where it was not read."""
        return self.metrics.get(self.metric.key(split))

    def value(self, name: str) -> float | None:
        """A number by the name that search-space files and trackers have for it; None where there is none."""
        found: Any = self.to_dict().get(name)
        return float(found) if _is_number(found) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain and flat, without what is not known."""
        own = {name: value for name in OWN if (value := getattr(self, name)) not in (None, "")}
        ranks = {"metric": self.metric.name, "direction": self.metric.direction}
        return {FINAL: True, **own, **ranks, **self.costs.to_dict(), **self.metrics}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The metrics that `to_dict` wrote, in this version or an earlier one."""
        own = dict(UNKNOWN)
        for name in KINDS.keys() & content.keys():
            own[name] = KINDS[name](content[name])
        return cls(
            metric=metric_of(content),
            costs=Costs.from_dict(content),
            metrics=others(content),
            **own,
        )


class Runs(tuple[FinalMetrics, ...]):
    """Runs of one setting, and what was found out about them: a baseline is one side of hundreds of comparisons."""

    def __init__(self, _: Iterable[FinalMetrics] = ()) -> None:
        self._answers: dict[tuple[Hashable, ...], Any] = {}

    @classmethod
    def of(cls, runs: Iterable[FinalMetrics]) -> Runs:
        """These runs as such; what is known of them stays known."""
        return runs if isinstance(runs, Runs) else cls(runs)

    def once(self, ask: Callable[..., Answer], *about: Hashable) -> Answer:
        """`ask(runs, *about)`, which is asked once."""
        key = (ask, *about)
        if key not in self._answers:
            self._answers[key] = ask(self, *about)
        return cast(Answer, self._answers[key])


WORDS = ("baseline_key", "train_key", "setup", "hardware", "data_fingerprint")
TEXTS = (*WORDS, "metric", "direction")
"""Keys of `to_dict` whose values are words."""

OWN = tuple(field.name for field in fields(FinalMetrics) if field.name not in ("metric", "costs", "metrics"))
KINDS: dict[str, Callable[[Any], Any]] = {
    field.name: {"int": int, "float": float, "str": str}[str(field.type).partition(" ")[0]]
    for field in fields(FinalMetrics)
    if field.name in OWN
}
"""What each of them is made of again: a tracker's numbers are all floats."""

UNKNOWN: Mapping[str, Any] = {
    **{"seed": 0, "progress": 0.0, "passes_saved": float("nan")},
    **dict.fromkeys(WORDS, ""),
}
"""Of those that a run has to have, and an earlier version did not record."""

NOT_OTHERS = frozenset((*OWN, *costs.NAMES))
"""Names of plain data that are fields of their own."""


def is_final(report: Mapping[str, Any]) -> bool:
    """Whether a report is that of the whole run, and not of an epoch."""
    return bool(report.get(FINAL))


def metric_of(report: Mapping[str, Any]) -> Metric:
    """What ranks the run that reported; accuracy where it does not say."""
    known = {
        field: report[key] for field, key in (("name", "metric"), ("direction", "direction")) if key in report
    }
    return Metric(**known)


def others(content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of plain data that are none of the fields here."""
    return {
        name: float(value) for name, value in content.items() if name not in NOT_OTHERS and _is_number(value)
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
