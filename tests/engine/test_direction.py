"""A metric of which less is better, mirrored (m -> -m): the verdict is the same, the interval is the mirror's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup.engine.compare import Comparison, NotComparable, compare, settle_runs
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.engine.statistics.verdict import Look, plan_for
from raytrain_speedup.metric import Direction, Metric

values = st.lists(st.floats(-3.0, 3.0).map(lambda value: round(value, 3)), min_size=3, max_size=6)
PLAN = plan_for(0.5, max_seeds=6, winners=2)
UNPAIRED = plan_for(0.5, max_seeds=6, winners=2, pairing="unpaired")


def runs(found: list[float], direction: Direction, **more: object) -> list[FinalMetrics]:
    """Runs whose metric is as given, or the other way round where less is better."""
    metric = Metric("merit", direction)
    known = {"metric": "merit", "direction": direction, "progress": 1.0, "passes_saved": 0.1}
    return [
        FinalMetrics.from_dict(
            {**known, "seed": seed, "train_seconds": 1.0 + seed, "merit": metric.merit(value), **more}
        )
        for seed, value in enumerate(found)
    ]


def is_mirror(one: Look | Comparison, other: Look | Comparison) -> bool:
    """Whether a difference and its interval are the other's with the other sign, to the last bit."""
    if one.interval is None or other.interval is None:
        return one.interval == other.interval and one.difference == -other.difference
    low, high = other.interval
    return one.interval == (-high, -low) and one.difference == -other.difference


@given(values, values, st.sampled_from([0.0, 0.1, 0.5, 2.0]))
def test_a_comparison(ours: list[float], theirs: list[float], margin: float) -> None:
    larger, smaller = (
        compare(runs(ours, direction), runs(theirs, direction), margin=margin) for direction in ("max", "min")
    )
    assert is_mirror(smaller, larger) and smaller.look.status == larger.look.status
    assert (smaller.gain, smaller.least_gain) == (larger.gain, larger.least_gain)
    assert smaller.accuracy == -larger.accuracy and smaller.accuracy_std == larger.accuracy_std
    assert smaller.speedup == larger.speedup


@given(values, values, values, st.sampled_from([PLAN, UNPAIRED]))
def test_the_winners_of_a_plan(one: list[float], two: list[float], theirs: list[float], plan) -> None:  # type: ignore[no-untyped-def]
    """Looks, Holm's procedure over the winners, futility, and the seeds that are missing."""
    larger, smaller = (
        settle_runs(plan, {"one": runs(one, way), "two": runs(two, way)}, runs(theirs, way))
        for way in ("max", "min")
    )
    assert larger.keys() == smaller.keys() == {"one", "two"}
    for name, look in larger.items():
        assert is_mirror(smaller[name], look)
        assert (smaller[name].status, smaller[name].seeds_missing, smaller[name].correlation) == (
            look.status,
            look.seeds_missing,
            look.correlation,
        )


@pytest.mark.parametrize(("loss", "verdict"), [(0.02, "lossless"), (0.3, "lossy"), (-0.3, "lossless")])
def test_more_of_a_loss_is_worse(loss: float, verdict: str) -> None:
    theirs = [1.0, 1.001, 1.002]
    known = {"metric": "loss", "direction": "min"}
    ours, baselines = (
        [
            FinalMetrics.from_dict(
                {"seed": seed, "progress": 1.0, "train_seconds": 1.0, "passes_saved": 0.0, "test_loss": value}
                | known
                | {"test_samples": 100}
            )
            for seed, value in enumerate(values)
        ]
        for values in ([value + loss for value in theirs], theirs)
    )
    found = compare(ours, baselines, margin=0.1)
    assert found.metric == Metric("loss", "min") and found.verdict == verdict
    assert found.difference == pytest.approx(loss) and found.gain == pytest.approx(-loss)
    assert found.look.standard_error == pytest.approx(0.0, abs=1e-9), "a loss is not counted in samples"
    assert ("-" if loss < 0 else "+") in found.spoken() and found.spoken().split("[")[0].endswith("in loss ")


def test_one_name_with_two_directions_is_not_compared() -> None:
    with pytest.raises(NotComparable, match="the runs differ in metric: merit, max / merit, min"):
        compare(runs([1.0], "max"), runs([1.0], "min"))
    assert settle_runs(PLAN, {"one": runs([1.0] * 3, "max")}, runs([1.0] * 3, "min")) == {}
