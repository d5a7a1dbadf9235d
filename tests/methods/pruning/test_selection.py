"""Thresholds, bands and counts against sorting and exact arithmetic, on scores that hypothesis makes up."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raytrain_speedup.methods.pruning.draw import SURVIVORS, TIES, generator
from raytrain_speedup.methods.pruning.infobatch import mean_threshold, quantile_thresholds
from raytrain_speedup.methods.pruning.selection import MAX_WEIGHT, drop_count, lowest, thin
from raytrain_speedup.methods.pruning.timetable import Timetable

# Few different values, so that many scores are equal; and any values at all.
SCORES = arrays.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(
        st.sampled_from([0.0, 0.25, 1.0, 9.951]),
        st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False),
    ),
)


@given(SCORES)
def test_below_the_mean_is_what_lies_below_the_exact_mean(scores):
    exact = sum(map(Fraction, scores.tolist())) / len(scores)
    below = (scores < mean_threshold(scores)).tolist()
    # float64 sums 60 numbers to within 2^-26 here; only scores that close to the mean may go either way.
    clear = [abs(Fraction(score) - exact) > 2**-26 for score in scores.tolist()]
    assert all(
        got == (Fraction(score) < exact)
        for got, score, sure in zip(below, scores.tolist(), clear, strict=True)
        if sure
    )
    if len(set(scores.tolist())) == 1:
        assert not any(below)


@given(SCORES, st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4))
def test_quantiles_are_those_of_numpy_in_float64(scores, quantiles):
    expected = np.quantile(scores.astype(np.float64), quantiles, method="linear")
    found = np.array(quantile_thresholds(scores, quantiles))
    assert found.dtype == np.float32
    scale = np.abs(scores).max() + 1
    assert np.abs(found.astype(np.float64) - expected).max() <= 2.0**-22 * scale
    assert (found >= expected - 2.0**-40 * scale).all()  # rounded up


@given(SCORES, st.data())
def test_the_lowest_are_the_lowest_of_the_usable(scores, data):
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    usable[0] = True
    count = data.draw(st.integers(1, int(usable.sum())))
    mask, last = lowest(scores, usable, count, generator(0, 0, TIES))
    assert mask.sum() == count
    assert not (mask & ~usable).any()
    assert sorted(scores[mask]) == sorted(scores[usable])[:count]
    assert last == scores[mask].max()


def test_ties_for_the_last_places_change_from_epoch_to_epoch():
    scores, usable = np.zeros(100, dtype=np.float32), np.ones(100, dtype=np.bool_)
    times = sum(lowest(scores, usable, 30, generator(0, epoch, TIES))[0].astype(int) for epoch in range(400))
    assert abs(times - 120).max() < 5 * (400 * 0.3 * 0.7) ** 0.5


@given(st.floats(0, 0.9), st.integers(0, 3000))
def test_a_ratio_drops_the_nearest_number_that_leaves_one_for_ten(ratio, eligible):
    drop = drop_count(ratio, eligible)
    kept = eligible - drop
    assert kept * MAX_WEIGHT >= eligible
    assert abs(drop - ratio * eligible) <= 0.5 or (kept - 1) * MAX_WEIGHT < eligible


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200), st.data())
def test_the_survivors_of_each_band_stand_for_all_of_it(labels, data):
    masks = [np.array(labels) == band for band in (1, 2, 3)]
    drops = [data.draw(st.integers(0, max(int(mask.sum()) - 1, 0))) for mask in masks]
    bands = list(zip(masks, drops, strict=True))
    found = thin(bands, {"threshold": 1.0}, generator(0, 0, SURVIVORS), droppable=7)
    assert found.codes is not None
    weights = np.array(found.weights)[found.codes]
    assert weights[np.array(labels) == 0].tolist() == [1.0] * labels.count(0)
    for mask, drop in bands:
        kept = weights[mask][weights[mask] > 0]
        assert len(kept) == mask.sum() - drop
        assert len(set(kept)) <= 1
        assert abs(kept.sum() - mask.sum()) < 1e-9
    assert found.dropped == sum(drops)
    assert (found.stats, found.droppable) == ({"threshold": 1.0}, 7)


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=15),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.05, 1),
)
def test_pruned_epochs_lie_between_the_two_points_of_progress(lengths, prune_from, anneal_from, fraction):
    ends = (np.cumsum(lengths) / sum(lengths)).tolist()
    table = Timetable.of(ends, prune_from, anneal_from, fraction)
    assert len(table.pruned) == len(table.fractions) == len(ends)
    assert not table.pruned[0]
    for epoch in range(1, len(ends)):
        inside = ends[epoch - 1] >= prune_from and ends[epoch] <= anneal_from
        near = min(abs(ends[epoch - 1] - prune_from), abs(ends[epoch] - anneal_from)) < 1e-8
        assert table.pruned[epoch] == inside or near
    assert table.fractions == (*[1.0] * (len(ends) - 1), fraction)


def test_progress_that_epochs_hit_exactly_counts_as_reached():
    """10 epochs from .3 to .7: the sums of tenths are off by a bit, in either direction."""
    ends = np.cumsum([0.1] * 10).tolist()
    assert ends[2] > 0.3 and ends[7] < 0.8
    assert Timetable.of(ends, 0.3, 0.8, 1.0).pruned == (*[False] * 3, *[True] * 5, *[False] * 2)


@given(st.integers(2, 12), st.floats(0, 0.75), st.floats(0.1, 1), st.data())
def test_what_is_still_reachable_is_what_dropping_the_most_from_there_on_gives(epochs, most, fraction, data):
    table = Timetable.of([(e + 1) / epochs for e in range(epochs)], 0.0, 1.0, fraction)
    known = data.draw(st.integers(0, epochs - 1))
    dropped = [0.0, *(data.draw(st.floats(0, most)) for _ in range(known))][:known]
    rest = [most if pruned else 0.0 for pruned in table.pruned[known:]]
    total = sum(s * d for s, d in zip(table.fractions, [*dropped, *rest], strict=True))
    assert abs(table.reachable_saving(most, dropped) - total / sum(table.fractions)) < 1e-12
    if any(table.pruned[known:]):
        course = table.drop_fraction(table.reachable_saving(most, dropped), dropped)
        assert abs(course - most) < 1e-9
