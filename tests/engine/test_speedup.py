"""Which clock is believed, and what a row says where it should not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from raytrain_speedup.engine.cost.speedup import Speedup
from raytrain_speedup.engine.final_metrics import FinalMetrics


def run(
    seed: int = 0, steps: float = 100.0, wall: float = 10.0, flops: float = 1e9, **other: Any
) -> FinalMetrics:
    known = {
        "seed": seed,
        "train_seconds": wall,
        "train_flops": flops,
        "reference_steps": steps,
        "reference_batch": 16.0,
        "reference_spread": 1.1,
        "core_fraction": 1.0,
        "switches_per_second": 5.0,
        **other,
    }
    return FinalMetrics.from_dict(known)


def test_reference_steps_stand_and_wall_seconds_are_beside_them() -> None:
    found = Speedup.of([run(steps=50, wall=6, flops=5e8)], [run()])
    assert (found.ratio, found.clock) == (pytest.approx(2.0), "reference steps")
    assert (found.wall, found.flops) == (pytest.approx(10 / 6), pytest.approx(2.0))
    assert found.interval is None and not found.disturbed and not found.doubt


def test_a_busy_baseline_makes_no_speedup() -> None:
    """Wall seconds of the baseline tripled by other programs: the ratio stays, and the clocks disagree aloud."""
    busy = run(wall=30.0, core_fraction=0.33, switches_per_second=700.0)
    found = Speedup.of([run(steps=70.0, wall=7.0, flops=7e8)], [busy])
    assert found.ratio == pytest.approx(100 / 70)
    assert found.disturbed == "as little as 33% of a core, core lost up to 700 times a second"
    assert found.doubt == "but 4.29 x by wall seconds"
    among = Speedup.of([run(steps=70.0)], [run(), busy])
    assert among.disturbed == found.disturbed, "the worst of a side counts"


def test_a_gain_that_the_compute_does_not_explain_is_doubted() -> None:
    found = Speedup.of([run(steps=50, wall=5, flops=9e8)], [run()])
    assert found.doubt == "but 1.11 x by FLOPs"
    waited = Speedup.of([run(steps=50, wall=9, flops=5e8)], [run()])
    assert waited.doubt == "but 1.11 x by wall seconds", "which saw less of it"
    slower = Speedup.of([run(steps=90, wall=9, flops=5e8)], [run()])
    assert not slower.doubt, "that less compute saves less time than it could is ordinary"


@pytest.mark.parametrize(
    "other", [{"reference_steps": None}, {"reference_batch": 32.0}], ids=["no yardstick", "another unit"]
)
def test_without_a_common_yardstick_wall_seconds_are_all_there_is(other: dict[str, Any]) -> None:
    found = Speedup.of([run(wall=5.0, flops=5e8, **other)], [run()])
    assert (found.ratio, found.clock) == (pytest.approx(2.0), "wall seconds")


@pytest.mark.parametrize("side", ["method", "baseline"])
def test_where_the_yardstick_itself_moves_no_time_is_believed(side: str) -> None:
    spreads = (3.2, 1.1) if side == "method" else (1.1, 3.2)
    ours, theirs = ({"reference_spread": spread} for spread in spreads)
    found = Speedup.of([run(steps=50, flops=5e8, **ours)], [run(**theirs)])
    assert (found.ratio, found.interval, found.clock) == (None, None, "none")
    assert found.flops == pytest.approx(2.0)
    assert found.disturbed == "reference step varied 3.20-fold"


def test_others_on_the_gpu_are_reported() -> None:
    assert Speedup.of([run(other_processes=2.0)], [run()]).disturbed == "2 other processes on the GPU"


def test_the_interval_is_that_of_the_log_ratio_over_paired_seeds() -> None:
    ours, theirs = [50.0, 52.0, 49.0], [100.0, 101.0, 103.0]
    found = Speedup.of(
        [run(seed, steps) for seed, steps in enumerate(ours)],
        [run(seed, steps) for seed, steps in enumerate(theirs)],
    )
    expected = stats.ttest_rel(np.log(theirs), np.log(ours)).confidence_interval(0.90)
    assert found.interval == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
    assert found.ratio == pytest.approx(np.exp(np.mean(np.log(theirs) - np.log(ours))))


def test_other_seeds_make_welchs_interval() -> None:
    ours, theirs = [50.0, 52.0, 49.0], [100.0, 101.0, 103.0]
    found = Speedup.of(
        [run(seed, steps) for seed, steps in enumerate(ours)],
        [run(seed + 5, steps) for seed, steps in enumerate(theirs)],
    )
    expected = stats.ttest_ind(np.log(theirs), np.log(ours), equal_var=False).confidence_interval(0.90)
    assert found.interval == pytest.approx((np.exp(expected.low), np.exp(expected.high)))


def test_seeds_that_only_the_baseline_ran_do_not_undo_the_pairing() -> None:
    """A sweep's search has baselines of its own."""
    ours, theirs = [50.0, 52.0, 49.0], [100.0, 101.0, 103.0, 400.0]
    found = Speedup.of(
        [run(seed, steps) for seed, steps in enumerate(ours)],
        [run(seed, steps) for seed, steps in enumerate(theirs)],
    )
    expected = stats.ttest_rel(np.log(theirs[:3]), np.log(ours)).confidence_interval(0.90)
    assert found.interval == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
