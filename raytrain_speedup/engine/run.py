"""One run from the experiment to its metrics."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from raytrain_speedup.config import Experiment
from raytrain_speedup.data import open_data
from raytrain_speedup.engine.assemble import assemble
from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint, random_state, restore_random_state
from raytrain_speedup.engine.cost.measure import Stopwatch, hardware, peak_memory
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.identity import check_same, comparison_keys, identity, setup_of
from raytrain_speedup.engine.loop import Loop
from raytrain_speedup.engine.reporter import Reporter
from raytrain_speedup.metric import Metric
from raytrain_speedup.settings import UserError

METRICS = "metrics.json"
"""In the last checkpoint of a complete run."""


def run(
    experiment: Experiment,
    reporter: Reporter,
    *,
    device: torch.device | None = None,
    test: bool = True,
) -> FinalMetrics:
    """Train, evaluate and measure; the test split is read once, at the end.

    Args:
        experiment: what to do.
        reporter: where metrics and checkpoints go; the run resumes from its latest checkpoint, and one that
            is complete only tells its metrics again.
        device: where to train, instead of what `train.device` says.
        test: whether the test split is read at all: a search does not, lest it choose by it.

    Returns:
        The final metrics, which were also the last report.

    Raises:
        UserError: for everything a user can mend.
    """
    train = experiment.train
    device = device or pick_device(train.device)
    watch = Stopwatch(device)
    with (
        contextlib.closing(reporter),
        numerics(train.seed, train.threads),
        watch.phase("setup"),
        contextlib.ExitStack() as loading,
    ):
        reporter.phase("opening the data")
        splits = open_data(experiment.data, seed=train.seed)
        reporter.phase("looking for a checkpoint")
        with reporter.fetched() as latest:
            if latest is not None and (latest / METRICS).is_file():
                metrics = _read_metrics(latest, identity(experiment, splits.fingerprint))
                reporter.report(metrics.to_dict())
                return metrics
            loop, passes = assemble(experiment, splits, reporter, watch, latest=latest)
            loading.enter_context(contextlib.closing(loop.loader))
            if latest is not None:
                reporter.phase("reading the checkpoint")
                loop.resume(latest)
        loop.fit()
        metrics = _final_metrics(loop, passes, test=test)
        with loop.naming_last_checkpoint():
            reporter.report(metrics.to_dict(), _result(loop, metrics))
            reporter.settle()
    return metrics


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: if a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device: 'cuda' is not available here; expected 'cpu' or 'auto'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def numerics(seed: int, threads: int | None) -> Iterator[None]:
    """Threads and seeds of the process, put back afterwards: a Tune trial shares its process with others."""
    before, random = torch.get_num_threads(), random_state()
    torch.manual_seed(seed)
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        restore_random_state(random)


def _final_metrics(loop: Loop, passes: float, *, test: bool) -> FinalMetrics:
    experiment, reporter = loop.experiment, loop.reporter
    workers = [count for counts in loop.workers.values() for count in counts] or [reporter.world]
    tested = loop.evaluate("test") if test else {}
    val = loop.last_val
    if not val and loop.has_val:  # resumed after the last epoch
        val = loop.evaluate("val")
    costs = loop.costs()
    return FinalMetrics(
        metric=loop.task.ranking,
        seed=experiment.train.seed,
        epoch=loop.epoch,
        epochs=experiment.train.epochs,
        progress=1.0,
        passes_saved=1 - loop.tally.samples_shown / passes,
        setup=setup_of(experiment.train, loop.loader.name),
        data_fingerprint=loop.identity["data"],
        **comparison_keys(loop.identity, reporter.world),
        workers_min=min(workers),
        workers_max=max(workers),
        hardware=hardware(loop.device, workers=workers, precision=experiment.train.precision),
        test_samples=len(loop.loader.splits.test),
        val_samples=len(loop.loader.splits.val),
        samples_skipped=sum(skipped.count for skipped in loop.loader.skipped.values()),
        costs=replace(costs, wall_seconds=loop.watch.total(), peak_memory_bytes=peak_memory(loop.device)),
        metrics={
            **{Metric(name).key("test"): value for name, value in tested.items()},
            **{Metric(name).key("validation"): value for name, value in val.items()},
            **(loop.evaluate_frozen() if test else {}),
            **loop.loader.metrics(),
        },
    )


def _result(loop: Loop, metrics: FinalMetrics) -> Checkpoint | None:
    """A last checkpoint, with the evaluated weights alone (`model.pt`) and the metrics."""
    if not loop.train.checkpoint_every:
        return None
    told = {"identity": loop.identity, "metrics": metrics.to_dict()}
    return loop.save({"model.pt": loop.learner.result.state_dict(), METRICS: told})


def _read_metrics(folder: Path, expected: dict[str, Any]) -> FinalMetrics:
    """The metrics of a complete run."""
    content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    check_same(content["identity"], expected, f"{folder} is a finished run")
    return FinalMetrics.from_dict(content["metrics"])
