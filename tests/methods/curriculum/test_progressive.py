"""The controls with other libraries' settings: against Composer's formula and timm's own sampler."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from timm.data.scheduled_sampler import ScheduledBatchSampler

from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.methods.curriculum.progressive import ComposerResize, TimmProgressive


def shown_at(stages: list[Stage], fraction: float) -> int | None:
    """The size of the sample after which this fraction of all samples were shown."""
    begins = [0.0, *(stage.ends_at for stage in stages)]
    counts = [(s.ends_at - begin) / s.cost for s, begin in zip(stages, begins, strict=False)]
    for stage, count in zip(stages, counts, strict=True):
        fraction -= count / sum(counts)
        if fraction <= 0:
            return stage.size
    return stages[-1].size


@pytest.mark.parametrize(("image_size", "stride"), [(224, 4), (64, 4), (224, 32)])
def test_composer_grows_linearly_between_half_and_four_fifths_of_the_samples(image_size, stride):
    stages = list(ComposerResize().stages(image_size, stride=stride))
    for elapsed in [i / 200 + 0.0011 for i in range(199)]:
        scale = 0.5 + 0.5 * min(max((elapsed - 0.5) / 0.3, 0.0), 1.0)  # Composer's, before it rounds
        assert abs(shown_at(stages, elapsed) - scale * image_size) <= stride
    assert shown_at(stages, 0.49) == image_size // 2 or stride > 4
    assert shown_at(stages, 0.801) == image_size


def test_composer_saves_what_half_size_saves():
    """.5 at a quarter of the cost, .2 in full and the mean square in between: .425 + .175."""
    stages = ComposerResize().stages(512, stride=4)
    begins = [0.0, *(stage.ends_at for stage in stages)]
    samples = sum((s.ends_at - begin) / s.cost for s, begin in zip(stages, begins, strict=False))
    assert 1 / samples == pytest.approx(0.5 * 0.25 + 0.2 + 0.3 * 7 / 12, abs=2e-3)


def test_timm_has_the_steps_and_batches_of_timms_sampler():
    """Its sampler, without spread and random mix, over 400 epochs: how many batches of each size."""
    settings = TimmProgressive(ratios=(0.25, 0.5, 0.75, 1.0), max_batch_factor=16)
    stages = settings.stages(64, stride=4)
    batches = [8 * stage.batch_factor for stage in stages]
    assert batches == [128, 32, 8, 8]
    sampler = ScheduledBatchSampler(
        torch.utils.data.SequentialSampler(range(4000)),
        batches,
        choice_schedule="progressive",
        schedule_epochs=400,
        schedule_spread=0.0,
        schedule_random_mix=0.0,
    )
    drawn = torch.zeros(4)
    for epoch in range(400):
        sampler.epoch = epoch
        for choice, size in sampler.schedule[:10]:
            assert size == batches[choice]
            drawn[choice] += 1
    begins = [0.0, *(stage.ends_at for stage in stages)]
    steps = torch.tensor(
        [(s.ends_at - begin) / s.cost / s.batch_factor for s, begin in zip(stages, begins, strict=False)]
    )
    torch.testing.assert_close(steps / steps.sum(), drawn / drawn.sum(), atol=0.01, rtol=0)
    assert [stage.size for stage in stages] == [16, 32, 48, 64]


@pytest.mark.parametrize("ratios", [(1.0,), (0.5, 0.9), (0.75, 0.5, 1.0), (0.5, 0.5, 1.0), (0.0, 1.0)])
def test_ratios_that_do_not_rise_to_one_are_refused(ratios):
    with pytest.raises(ValidationError):
        TimmProgressive(ratios=ratios)


def test_more_than_all_samples_are_refused():
    with pytest.raises(ValidationError, match=r"sum to more than 1; expected at most 1"):
        ComposerResize(delay_fraction=0.9)
