"""The curriculum that a search varies: every choice of its numbers is a valid one, and fractions are uniform."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup.methods.curriculum.by_numbers import SimplexCurriculum

inside = st.floats(0.01, 0.99)


def test_shares_are_uniform_on_the_simplex() -> None:
    """The moments of Dirichlet(1, 1, 1): mean 1/3, variance 1/18, covariance -1/36."""
    drawn = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = drawn.clamp(1e-12, 1 - 1e-12)
    fractions = torch.tensor(
        [SimplexCurriculum(u_1=a, u_2=b, u_3=c).fractions() for a, b, c in drawn.tolist()]
    )
    assert fractions.mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    covariance = torch.cov(fractions.T)
    expected = torch.full((3, 3), -1 / 36) + torch.eye(3) * (1 / 18 + 1 / 36)
    torch.testing.assert_close(covariance, expected, atol=0.004, rtol=0)


def test_as_it_is_the_shares_are_equal() -> None:
    assert SimplexCurriculum().fractions() == pytest.approx([1 / 3] * 3)


@given(
    u=st.tuples(inside, inside, inside), ratio=inside, rise=st.floats(0, 1), size=st.sampled_from([32, 224])
)
def test_bandwidths_only_rise_and_the_last_stage_is_full(
    u: tuple[float, float, float], ratio: float, rise: float, size: int
) -> None:
    settings = SimplexCurriculum(u_1=u[0], u_2=u[1], u_3=u[2], ratio=ratio, rise=rise)
    stages = settings.stages(size)
    sizes = [stage.size or size for stage in stages]
    assert all(before <= after for before, after in pairwise(sizes))
    assert sizes[-1] == size and stages[-1].ends_at == 1
    assert sum(settings.fractions()) == pytest.approx(1)


def test_equal_neighbours_become_one_stage() -> None:
    settings = SimplexCurriculum(ratio=1.0, magnitude_start=5, magnitude_end=5)
    assert len(settings.stages(32)) == 1
