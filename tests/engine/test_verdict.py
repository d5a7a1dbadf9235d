"""Verdicts: how often they err, simulated (`pytest -s` shows the tables), and what a look says.

The simulations have formulas of their own; two tests hold `Plan.look` and `settle` against them.
"""

from __future__ import annotations

import math
from statistics import fmean, stdev

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from scipy import stats

from raytrain_speedup.engine.statistics.estimate import Pairing
from raytrain_speedup.engine.statistics.verdict import Look, Plan, fixed_look, plan_for, settle, verdict

Array = NDArray[np.float64]
Hits = NDArray[np.bool_]
MARGIN = 0.3
SD = 0.17 * math.sqrt(2)
"""Of a difference, in points: two runs of .17 each that are not correlated."""
ROWS = 40_000
EVERY = range(3, 13)
PLAN = plan_for(MARGIN)
THREE = plan_for(MARGIN, winners=3)


def noise(rate: float, rows: int = ROWS) -> float:
    """Three standard errors of a simulated rate."""
    return 3 * math.sqrt(rate * (1 - rate) / rows)


def lossless(differences: Array, looks: range | list[int], level: float, grain: float = 0.0) -> Hits:
    """Rows that some look finds lossless: a user who stops at will, stops there."""
    found = np.zeros(len(differences), dtype=bool)
    for n in looks:
        seen = differences[:, :n]
        error = np.maximum(seen.std(axis=1, ddof=1) / math.sqrt(n), grain * math.sqrt(2 / n / 12))
        found |= seen.mean(axis=1) - stats.t.ppf(1 - level, n - 1) * error > -MARGIN
    return found


def normal(seed: int = 2) -> Array:
    return np.random.default_rng(seed).standard_normal((ROWS, 12))


def on_a_grid(grain: float) -> Array:
    """Differences of metrics that are whole test samples, wherever the two true means lie between them."""
    random = np.random.default_rng(3)
    places = [(ours, theirs) for ours in (0, 0.25, 0.5, 0.75) for theirs in (0.1, 0.4)]
    drawn = []
    for place in places:
        size = (2, ROWS // len(places), 12)
        ours, theirs = np.round(
            np.array(place)[:, None, None] + SD / math.sqrt(2) / grain * random.normal(size=size)
        )
        drawn.append(grain * (ours - theirs - (ours - theirs).mean()))
    return np.concatenate(drawn) - MARGIN


BOUNDARY = {
    "normal": -MARGIN + SD * normal(),
    "heavy tails (t, 3 degrees of freedom)": -MARGIN
    + SD * np.random.default_rng(4).standard_t(3, (ROWS, 12)),
    "one seed in ten spreads five times as much": -MARGIN
    + SD * normal() * np.where(np.random.default_rng(5).random((ROWS, 12)) < 0.1, 5, 1),
    "grid of 359 test samples": on_a_grid(100 / 359),
    "grid of 1000 test samples": on_a_grid(0.1),
}
GRAINS = {"grid of 359 test samples": 100 / 359, "grid of 1000 test samples": 0.1}


def test_false_lossless_of_one_method() -> None:
    """The truth is exactly -margin; each rate is the chance of a false lossless at any of the looks."""
    print(f"\n{'false lossless, truth = -margin':44} fixed 3  fixed 6  fixed 12  planned  5 % each time")
    for name, differences in BOUNDARY.items():
        grain = GRAINS.get(name, 0.0)
        fixed = [lossless(differences, [n], 0.05, grain).mean() for n in (3, 6, 12)]
        planned = lossless(differences, EVERY, PLAN.levels[0], grain).mean()
        naive = lossless(differences, EVERY, 0.05, grain).mean()
        print(f"{name:44} {fixed[0]:7.3f}  {fixed[1]:7.3f}  {fixed[2]:8.3f}  {planned:7.3f}  {naive:7.3f}")
        assert max(*fixed, planned) <= 0.05 + noise(0.05)
        assert naive > 0.1, "the simulation must be able to see what a plan is for"


def test_a_tail_to_the_left_is_the_known_limit() -> None:
    """What the module says of methods that fail badly now and then: no verdict of few seeds is safe from them."""
    tail = 1 - np.random.default_rng(6).exponential(size=(ROWS, 12))
    rate = lossless(-MARGIN + SD * tail, EVERY, PLAN.levels[0]).mean()
    print(f"\nfalse lossless, exponential tail to the left: {rate:.2f}")
    assert rate == pytest.approx(0.21, abs=0.01)


def three_winners(truth: tuple[float, float, float]) -> dict[str, list[Hits]]:
    """Lossless of each of three winners that share a baseline, for three ways to share the error."""
    random = np.random.default_rng(7)
    baseline, *methods = random.standard_normal((4, ROWS, 12)) * SD / math.sqrt(2)
    sides = [mean + method - baseline for mean, method in zip(truth, methods, strict=True)]
    found = {
        "not shared": [lossless(side, EVERY, THREE.levels[0]) for side in sides],
        "Bonferroni": [lossless(side, EVERY, THREE.levels[2]) for side in sides],
    }
    # Holm: who is found at a third of the error leaves it to the others. Verdicts stay, whenever they came.
    holm = found["Bonferroni"]
    for sharing in (1, 0):
        others = [lossless(side, EVERY, THREE.levels[sharing]) for side in sides]
        enough = np.sum(holm, axis=0) >= 2 - sharing
        holm = [mine | (other & enough) for mine, other in zip(holm, others, strict=True)]
    return found | {"Holm": holm}


@pytest.mark.parametrize(
    "truth", [(-MARGIN, -MARGIN, -MARGIN), (0.0, -MARGIN, -MARGIN), (0.2, 0.2, -MARGIN)], ids=str
)
def test_false_lossless_of_three_winners(truth: tuple[float, float, float]) -> None:
    """Winners chosen for their luck, in truth on the boundary: the chance that any of them is called lossless."""
    print(f"\nthree winners, true differences {truth}: any false lossless / mean fraction of true ones found")
    for name, found in three_winners(truth).items():
        false = np.any(
            [hit for hit, mean in zip(found, truth, strict=True) if mean <= -MARGIN], axis=0
        ).mean()
        true = [hit.mean() for hit, mean in zip(found, truth, strict=True) if mean > -MARGIN]
        print(f"  {name:12} {false:.3f} / {fmean(true) if true else math.nan:.3f}")
        if name != "not shared":
            assert false <= 0.05 + noise(0.05)
        elif truth[1] == -MARGIN:
            assert false > 0.07, "the simulation must be able to see what sharing is for"


def by_seed(metrics: Array) -> dict[int, float]:
    return dict(enumerate(metrics.tolist()))


def follow(plan: Plan, method: Array, baseline: Array, *, heed_futility: bool = True) -> Look:
    """A confirmation, seed by seed, until it stops."""
    for n in range(1, plan.max_seeds + 1):
        look = plan.look(by_seed(method[:n]), by_seed(baseline[:n]))
        if look.status != "continue" and (heed_futility or look.status != "futile"):
            return look
    raise AssertionError("the last look never says `continue`")


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
def test_power_within_twelve_seeds(pairing: Pairing) -> None:
    """True difference 0, margin .3, standard deviation of a run .17 (of a difference .24)."""
    print(f"\n{pairing:20} lossless  lossy  seeds of 12  runs  at most")
    for winners in (1, 2, 3):
        plan = plan_for(MARGIN, winners=winners, pairing=pairing)
        for difference in (0.0, -MARGIN, -2 * MARGIN):
            found = plan.prospect(0.17, difference=difference)
            name = f"{winners} winners, {difference:+.1f}"
            print(
                f"{name:20} {found.lossless:8.3f} {found.lossy:6.3f} {found.seeds:12.1f} {found.runs:5.1f}"
                f"  {found.max_runs}"
            )
            if difference == 0:
                assert found.lossless >= 0.8 and found.lossy < 0.001 and found.seeds < 8
            elif difference == -MARGIN:
                assert max(found.lossless, found.lossy) < 0.05 / winners + noise(0.05, 2**14)
                assert found.seeds < 6, "a plan gives up where nothing is to be found"
            else:
                assert found.lossy >= 0.8 and found.lossless < 0.001


@pytest.mark.parametrize("difference", [0.0, -MARGIN])
def test_the_prospect_is_what_confirmations_come_to(difference: float) -> None:
    rows = 200
    random = np.random.default_rng(8)
    sides = random.normal(0, 0.17, (rows, 2, 12))
    looks = [follow(PLAN, difference + method, baseline) for method, baseline in sides]
    expected = PLAN.prospect(0.17, difference=difference)
    for status, chance in (("lossless", expected.lossless), ("lossy", expected.lossy)):
        rate = fmean(look.status == status for look in looks)
        assert rate == pytest.approx(chance, abs=noise(chance, rows) + 0.01)
    seeds = [look.seeds for look in looks]
    assert fmean(seeds) == pytest.approx(expected.seeds, abs=3.5 * stdev(seeds) / math.sqrt(rows))


def test_runs_of_a_plan_are_those_of_the_winners_and_of_the_longest_baseline() -> None:
    certain = plan_for(MARGIN, winners=2).prospect(1e-6)
    assert (certain.seeds, certain.runs, certain.max_runs) == (3, 9, 36)
    with_baseline = plan_for(MARGIN, max_seeds=8, winners=2, pairing="unpaired", baseline_seeds=5).prospect(
        1e-6
    )
    assert (with_baseline.seeds, with_baseline.runs, with_baseline.max_runs) == (3, 6, 16 + 3)


def test_correlation_makes_a_paired_plan_stronger_than_an_unpaired_one() -> None:
    gains = []
    for pairing in ("paired", "unpaired"):
        plan = plan_for(MARGIN, pairing=pairing)  # type: ignore[arg-type]
        alone, together = (plan.prospect(0.25, correlation=rho).lossless for rho in (0.0, 0.6))
        gains.append(together - alone)
    assert gains[0] > 0.25 and gains[1] < 0.15


def test_looks_are_those_of_the_simulations() -> None:
    """So that the tables above speak of `Plan.look`: futility does not bind, so it is not heeded here."""
    random = np.random.default_rng(9)
    method, baseline = random.normal(0, 0.17, (2, 100, 12))
    method -= MARGIN * random.uniform(0, 1, (100, 1))
    expected = lossless(method - baseline, EVERY, PLAN.levels[0])
    found = [
        any(PLAN.look(by_seed(m[:n]), by_seed(b[:n])).status == "lossless" for n in EVERY)
        for m, b in zip(method, baseline, strict=True)
    ]
    assert found == expected.tolist() and 20 < sum(found) < 80


def test_settled_winners_are_those_of_the_simulations() -> None:
    """Holm on the metrics of all 12 seeds: the smallest p-value at a third of the level, and so on."""
    random = np.random.default_rng(10)
    orders = set()
    for _ in range(40):
        baseline, *methods = random.normal(0, 0.17, (4, 12)) - np.array([0, 0.02, 0.14, 0.2])[:, None]
        found = settle(THREE, dict(zip("abc", map(by_seed, methods), strict=True)), by_seed(baseline))
        levels = {
            name: stats.ttest_1samp(method - baseline, -MARGIN, alternative="greater").pvalue
            for name, method in zip("abc", methods, strict=True)
        }
        expected = []
        for name in sorted(levels, key=levels.__getitem__):
            if levels[name] >= THREE.levels[2 - len(expected)]:
                break
            expected.append(name)
        assert sorted(name for name, look in found.items() if look.status == "lossless") == sorted(expected)
        orders.add(len(expected))
    assert orders == {0, 1, 2, 3}


BASELINE = {seed: 90 + value for seed, value in enumerate([0.1, -0.2, 0.05, 0.15, -0.1, 0.0])}


def shifted(*shifts: float) -> dict[int, float]:
    """The baseline's metrics and what a method gains on them."""
    return {seed: BASELINE[seed] + shift for seed, shift in enumerate(shifts)}


def test_a_look_by_hand() -> None:
    """Differences 0, -.1, .1, .2: mean .05, standard error .0645."""
    look = PLAN.look(shifted(0, -0.1, 0.1, 0.2), BASELINE)
    half = stats.t.ppf(1 - PLAN.levels[0], 3) * stats.sem([0, -0.1, 0.1, 0.2])
    assert (look.seeds, look.baseline_seeds) == (4, 4)
    assert look.difference == pytest.approx(0.05)
    assert look.standard_error == pytest.approx(0.0645497)
    assert look.interval == pytest.approx((0.05 - half, 0.05 + half))
    assert look.status == look.verdict == "lossless" and look.seeds_missing == 0
    assert look.correlation == pytest.approx(
        stats.pearsonr([0.1, -0.3, 0.15, 0.35], [0.1, -0.2, 0.05, 0.15])[0]
    )


def test_lossy_is_the_mirror_image() -> None:
    gains = (0.0, -0.1, 0.1, 0.2)
    above = PLAN.look(shifted(*gains), BASELINE)
    below = PLAN.look(shifted(*(-2 * MARGIN - gain for gain in gains)), BASELINE)
    assert below.status == below.verdict == "lossy" and below.seeds_missing == 0
    assert below.interval == pytest.approx([-2 * MARGIN - bound for bound in reversed(above.interval or ())])


def test_before_the_first_look_nothing_is_known() -> None:
    for seeds in (1, 2):
        look = PLAN.look(shifted(*[5.0] * seeds), BASELINE)
        assert (look.status, look.seeds, look.seeds_missing) == ("continue", seeds, 3 - seeds)
        assert look.interval is None and look.standard_error is None and look.verdict == "not yet known"
    assert PLAN.look(shifted(5.0, 5.0, 5.0), BASELINE).status == "lossless"


def test_data_are_looked_at_where_it_was_planned() -> None:
    """Between two looks and beyond the last one, the latest look stands; seeds count in ascending order."""
    plan = plan_for(MARGIN, min_seeds=3, max_seeds=5, step=2)
    assert plan.looks == (3, 5)
    gains = (0.3, -0.4, 0.1, 0.2, -0.9, 7.0)
    at_three, at_four, at_five, at_six = (plan.look(shifted(*gains[:n]), BASELINE) for n in (3, 4, 5, 6))
    assert at_four.interval == at_three.interval and at_four.seeds == 3
    assert at_six.interval == at_five.interval and at_six.seeds == at_six.baseline_seeds == 5
    backwards = dict(reversed(shifted(*gains).items()))
    assert plan.look(backwards, BASELINE).interval == at_six.interval
    assert plan_for(MARGIN, max_seeds=8, step=3).looks == (3, 6, 8)


def test_pairs_are_made_by_seed_and_others_are_left_out() -> None:
    method = shifted(0.0, 0.1, -0.1, 0.05)
    paired = PLAN.look({**method, 17: 3.0}, {**BASELINE, -1: 50.0})
    assert paired.interval == PLAN.look(method, BASELINE).interval and paired.seeds == 4


def test_the_pairing_is_the_plans_even_where_the_seeds_would_pair() -> None:
    plan = plan_for(MARGIN, pairing="unpaired")
    method = shifted(0.0, 0.1, -0.1, 0.05)
    look = plan.look(method, BASELINE)
    sides = [list(method.values()), list(BASELINE.values())[:4]]
    expected = stats.ttest_ind(*sides, equal_var=False).confidence_interval(1 - 2 * plan.levels[0])
    assert look.interval == pytest.approx((expected.low, expected.high)) and look.baseline_seeds == 4


def test_a_baseline_may_have_more_seeds_than_a_method() -> None:
    plan = plan_for(MARGIN, max_seeds=4, pairing="unpaired", baseline_seeds=6)
    method = {seed: 90.0 + seed / 100 for seed in (10, 11, 12)}
    look = plan.look(method, BASELINE)
    sides = [list(method.values()), list(BASELINE.values())]
    expected = stats.ttest_ind(*sides, equal_var=False).confidence_interval(1 - 2 * plan.levels[0])
    assert look.interval == pytest.approx((expected.low, expected.high))
    assert (look.seeds, look.baseline_seeds, look.correlation) == (3, 6, None)
    assert plan.look(method, dict(list(BASELINE.items())[:5])).interval is None, "not all of them are there"


def test_seeds_missing_are_those_with_which_the_estimate_would_be_a_verdict() -> None:
    gains = (0.2, -0.3, 0.1, -0.1)
    look = PLAN.look(shifted(*gains), BASELINE)
    assert look.status == "continue"
    spread = stdev(gains)

    def decided(n: int) -> bool:
        half = stats.t.ppf(1 - PLAN.levels[0], n - 1) * spread / math.sqrt(n)
        return fmean(gains) - half > -MARGIN

    assert look.seeds_missing == next(n for n in range(5, 100) if decided(n)) - 4
    sparse = plan_for(MARGIN, min_seeds=4, max_seeds=12, step=4).look(shifted(*gains), BASELINE)
    assert sparse.seeds_missing == 4, "the next planned look"


def test_seeds_missing_may_be_more_than_the_plan_allows() -> None:
    short = plan_for(MARGIN, max_seeds=4, futility=0)
    look = short.look(shifted(0.2, -0.9, 0.5, -0.4), BASELINE)
    assert look.status == look.verdict == "not yet known"
    assert look.seeds_missing is not None and look.seeds_missing > 8
    undecidable = short.look(shifted(-0.2, -0.4, -0.31, -0.29), BASELINE)
    assert undecidable.difference == pytest.approx(-MARGIN) and undecidable.seeds_missing is None


@pytest.mark.parametrize("flipped", [False, True])
def test_futility_is_the_chance_of_a_verdict_at_the_last_look(flipped: bool) -> None:
    """Against simulated futures of the estimate: the plan gives up just above that chance, not just below."""
    gains = [-0.35, -0.1, -0.3, -0.05, -0.2]
    if flipped:
        gains = [-2 * MARGIN - gain for gain in gains]
    futures = np.random.default_rng(11).normal(fmean(gains), stdev(gains), (200_000, 7))
    last = (sum(gains) + futures.sum(axis=1)) / 12
    half = stats.t.ppf(1 - PLAN.levels[0], 11) * stdev(gains) / math.sqrt(12)
    chance = np.mean((last - half > -MARGIN) | (last + half < -MARGIN))
    assert 0.1 < chance < 0.9
    for futility, status in ((chance - 0.01, "continue"), (chance + 0.01, "futile")):
        look = plan_for(MARGIN, futility=futility).look(shifted(*gains), BASELINE)
        assert look.status == status and look.verdict == "not yet known"


def test_futility_does_not_bind() -> None:
    """Its levels are those of a plan without it: who goes on may still come to a verdict."""
    assert plan_for(MARGIN, futility=0.3).levels == plan_for(MARGIN, futility=0).levels
    hasty = plan_for(MARGIN, futility=0.9)
    gains = np.array([0.3, -0.4, 0.2, 0.1, 0.0, -0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert follow(hasty, gains, 0 * gains).status == "futile"
    assert follow(hasty, gains, 0 * gains, heed_futility=False).status == "lossless"


def test_a_method_that_loses_the_margin_is_given_up() -> None:
    gains = (-0.3, -0.35, -0.25, -0.32, -0.28, -0.3)
    look = plan_for(MARGIN, max_seeds=8).look(shifted(*gains), BASELINE)
    assert look.status == "futile"


def test_the_last_look_says_that_nothing_is_known() -> None:
    look = plan_for(MARGIN, max_seeds=6).look(shifted(-0.3, -0.9, 0.1, -0.4, 0.3, -0.2), BASELINE)
    assert look.status == look.verdict == "not yet known"


def test_equal_losses_of_few_seeds_are_no_certainty() -> None:
    """Three seeds that each lose 3 of 359 test images: the interval is at least as wide as the grain allows."""
    plan, method = plan_for(1.0), shifted(-0.84, -0.84, -0.84)
    assert plan.look(method, BASELINE).status == "lossless"
    with_grain = plan.look(method, BASELINE, grain=100 / 359)
    assert with_grain.verdict == "not yet known"
    assert with_grain.standard_error == pytest.approx(100 / 359 * math.sqrt(2 / 3 / 12))
    assert (
        fixed_look(method, dict(list(BASELINE.items())[:3]), 1.0, grain=100 / 359).verdict == "not yet known"
    )


def test_who_is_settled_leaves_the_error_to_the_others() -> None:
    plan = plan_for(MARGIN, winners=2)
    near = shifted(-0.075, 0.12, -0.12, 0.075)
    clear, lossy = shifted(0.01, 0.0, -0.01, 0.0), shifted(-2.01, -2.0, -1.99, -2.0)
    assert plan.look(near, BASELINE).status == "continue"
    assert plan_for(MARGIN).look(near, BASELINE).status == "lossless"
    assert settle(plan, {"near": near}, BASELINE)["near"] == plan.look(near, BASELINE)
    looks = settle(plan, {"near": near, "clear": clear}, BASELINE)
    assert {name: look.status for name, look in looks.items()} == {"near": "lossless", "clear": "lossless"}
    looks = settle(plan, {"near": near, "clear": lossy}, BASELINE)
    assert {name: look.status for name, look in looks.items()} == {"near": "continue", "clear": "lossy"}


def test_a_share_is_handed_on_and_on() -> None:
    """Of three, the second is found at half of the error and the third at all of it."""
    gains = np.array([-0.075, 0.12, -0.12, 0.075])
    methods = {
        name: shifted(*(scale * gains)) for name, scale in (("third", 1.0), ("second", 0.84), ("first", 0.1))
    }
    alone = {name: THREE.look(metrics, BASELINE).status for name, metrics in methods.items()}
    assert alone == {"third": "continue", "second": "continue", "first": "lossless"}
    without_second = settle(THREE, {name: methods[name] for name in ("first", "third")}, BASELINE)
    assert without_second["third"].status == "continue"
    assert [look.status for look in settle(THREE, methods, BASELINE).values()] == ["lossless"] * 3


def test_lossy_has_shares_of_its_own() -> None:
    plan = plan_for(MARGIN, winners=2)
    near = shifted(*(-2 * MARGIN - gain for gain in (-0.075, 0.12, -0.12, 0.075)))
    clear, lossy = shifted(0.01, 0.0, -0.01, 0.0), shifted(-2.01, -2.0, -1.99, -2.0)
    assert settle(plan, {"near": near, "other": clear}, BASELINE)["near"].status == "continue"
    assert settle(plan, {"near": near, "other": lossy}, BASELINE)["near"].status == "lossy"


def test_all_winners_may_be_settled() -> None:
    clear = shifted(0.01, 0.0, -0.01, 0.0)
    looks = settle(THREE, dict.fromkeys("abc", clear), BASELINE)
    assert [look.status for look in looks.values()] == ["lossless"] * 3


def test_a_plan_is_numbers_strings_and_lists() -> None:
    plan = plan_for(0.25, error=0.04, max_seeds=4, winners=2, pairing="unpaired", baseline_seeds=6)
    assert Plan.from_dict(yaml.safe_load(yaml.safe_dump(plan.to_dict()))) == plan
    assert plan.winners == 2 and plan.levels[1] < plan.levels[0] < 0.04
    assert (plan.margin, plan.error, plan.max_seeds, plan.baseline_seeds) == (0.25, 0.04, 4, 6)


def test_more_looks_than_planned_cost_error() -> None:
    """Simulated: the looks of before at their levels, those that were added at the level of the longer plan."""
    short = plan_for(MARGIN, max_seeds=4, winners=2)
    longer = short.extended(8)
    assert longer.looks == (3, 4, 5, 6, 7, 8)
    metrics = np.random.default_rng(2).standard_normal((200_000, 8))
    erred = np.zeros(len(metrics), dtype=bool)
    for n in longer.looks:
        level = short.levels[-1] if n <= 4 else longer.levels[-1]
        t = metrics[:, :n].mean(axis=1) / (metrics[:, :n].std(axis=1, ddof=1) / np.sqrt(n))
        erred |= t > stats.t.ppf(1 - level, n - 1)
    assert longer.error == pytest.approx(2 * erred.mean(), abs=0.003)
    assert longer.error > short.error + 0.01


@pytest.mark.parametrize(("min_seeds", "max_seeds"), [(2, 12), (5, 4)])
def test_a_plan_has_three_seeds_at_least(min_seeds: int, max_seeds: int) -> None:
    with pytest.raises(ValueError, match=f"from {min_seeds} to {max_seeds}"):
        plan_for(MARGIN, min_seeds=min_seeds, max_seeds=max_seeds)


def test_without_a_plan_there_is_one_look() -> None:
    method = shifted(0.1, -0.2, 0.15)
    three = dict(list(BASELINE.items())[:3])
    paired = stats.ttest_rel(list(method.values()), list(three.values())).confidence_interval(0.90)
    assert fixed_look(method, three, MARGIN).interval == pytest.approx((paired.low, paired.high))
    welch = stats.ttest_ind(
        list(method.values()), list(BASELINE.values()), equal_var=False
    ).confidence_interval(0.98)
    look = fixed_look(method, BASELINE, MARGIN, error=0.01)
    assert look.interval == pytest.approx((welch.low, welch.high))
    assert (look.seeds, look.baseline_seeds, look.status, look.seeds_missing) == (3, 6, "not yet known", None)


@pytest.mark.parametrize("gain", [0.0, -2.0])
def test_without_a_plan_three_seeds_are_a_verdict_and_two_are_not(gain: float) -> None:
    method = {seed: BASELINE[seed] + gain + 0.01 * seed for seed in range(3)}
    three = dict(list(BASELINE.items())[:3])
    assert fixed_look(method, three, MARGIN).verdict == ("lossy" if gain else "lossless")
    assert fixed_look(method, three, MARGIN).seeds_missing == 0
    del method[0], three[0]
    assert fixed_look(method, three, MARGIN).verdict == "not yet known"
    assert fixed_look(method, three, MARGIN).interval is not None
    assert fixed_look({0: 90.0}, three, MARGIN).interval is None


def test_a_verdict_needs_all_of_the_interval() -> None:
    assert verdict((-0.29, 0.5), MARGIN) == "lossless"
    assert verdict((-0.9, -0.31), MARGIN) == "lossy"
    assert verdict((-MARGIN, 0.5), MARGIN) == verdict((-0.9, -MARGIN), MARGIN) == "not yet known"
    assert verdict(None, MARGIN) == "not yet known"
