"""Several workers: what they learn together is what one worker learns from the same batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distillation_nets import TRAINING_IMAGES, build
from ranks import on_two_ranks
from torch import Tensor

from raytrain_speedup.methods.distillation import workers
from raytrain_speedup.methods.distillation.fastdfkd import FastDFKD

CALLS = 3


def learn(tasks: int, meta: str) -> dict[str, Tensor]:
    """Images, meta-gradient, generator and statistics after a few calls."""
    synthesizer = build("fastdfkd", tasks=tasks, meta=meta)
    assert isinstance(synthesizer, FastDFKD)
    images = [synthesizer.synthesize(call).images for call in range(CALLS)]
    assert synthesizer._memory is not None
    grads = [parameter.grad for parameter in synthesizer.generator.parameters() if parameter.grad is not None]
    return {
        "images": torch.stack(images),
        "meta_gradient": torch.cat([grad.flatten() for grad in grads]),
        "generator": torch.cat([p.detach().flatten() for p in synthesizer.generator.parameters()]),
        "mean": synthesizer._memory[0],
        "var": synthesizer._memory[1],
    }


def adversary() -> Tensor:
    """A generative method's weights after a few data-parallel steps."""
    synthesizer = build("dfq")
    for call in range(CALLS):
        synthesizer.synthesize(call)
    return torch.cat([value.flatten() for value in synthesizer.state_dict()["generator"].values()])


def work(rank: int) -> dict[str, Any]:
    ranks = [torch.full((2,), float(rank)), torch.full((3, 1), 10.0 * rank)]
    return {
        "average": workers.average(ranks),
        "fomaml": learn(1, "fomaml"),
        "reptile": learn(1, "reptile"),
        "dfq": adversary(),
        "real": build("real", batch_size=10).synthesize(0).images,
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Tensor]]]:
    """What two gloo processes learnt, each with one task."""
    return on_two_ranks(work)


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_two_workers_with_a_batch_each_equal_one_with_two_tasks(
    ranks: list[dict[str, dict[str, Tensor]]], meta: str
) -> None:
    torch.set_num_threads(1)
    alone = learn(2, meta)
    for together in (ranks[0][meta], ranks[1][meta]):
        for name in ("meta_gradient", "generator", "mean", "var"):
            torch.testing.assert_close(together[name], alone[name], rtol=1e-4, atol=1e-6)
    images = torch.cat([ranks[0][meta]["images"], ranks[1][meta]["images"]], dim=1)
    assert (images.int() - alone["images"].int()).abs().max() <= 1


def test_workers_learn_the_same_from_images_of_their_own(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    one, other = ranks[0]["fomaml"], ranks[1]["fomaml"]
    for name in ("meta_gradient", "generator", "mean", "var"):
        assert torch.equal(one[name], other[name])
    assert not torch.equal(one["images"], other["images"])
    assert torch.equal(ranks[0]["dfq"], ranks[1]["dfq"])  # type: ignore[arg-type]


def test_workers_take_real_images_of_their_own(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    shown = torch.cat([result["real"] for result in ranks])  # type: ignore[misc]
    assert torch.equal(shown[shown[:, 0, 0, 0].argsort()], TRAINING_IMAGES)


def test_the_average_keeps_shapes(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    for result in ranks:
        small, tall = result["average"]
        assert small.tolist() == [0.5, 0.5] and tall.tolist() == [[5.0], [5.0], [5.0]]  # type: ignore[attr-defined]


def test_the_merged_variance_is_that_of_all_images_together() -> None:
    """Two halves with different means: the variance of the whole is more than the mean of theirs."""
    synthesizer = build("fastdfkd", tasks=2, steps=1)
    assert isinstance(synthesizer, FastDFKD)
    adapted = [synthesizer._adapt(0, task) for task in range(2)]
    _, mean, var = synthesizer._share(adapted)
    means = torch.stack([a.mean for a in adapted])
    variances = torch.stack([a.var for a in adapted])
    torch.testing.assert_close(mean, means.mean(0))
    torch.testing.assert_close(var, variances.mean(0) + means.var(0, correction=0))
