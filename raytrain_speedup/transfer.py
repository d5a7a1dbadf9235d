"""Whether a schedule is used where it was found: its evidence is of one data set, one model and one budget.

Elsewhere its settings are a good start and no more: InfoBatch's pruning ratio of CIFAR-10 loses points on a data
set without redundancy, and a ratio that 200 epochs bear may be too much for 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from raytrain_speedup.settings import flatten

SECTIONS = ("data", "model")
BUDGET = "train.epochs"
BESIDE = {
    *("data.root", "data.train", "data.test", "data.val", "data.download", "data.images", "data.masks"),
    *("data.loader", "data.memory_limit_gb", "data.replay_limit_gb", "data.num_workers"),
    *("data.max_corrupt_fraction", "data.val_fraction", "data.test_fraction", "data.split_seed"),
    "model.pretrained",
}
"""Keys that say where data and weights are, how they are read, and what a search keeps back of them."""


class HasSections(Protocol):
    """An `Experiment`, without its floor."""

    def to_dict(self) -> dict[str, Any]: ...


def transfer_differences(
    tuned_on: Mapping[str, Any], experiment: Mapping[str, Any] | HasSections
) -> list[str]:
    """One text for each key of data, model and budget that is another where a schedule is to be used.

    Args:
        tuned_on: the sections `data`, `model` and `train` of the experiment that the schedule was found on.
        experiment: the same of the one that is to use it, or an `Experiment`. Keys that it lacks are taken to
            agree, so that a loop that is no experiment says what it knows: `{"train": {"epochs": 20}}`.
    """
    here = flatten(experiment if isinstance(experiment, Mapping) else experiment.to_dict())
    there = flatten(tuned_on)
    return [
        f"{key} is {there[key]!r} there and {value!r} here"
        for key, value in here.items()
        if key in there and _counts(key) and there[key] != value
    ]


def _counts(key: str) -> bool:
    return key == BUDGET or (key.partition(".")[0] in SECTIONS and key not in BESIDE)
