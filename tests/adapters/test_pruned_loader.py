"""PrunedLoader trains as the engine does: the same samples, the same weights, whatever happens in between."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_runs import (
    BATCH,
    CURRICULUM,
    EPOCHS,
    PRUNING,
    RATES,
    STAGED,
    STEADY,
    VIT,
    EngineOf,
    Interrupted,
    N,
    digits,
    equal,
    loader_of,
    network,
    recorded,
    same_plan,
    schedule_file,
    settings,
    sgd,
    sizes_seen,
    staged_schedule,
    tiny,
    train,
)
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import IterableDataset

from raytrain_speedup.adapters import ProgressLR, PrunedBatchSampler, PrunedLoader
from raytrain_speedup.methods.curriculum import CustomCurriculum
from raytrain_speedup.methods.pruning import FewerEpochsSettings, FullData, InfoBatch, InfoBatchSettings
from raytrain_speedup.settings import UserError


def run(loader: PrunedLoader, keys: Any = None) -> tuple[list[Tensor], dict[str, Tensor]]:
    model = network(tiny(keys))
    with recorded() as shown:
        train(loader, model, sgd(model))
    return shown, model.state_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_engine_and_the_loader_train_the_same_weights(workers: int, engine):
    loader = loader_of(tiny(), num_workers=workers)
    shown, weights = run(loader)
    assert sum(map(len, shown)) < 0.9 * N * EPOCHS
    assert same_plan(shown, engine[0])
    assert equal(weights, engine[1])


def test_a_schedule_file_and_a_pruner_do_as_the_settings(tmp_path: Path, engine):
    data, seed = digits(tiny()), tiny().train.seed
    with pytest.warns(UserWarning, match="not proven lossless"):
        loader = PrunedLoader(
            data, schedule_file(tmp_path / "s.yaml"), epochs=EPOCHS, batch_size=BATCH, seed=seed
        )
    shown, weights = run(loader)
    assert same_plan(shown, engine[0]) and equal(weights, engine[1])
    pruner = InfoBatch(N, EPOCHS, seed=seed, **{k: v for k, v in PRUNING.items() if k != "method"})
    shown, weights = run(PrunedLoader(data, pruner, batch_size=BATCH))
    assert same_plan(shown, engine[0]) and equal(weights, engine[1])


@pytest.mark.parametrize("accumulate, stop_after", [(1, 4), (1, 6), (1, 7), (2, 8), (2, 13)])
def test_resumed_anywhere_it_ends_with_the_same_weights(accumulate: int, stop_after: int):
    """At the end of an epoch too; and within an optimizer step, which is begun again (where no batch norm has noted
    its first half)."""
    keys = VIT if accumulate > 1 else None
    options = settings(tiny()) | {"batch_size": BATCH // accumulate, "accumulate": accumulate}
    data = digits(tiny())
    shown, expected = run(PrunedLoader(data, **options), keys)

    model = network(tiny(keys))
    optimizer, loader = sgd(model), PrunedLoader(data, **options)
    scheduler = ProgressLR(optimizer, loader, **RATES)
    with recorded() as before, pytest.raises(Interrupted):
        train(loader, model, optimizer, scheduler=scheduler, stop_after=stop_after)
    optimizer.zero_grad()
    state = {
        "loader": loader.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    torch.save(state, buffer := io.BytesIO())
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)

    again = PrunedLoader(data, **options)
    optimizer = sgd(model)
    scheduler = ProgressLR(optimizer, again, **RATES)
    again.load_state_dict(state["loader"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    with recorded() as after:
        train(again, model, optimizer, scheduler=scheduler)
    assert same_plan(before[: stop_after // accumulate * accumulate] + after, shown)
    assert equal(model.state_dict(), expected)


class Noisy:
    """Samples whose transforms draw from every global generator."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = self.data[index]
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return image + noise, target


def seen(loader: PrunedLoader, *, skip: int = 0) -> dict[int, float]:
    """A pixel of every sample of epoch 1, whose losses make no difference."""
    found = {}
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        for batch in loader:
            loader.loss(batch, torch.ones(len(batch["index"])))
            if epoch == 1 and batch["number"] >= skip:
                found |= dict(zip(batch["index"].tolist(), batch["inputs"][:, 0, 0, 0].tolist(), strict=True))
    return found


def test_random_transforms_depend_on_seed_epoch_and_sample_alone():
    options = {"pruning": InfoBatchSettings(), "epochs": 3, "batch_size": 50}
    data = Noisy(digits(tiny()))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    alone = seen(PrunedLoader(data, **options))
    assert torch.equal(before, torch.get_rng_state())
    assert len(alone) == N and len(set(alone.values())) > 0.9 * N
    assert seen(PrunedLoader(data, **options, num_workers=2)) == alone
    assert seen(PrunedLoader(data, **options | {"batch_size": 32})) == alone
    assert seen(PrunedLoader(data, **options, seed=1)) != alone


def test_worker_processes_live_through_all_epochs():
    class Ids(Noisy):
        def __getitem__(self, index: int) -> tuple[int, int]:
            return os.getpid(), 0

    loader = PrunedLoader(Ids(range(40)), InfoBatchSettings(), epochs=3, batch_size=10, num_workers=2)
    ids: set[int] = set()
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            ids |= set(batch["inputs"].tolist())
            loader.loss(batch, torch.ones(10))
    assert len(ids) == 2


# --- steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [230, 229, 225, 200, 129, 128])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_every_step_has_all_its_batches(kept: int, accumulate: int):
    """14 batches at an accumulation of 4 would leave gradients of two to the next epoch."""
    sampler = PrunedBatchSampler(kept, FullData(kept, 1), batch_size=16, accumulate=accumulate)
    batches = sampler.batches
    assert len(batches) % accumulate == 0
    assert torch.equal(torch.cat([batch.index for batch in batches]), FullData(kept, 1).plan(0).indices)
    for step in range(len(batches) // accumulate):
        parts = batches[step * accumulate : (step + 1) * accumulate]
        assert {part.count for part in parts} == {sum(len(part.index) for part in parts)}
        lengths = [len(part.index) for part in parts]
        assert min(lengths) >= 2 and max(lengths) - min(lengths) <= 1


def test_accumulated_steps_are_the_engines_and_leave_no_gradient(engine_of: EngineOf):
    """The network has no batch norm, so that the weights are those of the whole step."""
    experiment = tiny(STEADY)
    _, expected = engine_of(STEADY)
    loader = loader_of(experiment, batch_size=BATCH // 4, accumulate=4)
    model = network(experiment)
    optimizer = sgd(model)
    scheduler = ProgressLR(optimizer, loader, **RATES)
    lengths = set()
    for epoch in range(loader.epochs):
        loader.set_epoch(epoch)
        lengths.add(len(loader))
        for number, batch in enumerate(loader, start=1):
            losses = cross_entropy(model(batch["inputs"]), batch["target"], reduction="none")
            loader.loss(batch, losses).backward()
            if number % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
        assert all(p.grad is None for p in model.parameters())
    assert len(lengths) > 1
    torch.testing.assert_close(model.state_dict(), expected, rtol=1e-3, atol=1e-5)


def test_a_step_too_small_for_its_batches_is_refused():
    sampler = PrunedBatchSampler(3, FullData(3, 1), batch_size=1, accumulate=4)
    with pytest.raises(
        UserError, match="accumulate: 4 batches on 1 processes are too many for the 3 samples"
    ):
        len(sampler)


# --- the learning rate ----------------------------------------------------------------------------------


def last_rate(loader: PrunedLoader, scheduler: Any, optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the last step."""
    rate = 0.0
    for epoch in range(loader.epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            rate = optimizer.param_groups[0]["lr"]
            loader.loss(batch, batch["target"].float())
            optimizer.step()
            scheduler.step()
    return rate


def test_the_learning_rate_anneals_though_steps_are_missing():
    """torch's own, told the steps of full epochs, stops on the way."""
    found = {}
    for name in ("progress", "steps"):
        loader = loader_of(tiny(), batch_size=16)
        optimizer = sgd(network(tiny()))
        if name == "progress":
            scheduler: Any = ProgressLR(optimizer, loader, "one-cycle", warmup=0.3)
        else:
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=0.05, total_steps=len(loader) * EPOCHS
            )
        found[name] = last_rate(loader, scheduler, optimizer)
    assert found["progress"] < 1e-3 * 0.05 * 2
    assert found["steps"] > 0.01 * 0.05


def test_every_group_keeps_its_own_peak_and_any_function_of_progress_will_do():
    loader = loader_of(tiny(), batch_size=115)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = ProgressLR(optimizer, loader, lambda progress: 1 - progress)
    assert scheduler.get_last_lr() == [1.0, 0.1]
    loader.set_epoch(0)
    for batch in loader:
        loader.loss(batch, torch.ones(len(batch["index"])))
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([5 / 6, 0.5 / 6])


def test_a_wrong_rate_is_a_line():
    loader = loader_of(tiny(), batch_size=115)
    with pytest.raises(UserError, match=r"ProgressLR: warmup: 1.5 is not allowed"):
        ProgressLR(sgd(network(tiny())), loader, warmup=1.5)


# --- curriculum -----------------------------------------------------------------------------------------


def test_pruning_and_curriculum_together_are_the_engines(tmp_path: Path, engine_of: EngineOf):
    expected_shown, _ = engine_of(STAGED)
    experiment = tiny(STAGED)
    data = digits(experiment)
    with pytest.warns(UserWarning, match="not proven lossless"):
        loader = PrunedLoader(
            data,
            staged_schedule(tmp_path),
            epochs=EPOCHS,
            batch_size=BATCH,
            image_size=16,
            stride=4,
            seed=3,
            num_workers=1,
        )
    assert loader.epochs > EPOCHS
    model = network(experiment)
    sizes = sizes_seen(model)
    with recorded() as shown:
        train(loader, model, sgd(model))
    assert same_plan(shown, expected_shown)
    assert max(map(len, shown)) >= 2 * BATCH
    assert set(sizes) == {8, 12, 16} and sizes == sorted(sizes)
    same = PrunedLoader(
        data,
        experiment.pruning,
        curriculum=CustomCurriculum(**CURRICULUM),
        epochs=EPOCHS,
        batch_size=BATCH,
        image_size=16,
        seed=3,
    )
    assert same.budget.epoch_ends() == loader.budget.epoch_ends()


def test_images_of_a_stage_are_cropped_by_their_spectrum():
    experiment = tiny({"data.image_size": 16})
    data = digits(experiment)
    curriculum = CustomCurriculum(**CURRICULUM)
    loader = PrunedLoader(
        data, InfoBatchSettings(), curriculum=curriculum, epochs=4, batch_size=BATCH, image_size=16
    )
    batch = next(iter(loader))
    images, target = data[batch["index"]]
    spectrum = torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1))[..., 4:12, 4:12]
    expected = torch.fft.ifft2(torch.fft.ifftshift(spectrum, dim=(-2, -1))).real / 4
    torch.testing.assert_close(batch["inputs"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(batch["target"], target)


def test_larger_batches_have_larger_rates():
    sampler = PrunedBatchSampler(
        N,
        InfoBatchSettings(),
        curriculum=CustomCurriculum(**CURRICULUM),
        epochs=4,
        batch_size=BATCH,
        image_size=16,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = ProgressLR(optimizer, sampler, "constant", warmup=0.0)
    rates = {2 * BATCH: set(), BATCH: set()}
    for epoch in range(sampler.epochs):
        sampler.set_epoch(epoch)
        for index in sampler:
            if len(index) in rates:
                rates[len(index)].add(optimizer.param_groups[0]["lr"])
            sampler.loss(torch.ones(len(index)))
            optimizer.step()
            scheduler.step()
    assert rates == {2 * BATCH: {0.2}, BATCH: {0.1}}


def test_a_sampler_says_the_size_of_its_next_batch():
    sampler = PrunedBatchSampler(
        N,
        FewerEpochsSettings(saving=0.5),
        curriculum=CustomCurriculum(**CURRICULUM),
        epochs=4,
        batch_size=BATCH,
        image_size=16,
    )
    sizes = []
    for epoch in range(sampler.epochs):
        sampler.set_epoch(epoch)
        for index in sampler:
            sizes.append(sampler.size)
            sampler.loss(torch.ones(len(index)))
    assert sizes == sorted(sizes) and set(sizes) == {8, 12, 16}
    assert sampler.progress == 1


# --- mistakes -------------------------------------------------------------------------------------------


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


def make(dataset: Any = None, pruning: Any = None, **options: Any) -> PrunedLoader:
    data = [(torch.zeros(1), 0)] * 50 if dataset is None else dataset
    return PrunedLoader(data, pruning or InfoBatchSettings(), **{"batch_size": 16, "epochs": 4} | options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dataset": Endless()}, "dataset: Endless has no length"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed"),
        ({"accumulate": 0}, "accumulate: 0 is not allowed"),
        ({"epochs": None}, "epochs: missing"),
        ({"curriculum": CustomCurriculum(**CURRICULUM)}, "image_size: missing, and the curriculum is custom"),
        ({"pruning": InfoBatch(49, 4)}, "pruning: the pruner is for 49 samples; expected 50"),
        ({"pruning": InfoBatch(50, 5)}, "pruning: the pruner is for 5 epochs; expected 4"),
        ({"pruning": InfoBatch(50, [0.5, 0.6, 0.7, 1])}, "has epochs of different lengths"),
        (
            {"pruning": InfoBatch(50, 4), "curriculum": CustomCurriculum(**CURRICULUM), "image_size": 16},
            "the pruner knows no curriculum",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_a_line(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message) as error:
        make(**options)
    assert "\n" not in str(error.value)


def test_batches_that_cannot_be_are_a_line():
    with pytest.raises(UserError, match="collate_fn: a batch is int; expected a pair"):
        next(iter(make(collate_fn=len)))
    with pytest.raises(UserError, match="samples have the key 'weight'"):
        next(iter(make(dataset=[{"weight": 1}] * 50)))
    with pytest.raises(UserError, match=r"the inputs are torch.float32 of \(32, 1\); expected float images"):
        next(iter(make(curriculum=CustomCurriculum(**CURRICULUM), image_size=16)))


def test_a_mean_over_the_batch_is_refused():
    loader = make()
    batch = next(iter(loader))
    with pytest.raises(
        UserError, match=r'one loss per sample, \(16,\), as from a criterion with reduction="none"'
    ):
        loader.loss(batch, torch.ones(()))


def test_an_epoch_that_is_over_is_no_empty_epoch():
    loader = make()
    for batch in loader:
        loader.loss(batch, torch.ones(len(batch["index"])))
    assert loader.epoch == 1
    with pytest.raises(UserError, match=r"epoch 0 is over; expected set_epoch\(1\)"):
        next(iter(loader))
    with pytest.raises(UserError, match="the run has no epoch 4; expected 0 to 3"):
        loader.set_epoch(4)


def test_a_checkpoint_of_other_steps_is_refused():
    state = make().state_dict()
    with pytest.raises(UserError, match=r"steps of 16 samples; expected as many, not 32 \(8 x 4 batches x 1"):
        make(batch_size=8, accumulate=4).load_state_dict(state)
    with pytest.raises(UserError, match="pruning: the checkpoint is of seed 0; expected 1"):
        make(seed=1).load_state_dict(state)


def test_a_collate_function_of_ones_own_and_samples_that_are_mappings():
    samples = [{"text": torch.full((1 + i % 3,), float(i)), "label": i} for i in range(50)]

    def pad(items: list[dict[str, Any]]) -> dict[str, Any]:
        text = torch.nn.utils.rnn.pad_sequence([item["text"] for item in items], batch_first=True)
        return {"text": text, "label": torch.tensor([item["label"] for item in items])}

    for batch in make(dataset=samples, collate_fn=pad):
        assert torch.equal(batch["label"], batch["index"])
        assert torch.equal(batch["text"][:, 0].long(), batch["index"])
        assert batch["count"] in (16, 2)
