"""Exact counts, uniform draws."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup.methods.pruning.draw import ORDER, SURVIVORS, draw, generator, shuffled_plan


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.data())
def test_draw_takes_exactly_the_number_asked_for(marks, data):
    among = np.array(marks)
    count = data.draw(st.integers(0, int(among.sum())))
    drawn = draw(among, count, generator(0, 0, SURVIVORS))
    assert drawn.sum() == count
    assert not (drawn & ~among).any()


def test_every_sample_is_drawn_equally_often():
    among = np.arange(300) % 3 > 0
    epochs, count = 3000, 50
    times = sum(draw(among, count, generator(1, epoch, SURVIVORS)).astype(int) for epoch in range(epochs))
    fraction = count / among.sum()
    error = (epochs * fraction * (1 - fraction)) ** 0.5
    z = (times[among] - epochs * fraction) / error
    assert abs(z).max() < 5
    assert 0.8 < z.std() < 1.2


def test_keys_that_collide_are_drawn_fairly():
    """With 400,000 samples some 6 share each 16-bit key, so the last places are contested among them."""
    among = np.ones(400_000, dtype=np.bool_)
    means = [np.flatnonzero(draw(among, 3, generator(2, epoch, SURVIVORS))).mean() for epoch in range(300)]
    error = 400_000 / 12**0.5 / (3 * 300) ** 0.5
    assert abs(np.mean(means) - 200_000) < 4 * error


@given(st.lists(st.integers(0, 4), min_size=1, max_size=300))
def test_a_shuffled_plan_carries_each_sample_with_its_weight(values):
    codes = np.array(values, dtype=np.uint8)
    weights = (0.0, 1.0, 2.5, 3.0, 4.0)
    plan = shuffled_plan(len(codes), codes, weights, generator(0, 0, ORDER), {})
    assert sorted(plan.indices.tolist()) == np.flatnonzero(codes).tolist()
    assert plan.weights.tolist() == [weights[codes[i]] for i in plan.indices.tolist()]


def test_every_sample_comes_at_every_place():
    places = np.zeros(20)
    for epoch in range(2000):
        places += np.argsort(shuffled_plan(20, None, (), generator(5, epoch, ORDER), {}).indices.numpy())
    assert abs(places / 2000 - 9.5).max() < 4 * (20 / 12**0.5) / 2000**0.5


def test_layout_is_the_same_in_several_chunks(monkeypatch):
    codes = np.random.default_rng(0).integers(0, 3, 1000, dtype=np.uint8)
    args = (1000, codes, (0.0, 1.0, 2.0))
    whole = shuffled_plan(*args, generator(0, 0, ORDER), {})
    monkeypatch.setattr("raytrain_speedup.methods.pruning.draw._CHUNK", 64)
    chunked = shuffled_plan(*args, generator(0, 0, ORDER), {})
    assert whole.indices.equal(chunked.indices)
    assert whole.weights.equal(chunked.weights)
