"""A saving that missing losses put out of reach: told in the log, once as soon as it is known, once at the end."""

import logging
import math
import re

import pytest
import torch

from raytrain_speedup.methods.pruning import DynamicRandom, InfoBatch

N, EPOCHS = 1000, 10  # of 10 epochs, 1 to 7 are pruned; a saving reaches .75 * .85 * 7 / 10 at most


def train(pruner, losses) -> float:
    """A run whose losses of an epoch are `losses(epoch)`, or not observed where that is None; gives the saving."""
    shown = 0
    for epoch in range(EPOCHS):
        plan = pruner.plan(epoch)
        shown += plan.kept
        if (found := losses(epoch)) is not None:
            pruner.observe(plan.indices, found[plan.indices])
    return 1 - shown / (EPOCHS * N)


def some_bad(count: int, value: float = math.nan, first: int = 0):
    """Losses of which the first `count` are `value` from epoch `first` on."""

    def losses(epoch: int) -> torch.Tensor:
        found = torch.rand(N, generator=torch.Generator().manual_seed(epoch))
        found[: count if epoch >= first else 0] = value
        return found

    return losses


def forgotten(epoch: int) -> None:
    """Nobody calls `observe`."""


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert {record.name for record in caplog.records} <= {"raytrain_speedup.pruning"}
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_losses_are_reported_in_the_first_pruned_epoch_with_what_is_left(bad, caplog):
    """The case of the issue: .45 asked, .24 got."""
    saved = train(InfoBatch(N, EPOCHS, saving=0.44), some_bad(470, bad))
    first, last = messages(caplog)
    assert first == (
        f"pruning: a saving of 0.440 was asked for; in epoch 1 of 10, {saved:.3f} can be reached if the losses "
        "stay as they are, and 0.416 at most: of 1000 samples 470 have a loss that is NaN or infinite"
    )
    assert last.startswith(f"pruning: a saving of 0.440 was asked for, the run reaches {saved:.3f}: of 1000")
    assert saved == pytest.approx(0.236, abs=0.001)


def test_what_is_reported_first_comes_true_whatever_the_share_of_bad_losses(caplog):
    for count in range(200, 1001, 100):
        caplog.clear()
        saved = train(InfoBatch(N, EPOCHS, saving=0.445), some_bad(count))
        told = float(re.search(r"10, ([.\d]+) can be reached if", messages(caplog)[0])[1])
        assert told == pytest.approx(saved, abs=0.001)


@pytest.mark.parametrize("options", [{"saving": 0.2}, {"threshold": "quantile"}])
def test_forgetting_to_observe_is_reported_in_the_first_pruned_epoch(options, caplog):
    assert train(InfoBatch(N, EPOCHS, **options), forgotten) == 0
    first, last = messages(caplog)
    assert re.search(
        r"in epoch 1 of 10, 0\.000 can be reached .*: of 1000 samples 1000 have no loss \(does", first
    )
    assert "the run reaches 0.000" in last


def test_forgetting_to_observe_is_reported_for_a_ratio_too_though_it_promises_no_saving(caplog):
    train(InfoBatch(N, EPOCHS), forgotten)
    assert [message[:58] for message in messages(caplog)] == [
        "pruning: nothing can be dropped in epoch 1: of 1000 sample",
        "pruning: nothing can be dropped in epoch 7: of 1000 sample",
    ]
    caplog.clear()
    train(InfoBatch(N, EPOCHS, prune_ratio=0.0), forgotten)
    train(InfoBatch(N, EPOCHS), some_bad(300))
    assert not messages(caplog)


def test_losses_that_turn_bad_are_reported_in_the_next_epoch(caplog):
    train(InfoBatch(N, EPOCHS, saving=0.3), some_bad(N, first=3))
    first, last = messages(caplog)
    assert "in epoch 4 of 10" in first
    assert "the run reaches" in last


def test_losses_that_turn_good_again_in_time_are_reported_once(caplog):
    saved = train(InfoBatch(N, EPOCHS, saving=0.3), lambda epoch: some_bad(N if epoch < 2 else 0)(epoch))
    assert saved == pytest.approx(0.3, abs=0.01)
    (only,) = messages(caplog)
    assert "0.000 can be reached if the losses stay as they are, and 0.300 at most" in only


@pytest.mark.parametrize("keep", [(0.25, 0.5), (0.5, 0.75)])
def test_bands_of_quantiles_that_equal_losses_leave_empty_are_reported(keep, caplog):
    """Half of the losses are 0, so no sample lies strictly below the 20th percentile."""
    half_zero = [
        torch.rand(N, generator=torch.Generator().manual_seed(e)).sub(0.5).clamp(min=0) for e in range(10)
    ]
    saved = train(InfoBatch(N, EPOCHS, threshold="quantile", keep=keep), lambda epoch: half_zero[epoch])
    first, last = messages(caplog)
    found = re.search(r"saving of ([.\d]+) was asked for; in epoch 1 of 10, ([.\d]+) can be reached", first)
    promised = ((1 - keep[0]) * 0.2 + (1 - keep[1]) * 0.65) * 0.7
    assert [float(metric) for metric in found.groups()] == pytest.approx([promised, saved], abs=0.0011)
    assert saved < promised - 0.02
    reached = re.fullmatch(rf"pruning: a saving of {found[1]} was asked for, the run reaches ([.\d]+)", last)
    assert float(reached[1]) == pytest.approx(saved, abs=0.0006)


@pytest.mark.parametrize("options", [{"saving": 0.445}, {"saving": 0.1}, {"threshold": "quantile"}, {}])
def test_a_saving_that_is_met_is_not_talked_about(options, caplog):
    train(InfoBatch(N, EPOCHS, **options), some_bad(0))
    train(InfoBatch(N, EPOCHS, **options), some_bad(5))
    if "threshold" not in options:
        train(DynamicRandom(N, EPOCHS, **options), forgotten)
    assert not messages(caplog)


def test_a_few_bad_losses_that_others_make_up_for_are_not_talked_about(caplog):
    assert train(InfoBatch(N, EPOCHS, saving=0.3), some_bad(250)) == pytest.approx(0.3, abs=0.01)
    assert not messages(caplog)
