"""A training loop as one would write it from the papers, for the engine to be compared with.

The package gives it the first weights, the pixels of a sample, and the order in which a run has shown them:
which of the samples that may be dropped are, is drawn. All else is written down here once more, one formula at
a time: which samples may be dropped and what the others weigh, learning rate, mean, mixing, clipping, average.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from engine_runs import CPU
from torch import Tensor, nn

from raytrain_speedup.config import Experiment, TrainSettings
from raytrain_speedup.data import Loader, build_loader, open_data
from raytrain_speedup.data.batch import Step
from raytrain_speedup.methods.curriculum.base import FULL
from raytrain_speedup.models import build_model


@dataclass
class Trained:
    """What came of it.

    Attributes:
        losses: the weighted sum of every step's losses.
        epoch_losses: the weighted mean of every epoch's.
        scores: (N,) the last loss of each sample.
        weights: of the network at the end, or of its average where one is kept.
        metrics: loss and accuracy in percent of those weights on the test split, `val_` on the other one.
    """

    scores: np.ndarray
    losses: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def train_by_hand(experiment: Experiment, order: Sequence[Tensor]) -> Trained:
    """Train on one worker with SGD, without a curriculum.

    Args:
        order: (M,) positions of the samples that each epoch shows.
    """
    train = experiment.train
    splits = open_data(experiment.data, seed=train.seed)
    loader = build_loader(splits, experiment.data, device=CPU, seed=train.seed, channels_last=True)
    torch.manual_seed(train.seed)
    model = build_model(experiment.model, num_classes=10, in_channels=1, image_size=splits.image_size)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model) if train.ema_decay else model
    optimizer = sgd(model, train)
    count, epochs = len(splits.train), len(order)
    done = Trained(np.full(count, np.nan))
    model.train()
    for epoch, shown in enumerate(order):
        weight_of = pruning_weights(experiment, done.scores, set(shown.tolist()), epoch, epochs)
        first_step, begun = len(done.losses), 0
        for number, index in enumerate(batches(shown, train.batch_size)):
            images, target = pixels(loader, index, number, epoch)
            weight = weight_of[index]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_by_hand((epoch + begun / len(shown)) / epochs, train)
            loss, scores = losses(model, images, target, weight, train, key=(train.seed, epoch, number))
            (loss * weight).mean().backward()
            clip(model, train.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            begun += len(index)
            done.scores[index] = scores
            done.losses.append((loss * weight).sum().item())
            follow(average, model, train, full_steps=len(index) / len(shown) * count / train.batch_size)
        done.epoch_losses.append(sum(done.losses[first_step:]) / weight_of[shown].sum().item())
    done.weights = average.state_dict()
    done.metrics = judge(average, loader, "test") | {
        f"val_{name}": value for name, value in judge(average, loader, "val").items()
    }
    return done


def sgd(model: nn.Module, train: TrainSettings) -> torch.optim.SGD:
    """Matrices are decayed; vectors are not, nor a ViT's tables of tokens and positions."""
    tables = ("pos_embed", "cls_token")
    decayed = {name: p for name, p in model.named_parameters() if p.ndim > 1 and name not in tables}
    spared = [p for name, p in model.named_parameters() if name not in decayed]
    groups = [{"params": list(decayed.values()), "weight_decay": train.weight_decay}, {"params": spared}]
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum)


def pruning_weights(
    experiment: Experiment, scores: np.ndarray, shown: set[int], epoch: int, epochs: int
) -> Tensor:
    """InfoBatch's weights (N,) float32, by what was observed up to now, which is also held against what is shown:
    a fraction of the samples below the mean is missing, and nothing else."""
    weight = torch.ones(len(scores))
    pruning = experiment.pruning
    if pruning.method != "infobatch" or epoch == 0 or (epoch + 1) / epochs > pruning.anneal_from + 1e-9:
        assert shown == set(range(len(scores)))
        return weight
    below = {i for i, score in enumerate(scores) if score < math.fsum(scores) / len(scores)}
    dropped = set(range(len(scores))) - shown
    assert dropped < below and len(dropped) == round(pruning.prune_ratio * len(below))
    weight[list(below)] = len(below) / (len(below) - len(dropped))
    return weight


def batches(shown: Tensor, size: int) -> list[Tensor]:
    """A single sample that is left over joins the batch before: it has no batch statistics."""
    parts = list(shown.split(size))
    if len(parts[-1]) == 1 and len(parts) > 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def pixels(loader: Loader, index: Tensor, number: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Images and classes of samples as they look in an epoch."""
    step = Step(number, index, torch.ones(len(index)), len(index), 0.0, FULL)
    (batch,) = loader.train_batches([step], epoch=epoch)
    return batch["inputs"], batch["target"]


def learning_rate_by_hand(progress: float, train: TrainSettings) -> float:
    """Up to the peak within the warm-up, down along a cosine."""
    start = train.lr / train.start_div
    if progress < train.warmup:
        risen = progress / train.warmup
        if train.schedule == "one-cycle":
            risen = (1 - math.cos(math.pi * risen)) / 2
        return start + (train.lr - start) * risen
    fallen = (1 - math.cos(math.pi * (progress - train.warmup) / (1 - train.warmup))) / 2
    return train.lr + (start / train.final_div - train.lr) * fallen


def losses(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    weight: Tensor,
    train: TrainSettings,
    *,
    key: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """(b,) losses to train on and (b,) scores: of mixed images a sample gets its fraction of two images' losses."""
    if not train.mixup:
        loss = F.cross_entropy(model(images), target, reduction="none")
        return loss, loss.detach()
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    fraction = random.beta(train.mixup, train.mixup)
    partner = next_of_equal_weight(weight.tolist())
    output = model(fraction * images + (1 - fraction) * images[partner])
    own = F.cross_entropy(output, target, reduction="none")
    other = F.cross_entropy(output, target[partner], reduction="none")
    scores = fraction * own.detach()
    for image, sample in enumerate(partner):
        scores[sample] += (1 - fraction) * other[image].item()
    return fraction * own + (1 - fraction) * other, scores


def next_of_equal_weight(weight: Sequence[float]) -> list[int]:
    """For each sample the next one of its weight in the batch, or the first one if there is none after it."""
    alike = [[j for j in range(len(weight)) if weight[j] == own] for own in weight]
    return [next((j for j in ring if j > i), ring[0]) for i, ring in enumerate(alike)]


def clip(model: nn.Module, largest: float | None) -> None:
    """Shorten the gradient to a norm of `largest`."""
    if largest is not None:
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))
        for p in model.parameters():
            p.grad *= min(1.0, largest / norm)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, train: TrainSettings, *, full_steps: float) -> None:
    """Move the average as that many steps of a run on all data would."""
    if average is not model:
        kept = train.ema_decay**full_steps
        for mean, latest in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            mean.copy_(kept * mean + (1 - kept) * latest if mean.is_floating_point() else latest)


@torch.no_grad()
def judge(model: nn.Module, loader: Loader, split: str) -> dict[str, float]:
    """Loss and accuracy in percent on a split, each image once."""
    model.eval()
    found = [(model(b["inputs"]), b["target"]) for b in loader.eval_batches(split, batch_size=500)]
    output, target = (torch.cat(parts) for parts in zip(*found, strict=True))
    return {
        "loss": F.cross_entropy(output, target).item(),
        "accuracy": 100 * (output.argmax(1) == target).double().mean().item(),
    }
