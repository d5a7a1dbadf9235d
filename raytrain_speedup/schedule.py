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
progress, so they carry over to another number of epochs. Where the evidence is anything but lossless,
`load_schedule` warns and `schedule.proven` is false; a loop that must not start then turns the warning into an
error: `warnings.simplefilter("error", UnprovenSchedule)`.

A checksum guards the evidence against slips: a number changed by hand, a file cut short or mangled on its way.
It is no signature: whoever writes a schedule can compute it, so it says nothing about who did. Where that
matters, keep schedules where only you can write, or sign the file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raytrain_speedup.schedule_file import (
    Evidence,
    Schedule,
    TunedOn,
    UnprovenSchedule,
    parse_schedule,
    read_schedule,
    save_schedule,
)
from raytrain_speedup.transfer import HasSections
from raytrain_speedup.user_code import import_module

__all__ = ["Evidence", "Schedule", "TunedOn", "UnprovenSchedule", "load_schedule", "save_schedule"]

PUBLISHED = ("models:/", "runs:/")
"""How the name of a schedule in a tracker begins."""


def load_schedule(
    source: str | Path,
    *,
    for_experiment: Mapping[str, Any] | HasSections | None = None,
    allow_transfer: bool = False,
    plugins: Sequence[str] = (),
    tracking_uri: str | None = None,
) -> Schedule:
    """Read a schedule.

    Args:
        source: a path, a file:, http: or https: URL, or what a tracker keeps: `models:/NAME@ALIAS`,
            `models:/NAME/VERSION`, `models:/NAME` (the newest), or `runs:/RUN`. On a server these need no MLflow.
        for_experiment: what the schedule is to be used on: an `Experiment`, or what a loop knows of it, such as
            `{"data": {"source": "cifar10"}, "train": {"epochs": 20}}`.
        allow_transfer: take it for another experiment than it was tuned on.
        plugins: modules of your own that register its methods; the file itself names no code. Those of installed
            packages are found by their entry points.
        tracking_uri: of the tracker; MLFLOW_TRACKING_URI by default, else `mlflow.db` in this folder.

    Warns:
        UnprovenSchedule: if it was not found lossless where it was tuned. Python shows it once for each line of
            the program that loads it.

    Raises:
        UserError: if it cannot be read, is of another version, has wrong keys, or was changed since; and naming
            the keys in which `for_experiment` differs in data, model or budget from what it was tuned on.
    """
    for module in plugins:
        import_module(module, "plugins")
    if str(source).startswith(PUBLISHED):
        from raytrain_speedup.tracking.schedules import published_text  # no file needs a tracker

        schedule = parse_schedule(published_text(str(source), tracking_uri), source)
    else:
        schedule = read_schedule(source)
    if for_experiment is not None and not allow_transfer:
        schedule.check(for_experiment, source)
    if not schedule.proven:
        text = f"{source}: not proven lossless ({schedule.headline()})"
        warnings.warn(text, UnprovenSchedule, stacklevel=2)
    return schedule
