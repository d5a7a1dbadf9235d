"""What a task is: what its data and its model mean, a loss per sample, and a metric that adds up.

A task is given the batch and the model, not an output and a target: what it asks of the model (once or twice, with
a time step or a mask beside the input) and what it compares the answer with is its own affair. The engine trains,
evaluates, warms up, counts FLOPs and times reference steps through these methods alone, so that a new task is one
file, a line in `TASKS`, and its test. Where a model is asked once and a target tells right from wrong, all there is
to write is a `SupervisedTask`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from raytrain_speedup.data.batch import Batch
from raytrain_speedup.metric import Direction, Metric
from raytrain_speedup.settings import Settings

Split = Literal["val", "test"]

Model = Callable[..., Any]
"""A network, or the same behind mixed precision, compilation and data parallelism: to be called, no more."""


class Losses(NamedTuple):
    """What a task finds for the b samples of a batch, in its order, on the model's device."""

    losses: Tensor
    """(b,) float32: what is trained on, before weights and means."""

    scores: Tensor
    """(b,) float32: what the pruner observes; often the losses themselves. No gradient goes through it."""

    partner_scores: Tensor | None = None
    """(b,) likewise: of a mixed batch (`mixed_target`), what the samples score that were mixed in."""

    strata: Tensor | None = None
    """(b,) int64 from 0: scores are compared within their stratum alone, where what the task draws (a time step,
    say) decides more of a score than the sample does."""
    rows: int | None = None
    """How many inputs of the batch's size the model was asked with, where they are not b: for what a step costs."""


class TaskSettings(Settings):
    """What the experiment file says of a task; `kind` names it."""

    kind: str

    def build(self) -> Task:
        """The task itself."""
        raise NotImplementedError


class Task(ABC):
    """Knows what inputs, targets and a model's answers mean.

    A task that draws (noise, masks, time steps) keys its draws by the row `draws` of the batch (`data/batch.py`),
    so that they are a function of seed, epoch and sample, whatever the workers and wherever a run was resumed.
    """

    inputs: str = "images"
    """What the rows of `inputs` are: "images", or "sequences" of tokens."""
    targets: str | None = None
    """What the data must say of each of them ("classes", "masks", "boxes" or "answers"); None where the task has no
    use for it."""
    mixes: frozenset[str] = frozenset()
    """Which of `mixup` and `cutmix` it can train with: they mix inputs, and name another target to mix in."""
    logits: Literal["image", "pixel"] | None = None
    """What a network has to give a logit a class for, asked with images alone; None where it is asked in another
    way, and is found to fit or not by the `losses` of an `example`."""
    shown: int = 0
    """How many samples of the validation split `images` wants to show."""
    normalisation: tuple[float, float] | None = None
    """The `data.mean` and `data.std` that it relies on; None where any will do."""
    draws: bool = False
    """Whether it draws in training, and wants the row `draws` of every batch."""
    fitted_on: int = 0
    """How many training samples at most `fit` is told of before a split is judged: what is learned without a target
    shows in how well something simple, such as a linear classifier, then finds one."""

    collected: bool = False
    """Whether `totals` are rows to be put together instead of summed: what ranks the decisions of a whole split,
    such as an average precision, is no sum over samples. Those of several workers come one's after another's."""

    described: bool = False
    """Whether it has `features` of samples, for a method that chooses among them before the training."""

    metric: str
    """What ranks runs; it is reported as `val_<metric>` and `<metric>` (test)."""
    direction: Direction = "max"
    """Whether larger or smaller values of `metric` are better; in percent where larger are."""
    others: Mapping[str, Direction] = {}
    """Further metrics that it tells of every split, beside `metric` and `loss`."""

    @final
    @property
    def ranking(self) -> Metric:
        """`metric` with its `direction`."""
        return Metric(self.metric, self.direction)

    @abstractmethod
    def losses(self, model: Model, batch: Batch) -> Losses:
        """The training loss and the score of every sample.

        Args:
            model: as it is trained; every call is part of the graph.
            batch: b samples, in training with the row `draws` where the task draws.
        """

    @abstractmethod
    def totals(self, model: Model, batch: Batch) -> Tensor:
        """A vector that can be summed over batches and workers, or, `collected`, rows (n, c); float64 on the
        model's device.

        Args:
            model: in evaluation mode.
            batch: samples of an evaluation split; its `draws` are the same in every evaluation of every run.
        """

    @abstractmethod
    def metrics(self, totals: Tensor, split: Split) -> dict[str, float]:
        """The metrics of the summed or collected `totals` of a split; `loss` is among them, and so is `metric`
        (test)."""

    def prepare(self, model: nn.Module) -> None:  # noqa: B027
        """Get a fresh network ready for the training, in place.

        Raises:
            UserError: if it lacks what the task was told to train.
        """

    def summary(self, model: Model, batch: Batch) -> Tensor:
        """What `fit` needs to know of training samples: a tensor that can be summed as `totals` can.

        Args:
            model: in evaluation mode.
            batch: training samples, evenly taken from all of them and shown as those of an evaluation are.
        """
        raise NotImplementedError

    def fit(self, summary: Tensor) -> None:
        """Take up the summed `summary` of `fitted_on` training samples, for the `totals` that come."""
        raise NotImplementedError

    def features(self, model: Any, batch: Batch) -> Tensor:
        """(b, d) float32: what samples are like, such that those near to one another are alike.

        Args:
            model: the network itself, before the first step.
            batch: training samples, shown as those of an evaluation are.
        """
        raise NotImplementedError

    @abstractmethod
    def example(self, shape: tuple[int, ...], count: int) -> Batch:
        """A made-up batch that `losses` takes, the same at every call, on the CPU: for what a step costs. It has
        the row `draws` where the task draws.

        Args:
            shape: of one input.
            count: samples.
        """

    def images(self, model: Model, batch: Batch, plain: Tensor) -> Mapping[str, bytes]:
        """What is worth looking at after an evaluation: PNG files by name.

        Args:
            model: in evaluation mode.
            batch: the first readable samples of the validation split, at most `shown`.
            plain: (b, C, H, W) uint8, their inputs before they were normalised.
        """
        return {}


class SupervisedTask(Task):
    """The usual form: the model is asked once, and a target says what would have been right."""

    decisions: str
    """The metric that is the fraction of right decisions, in percent: against a teacher, the agreement."""

    @abstractmethod
    def per_sample(self, output: Tensor, target: Tensor) -> Tensor:
        """The training loss of every sample, (b,) float32."""

    @abstractmethod
    def judge(self, output: Tensor, target: Tensor) -> Tensor:
        """The `totals` of a batch's outputs."""

    @abstractmethod
    def example_target(self, shape: tuple[int, ...], count: int) -> Tensor:
        """Any valid targets for `count` inputs of `shape`."""

    def losses(self, model: Model, batch: Batch) -> Losses:
        return self.losses_of(model(batch["inputs"]), batch)

    def losses_of(self, output: Tensor, batch: Batch) -> Losses:
        """Of what the model answered, for the batch's targets; where it is mixed, for both."""
        own = self.per_sample(output, batch["target"])
        if "mixed_target" not in batch:
            return Losses(own, own)
        partner, fraction = self.per_sample(output, batch["mixed_target"]), batch["fraction"]
        return Losses(fraction.float() * own + (1 - fraction).float() * partner, own, partner)

    def totals(self, model: Model, batch: Batch) -> Tensor:
        return self.judge(model(batch["inputs"]), batch["target"])

    def example(self, shape: tuple[int, ...], count: int) -> Batch:
        inputs = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
        return {"inputs": inputs, "target": self.example_target(shape, count)}
