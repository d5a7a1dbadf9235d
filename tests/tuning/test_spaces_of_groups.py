"""Conditional entries and groups of a search space: every draw is valid, and what is written down gives it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy import stats
from test_plan import loaded

from raytrain_speedup.settings import UserError
from raytrain_speedup.tuning.distributions import GRID, Distribution
from raytrain_speedup.tuning.groups import with_rows
from raytrain_speedup.tuning.space import Sweep
from raytrain_speedup.tuning.sweep_settings import SEARCH_SEED

ENTRY: TypeAdapter[Distribution] = TypeAdapter(Distribution)
FRACTION, RATIO, FACTOR = (f"curriculum.schedule[].{name}" for name in ("fraction", "ratio", "batch_factor"))
CUSTOM = {"curriculum.method": "custom"}
SEARCH = {
    "curriculum.method": {"type": "categorical", "choices": ["none", "custom"]},
    FRACTION: {"type": "simplex", "parts": 3, "low": 0.1, "when": CUSTOM},
    RATIO: {"type": "rising", "parts": 3, "low": 0.5, "high": 0.9, "last": 1, "when": CUSTOM},
    FACTOR: {"type": "falling", "parts": 3, "low": 1, "high": 4, "step": 1, "when": CUSTOM},
}


def space(folder: Path, **changes: object) -> Sweep:
    return loaded(folder, **{"search": SEARCH, **changes})  # type: ignore[arg-type]


def drawn(sweep: Sweep, random: np.random.Generator, method: str) -> dict[str, object]:
    numbers = {name: round(int(random.integers(1, 100)) * GRID, 6) for name in sweep.distributions()}
    return {**numbers, "curriculum.method": method}


def test_every_draw_is_a_curriculum(tmp_path: Path) -> None:
    sweep, random = space(tmp_path), np.random.default_rng(0)
    for _ in range(20):
        params, unused = sweep.meant(drawn(sweep, random, "custom"))
        assert not unused and params.keys() == SEARCH.keys()
        stages = sweep.trial(params, 0).curriculum.schedule  # type: ignore[union-attr]
        assert sum(stage.fraction for stage in stages) == pytest.approx(1, abs=1e-5)
        assert min(stage.fraction for stage in stages) >= 0.0999
        ratios, factors = ([getattr(stage, name) for stage in stages] for name in ("ratio", "batch_factor"))
        assert ratios == sorted(ratios) and ratios[0] >= 0.5 and ratios[-1] == 1
        assert factors == sorted(factors, reverse=True) and set(factors) <= {1, 2, 3, 4}


def test_a_method_that_was_not_chosen_has_no_numbers(tmp_path: Path) -> None:
    sweep = space(tmp_path)
    params, unused = sweep.meant(drawn(sweep, np.random.default_rng(0), "none"))
    assert params == {"curriculum.method": "none"}
    assert set(unused) == sweep.distributions().keys() - {"curriculum.method"}
    assert sweep.trial(params, 0).curriculum.method == "none"  # type: ignore[union-attr]


@pytest.mark.parametrize("key", [FRACTION, RATIO])
def test_what_is_written_down_gives_the_numbers_back(key: str) -> None:
    entry, random = ENTRY.validate_python(SEARCH[key]), np.random.default_rng(1)
    for _ in range(300):
        numbers = {name: round(int(random.integers(1, 100)) * GRID, 6) for name in entry.numbers(key)}
        assert entry.drawn(key, entry.meant(key, numbers)) == numbers


def test_fractions_are_even_on_the_simplex() -> None:
    """Each of three is Beta(1, 2), as the Dirichlet distribution has it (scipy)."""
    entry = ENTRY.validate_python({"type": "simplex", "parts": 3})
    fractions = np.array([entry.values(pair) for pair in np.random.default_rng(0).random((4000, 2))])  # type: ignore[union-attr]
    for place in range(3):
        assert stats.kstest(fractions[:, place], stats.beta(1, 2).cdf).pvalue > 1e-3


def test_rising_values_are_order_statistics() -> None:
    """The k-th of three uniform numbers is Beta(k, 4 - k)."""
    entry = ENTRY.validate_python({"type": "rising", "parts": 3, "low": 2, "high": 4})
    values = np.array([entry.values(numbers) for numbers in np.random.default_rng(0).random((4000, 3))])  # type: ignore[union-attr]
    for place in range(3):
        assert stats.kstest(values[:, place] / 2 - 1, stats.beta(place + 1, 3 - place).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({FRACTION: [0.5, 0.5]}, f"{FRACTION}: [0.5, 0.5] is not allowed; expected a list of 3 numbers"),
        ({FRACTION: [0.5, 0.5, 0.5]}, "expected fractions of 0.1 or more that sum to 1"),
        ({RATIO: [0.8, 0.6, 1.0]}, "expected rising values from 0.5 to 0.9"),
        ({RATIO: [0.5, 0.6, 0.9]}, "expected 1 as the last value"),
        ({FACTOR: [1, 2, 4]}, "expected falling values from 1 to 4"),
    ],
)
def test_points_that_are_no_such_group(point: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as found:
        space(tmp_path, points_to_evaluate=[{**CUSTOM, **point}])
    assert message in str(found.value) and len(str(found.value).splitlines()) == 1


def test_columns_of_a_list_are_equally_long() -> None:
    assert with_rows({"a[].b": [1, 2], "c": 3}) == {"a": [{"b": 1}, {"b": 2}], "c": 3}
    with pytest.raises(UserError, match=r"a\[\]: has columns of .*; expected equally many parts"):
        with_rows({"a[].b": [1, 2], "a[].c": [1]})


def test_a_proxy_is_of_the_search_alone(tmp_path: Path) -> None:
    sweep = space(tmp_path, proxy={"train.epochs": "x0.1", "data.image_size": 8})
    whole, small = (
        sweep.trial({"curriculum.method": "none"}, seed).train.epochs for seed in (0, SEARCH_SEED)
    )
    assert small == max(1, round(whole / 10)) < whole
    sizes = [sweep.experiment({}, seed).data.image_size for seed in (0, SEARCH_SEED)]  # type: ignore[union-attr]
    assert sizes == [sweep.base.data.image_size, 8] and sizes[0] != 8  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"proxy: train\.optimizer: x0\.1 is not allowed, of 'sgd'"):
        space(tmp_path, proxy={"train.optimizer": "x0.1"})
