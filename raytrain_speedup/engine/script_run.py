"""One run of a training script of the user's own, from the experiment to its metrics.

    def main(run: Run):
        pruner = run.pruner(len(train_set))
        for epoch in range(run.epochs):
            with run.training():
                for index, weight in pruner.plan(epoch).batches(64):
                    ...
                pruner.exchange()
            run.report(progress=(epoch + 1) / run.epochs, val_accuracy=evaluate(model, val_set))
        run.finish(test_accuracy=evaluate(model, test_set) if run.test else None)

The script trains as it likes. What it cost is measured here and nowhere else: it cannot report a time of its
own, nor a test metric of a run that is part of a search.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raytrain_speedup.engine.checkpoints.checkpoint import (
    Checkpoint,
    random_state,
    rank_file,
    read_own,
    restore_random_state,
    snapshot,
)
from raytrain_speedup.engine.cost.costs import Costs
from raytrain_speedup.engine.cost.measure import Stopwatch, hardware, peak_memory
from raytrain_speedup.engine.cost.reference import StepYardstick
from raytrain_speedup.engine.counted_pruner import CountedPruner
from raytrain_speedup.engine.final_metrics import FinalMetrics, others
from raytrain_speedup.engine.identity import check_same, comparison_keys
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.reporter import Reporter
from raytrain_speedup.engine.run import numerics, pick_device
from raytrain_speedup.engine.run import run as run_loop
from raytrain_speedup.engine.script_metrics import check_ranking, checked, number_of
from raytrain_speedup.methods.curriculum.budget import Budget
from raytrain_speedup.methods.plain_loop import loop_budget, loop_pruner
from raytrain_speedup.methods.pruning import Pruner
from raytrain_speedup.script import AnyExperiment, ScriptExperiment
from raytrain_speedup.settings import RunFailed, UserError, flatten
from raytrain_speedup.user_code import what_happened

COSTS = "costs.json"
"""In a script's checkpoint: what the run had cost by then."""


class Run:
    """What a training script is given, and what it reports to.

    Attributes:
        experiment: all that was said of the run.
        settings: the script's own keys, plain values; a copy, in which nothing is written back.
        epochs: the budget, in passes over the whole data at full size.
        seed: of the run; torch, NumPy and `random` are seeded with it already.
        device: where to train.
        rank, world: of this process, among those that share the run; 0 and 1 where it is alone. Where there are
            several, `torch.distributed` is initialised, and every rank calls `report` and `finish` equally often.
        test: whether the test split is wanted. A search does not read it: what a script reports of it all the
            same is dropped unseen.
        resumed_from: folder of the checkpoint that this run goes on from; None at a fresh start. To be read before
            the first `report`: a copy of what is behind a URI goes with it.
    """

    def __init__(
        self,
        experiment: ScriptExperiment,
        reporter: Reporter,
        watch: Stopwatch,
        *,
        resume: contextlib.ExitStack,
        test: bool,
    ) -> None:
        self.experiment, self.test = experiment, test
        self.settings: dict[str, Any] = copy.deepcopy(experiment.settings)
        self.epochs, self.seed = experiment.train.epochs, experiment.train.seed
        self.device, self.rank, self.world = watch.device, reporter.rank, reporter.world
        self.resumed_from: Path | None = resume.enter_context(reporter.fetched())
        self._resume = resume
        self.metrics: FinalMetrics | None = None
        """The final ones, after `finish`."""
        self._reporter, self._watch = reporter, watch
        self._pruner: CountedPruner | None = None
        self._yardstick: StepYardstick | None = None
        self._budget: Budget | None = None
        self._folder: Path | None = None
        self._last_val: dict[str, float] = {}
        self._reports, self._progress = 0, 0.0
        self._before: dict[str, Any] = {}
        self._random: dict[str, Any] | None = None  # of a checkpoint, until training goes on
        if self.resumed_from is not None:
            self._go_on(self.resumed_from)

    def pruner(self, num_samples: int) -> Pruner:
        """The pruner of `pruning.*`, for `run.epochs` epochs or, if there is one, those of `run.budget`.

        Its plans say how many sample passes were saved.

        Args:
            num_samples: N, the size of the training set.

        Raises:
            UserError: if the settings can't be met, or where the script asks twice.
        """
        if self._pruner is not None:
            raise UserError("run.pruner: called twice; expected one pruner a run, whose plans are counted")
        built = loop_pruner(
            self.experiment.pruning,
            num_samples,
            self._budget if self._budget is not None else self.epochs,
            seed=self.seed,
            device=self.device,
        )
        self._pruner = CountedPruner(built)
        self._pruner.kept = {int(epoch): kept for epoch, kept in self._before.get("kept", {}).items()}
        return self._pruner

    def budget(self, num_samples: int, image_size: int, *, stride: int = 4) -> Budget:
        """The epochs and stages of `curriculum.*` within the compute of `run.epochs` full passes; to be called
        before `pruner`. `len(budget.epoch_ends())` epochs are trained, as `raytrain_speedup.schedule` shows.

        Args:
            num_samples: N, the size of the training set.
            image_size: of a full image, in pixels.
            stride: sizes are multiples of it.

        Raises:
            UserError: if there are no stages for the size, or after `pruner`.
        """
        if self._pruner is not None:
            raise UserError(
                "run.budget: called after run.pruner; expected before it, since it says the epochs"
            )
        experiment = self.experiment
        stages = experiment.curriculum.stages(image_size, stride=stride, model=experiment.model.name)
        self._budget = loop_budget(experiment.pruning, stages, self.epochs, num_samples)
        return self._budget

    @contextmanager
    def training(self) -> Iterator[None]:
        """What happens inside is the training that a speedup is of: planning, loading, steps, exchange. What is
        outside (preparing, warm-up, evaluation, checkpoints) is not.

        After a resume, torch's random generators go on here from where the checkpoint left them.
        """
        if self._random is not None:
            restore_random_state(self._random)
            self._random = None
        with self._watch.phase("train"):
            yield

    def reference(self, step: Callable[[], Any], *, batch_size: int = 1) -> None:
        """Count the cost in reference steps, so that a speedup holds on a busy machine (docs/measuring.md).

        Without it speedups are of wall seconds, and say so.

        Args:
            step: a plain training step (forward and backward) of a copy of the model on a fixed batch. It is
                called now and then, outside the training time, and must change nothing of the training. It has
                to be the same step in all runs that are compared: nothing that a sweep varies may be in it.
            batch_size: samples of the step; runs are compared in steps of equal size.
        """
        if self._yardstick is not None:
            raise UserError("run.reference: called twice; expected one reference step a run")
        self._yardstick = StepYardstick(step, self._watch, batch_size=batch_size)
        if "yardstick" in self._before:
            self._yardstick.load_state_dict(self._before["yardstick"])
        self._yardstick.warm_up()
        self._yardstick.measure(self._progress)

    @property
    def checkpoint_dir(self) -> Path:
        """A folder for the script's own files. It becomes a checkpoint with the next `report`, together with what
        the run has cost; a run that is interrupted goes on from there (`resumed_from`). Where several ranks share a
        run, all of them ask for it, and a file's name is one rank's alone."""
        if self._folder is None:
            self._folder = self._reporter.new_folder()
        return self._folder

    def report(self, *, progress: float, **metrics: Any) -> None:
        """Report metrics on the way, after every epoch for instance. A search may stop the run here.

        Args:
            progress: fraction of the budget that is spent, in (0, 1], growing.
            metrics: `val_NAME` and `train_NAME`, finite numbers; None is left out.

        Raises:
            UserError: for other names and values.
            Stopped: after a Ctrl-C.
        """
        if self.metrics is not None:
            raise UserError("run.report: the run has finished; expected no report after run.finish")
        now = number_of("run.report", "progress", progress)
        if not self._progress <= now <= 1 or now == 0:
            raise UserError(
                f"run.report: progress: {now:g} is not allowed after {self._progress:g}; expected the fraction of "
                "the budget that is spent, in (0, 1] and growing"
            )
        values = checked("run.report", metrics, ("val_", "train_"))
        self._last_val |= {name: value for name, value in values.items() if name.startswith("val_")}
        # At the end too: a cost that is estimated with the step before it could turn out lower in `finish`.
        if self._yardstick is not None and (self._yardstick.due(now) or now >= 1):
            self._yardstick.measure(now)
        self._reports, self._progress = self._reports + 1, now
        self._resume.close()
        told = {"epoch": self._reports, "progress": now, **values, **self._costs().to_dict()}
        self._reporter.report(told, self._checkpoint())
        if self._reporter.should_stop():
            self._reporter.settle()
            raise Stopped(f"stopped at {now:.0%} of {self.experiment.name}")

    def finish(self, **metrics: Any) -> None:
        """End the run: only one that has come here counts. The same as to return the metrics from the script.

        Args:
            metrics: `test_NAME` of `metric`, `val_NAME` unless `report` had it last, and whatever else begins with
                `test_`, `val_` or `train_` (`test_samples`, how many the split has, `train_flops`).

        Raises:
            UserError: for other names and values, or without a metric, or where nothing was trained.
        """
        if self.metrics is not None:
            raise UserError("run.finish: called twice; expected once, at the end")
        values = self._last_val | checked("run.finish", metrics, ("test_", "val_", "train_"))
        if not self.test:
            values = {name: value for name, value in values.items() if not name.startswith("test_")}
        check_ranking(self.experiment.ranking, values, test=self.test)
        self._check_methods()
        if not self._watch.trained()[0]:
            raise UserError("run.finish: no training was measured; expected it inside `with run.training():`")
        if self._yardstick is not None:
            self._yardstick.measure()
        self._progress = 1.0
        self.metrics = self._final(values)
        self._reporter.report(self.metrics.to_dict(), self._checkpoint())
        self._reporter.settle()

    def _check_methods(self) -> None:
        """A method that the script does not ask for would look like one that saves nothing."""
        experiment, planned = self.experiment, self._pruner is not None and self._pruner.kept
        if not planned and (experiment.pruning.method != "none" or self._pruner is not None):
            raise UserError(
                f"pruning.method: {experiment.pruning.method!r} was not followed; expected the script to train on "
                "the plans of run.pruner"
            )
        if experiment.curriculum.method != "none" and self._budget is None:
            raise UserError(
                f"curriculum.method: {experiment.curriculum.method!r} was not followed; expected the script to "
                "ask run.budget"
            )

    def _costs(self) -> Costs:
        """What was spent up to now."""
        found = Costs(**self._watch.read(), **({} if self._yardstick is None else self._yardstick.metrics()))
        if self._pruner is None:
            return found
        shown, _ = self._passes(self._pruner)
        return replace(found, samples_shown=shown, samples_per_second=shown / max(found.train_seconds, 1e-9))

    def _passes(self, pruner: CountedPruner) -> tuple[float, float]:
        """Sample passes: those shown, and those that the budget allows if nothing is pruned."""
        kept, budget = dict(pruner.kept), self._budget
        if budget is None:
            return sum(kept.values()), self.epochs * pruner.num_samples
        last = len(budget.epoch_ends()) - 1
        if last in kept:
            whole = kept[last]
            kept[last] = round(whole * budget.last_epoch_fraction)
        return sum(kept.values()), sum(budget.samples_shown()) / self.experiment.pruning.budget_factor()

    def _final(self, values: Mapping[str, float]) -> FinalMetrics:
        experiment, metric = self.experiment, self.experiment.ranking
        shown, passes = (1.0, 1.0) if self._pruner is None else self._passes(self._pruner)
        keys = {key: value for key, value in self._identity().items() if key not in self._varied()}
        reported = f"test_{metric.name}"
        return FinalMetrics(
            metric=metric,
            seed=self.seed,
            epoch=self._reports,
            epochs=self.epochs,
            progress=1.0,
            passes_saved=1 - shown / passes,
            setup=f"{experiment.trainable}, code {experiment.code}",
            **comparison_keys(keys, self.world),
            hardware=hardware(self.device, workers=[self.world], precision="precision of the script"),
            test_samples=_whole(values.get("test_samples")),
            val_samples=_whole(values.get("val_samples")),
            costs=replace(
                self._costs(),
                wall_seconds=self._watch.total(),
                peak_memory_bytes=peak_memory(self.device),
                train_flops=values.get("train_flops"),
            ),
            metrics={
                metric.key("test") if key == reported else key: value for key, value in others(values).items()
            },
        )

    def _varied(self) -> set[str]:
        return {f"settings.{key}" for key in self.experiment.varies}

    def _identity(self) -> dict[str, Any]:
        """Every key that decides the numbers of the run."""
        content = self.experiment.to_dict()
        sections = ("settings", "data", "model", "train", "pruning", "curriculum")
        keys = flatten({name: content[name] for name in sections})
        for free in ("train.device", "train.threads"):
            del keys[free]
        return {"trainable": self.experiment.trainable, "metric": self.experiment.metric, **keys}

    def _checkpoint(self) -> Checkpoint | None:
        """The folder that the script has filled since the last report; to it comes what the run has cost, and the
        random state of each rank."""
        folder, self._folder = self._folder, None
        if folder is None:
            return None
        files: dict[str, Any] = {rank_file(self.rank): {"random": random_state()}}
        if self.rank == 0:
            content: dict[str, Any] = {
                "identity": self._identity() | {"code": self.experiment.code},
                "watch": self._watch.state_dict(),
                "kept": {} if self._pruner is None else self._pruner.kept,
                "reports": self._reports,
                "progress": self._progress,
                "last_val": self._last_val,
            }
            if self._yardstick is not None:
                content["yardstick"] = self._yardstick.state_dict()
            files[COSTS] = content
        return Checkpoint(folder, snapshot(files))

    def _go_on(self, folder: Path) -> None:
        """Take up the costs of a checkpoint; the rest of it is the script's.

        Raises:
            UserError: if it is of another experiment.
        """
        try:
            self._before = json.loads((folder / COSTS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder / COSTS}: cannot be read ({error}); expected a script's checkpoint"
            ) from None
        expected = self._identity() | {"code": self.experiment.code}
        check_same(self._before["identity"], expected, f"{folder} is a checkpoint")
        own = read_own(folder, self.rank)
        self._random = None if own is None else own["random"]
        self._watch.load_state_dict(self._before["watch"])
        self._reports, self._progress = self._before["reports"], self._before["progress"]
        self._last_val = self._before["last_val"]


def run_script(
    experiment: ScriptExperiment, reporter: Reporter, *, device: torch.device | None = None, test: bool = True
) -> FinalMetrics:
    """Let the script train, and measure it; arguments, result and errors as of `engine.run.run`."""
    main, train = experiment.main(), experiment.train
    watch = Stopwatch(device or pick_device(train.device))
    with (
        contextlib.closing(reporter),
        numerics(train.seed, train.threads),
        watch.phase("setup"),
        contextlib.ExitStack() as resume,
    ):
        random.seed(train.seed)
        np.random.seed(train.seed % 2**32)  # noqa: NPY002 - what a script may draw from
        run = Run(experiment, reporter, watch, resume=resume, test=test)
        try:
            returned = main(run)
        except UserError:
            raise
        except Exception as error:
            raise RunFailed(f"trainable: {experiment.trainable} failed: {what_happened(error)}") from error
        if isinstance(returned, Mapping):
            run.finish(**returned)
    if run.metrics is None:
        raise UserError(
            f"trainable: {experiment.trainable} returned {type(returned).__name__} and did not finish; expected "
            "run.finish(...) or a dict of metrics at its end"
        )
    return run.metrics


def run_any(
    experiment: AnyExperiment, reporter: Reporter, *, device: torch.device | None = None, test: bool = True
) -> FinalMetrics:
    """A run of the package's own loop, or of a script."""
    if isinstance(experiment, ScriptExperiment):
        return run_script(experiment, reporter, device=device, test=test)
    return run_loop(experiment, reporter, device=device, test=test)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)
