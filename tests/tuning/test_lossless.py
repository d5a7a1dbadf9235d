"""`cheapest-lossless`: what is tried, what is stopped, what is confirmed; on formulas in place of trainings."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor, kernels
from test_plan import loaded, metrics, records
from test_search import RATIO

from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.script import load_any_dict
from raytrain_speedup.tracking import open_tracker
from raytrain_speedup.tracking.run_log import RunLog
from raytrain_speedup.tracking.tracker import Tracker
from raytrain_speedup.tuning.forecast import Curves
from raytrain_speedup.tuning.frontier import Beliefs, Bound
from raytrain_speedup.tuning.limits import Limits
from raytrain_speedup.tuning.monitor import Monitor
from raytrain_speedup.tuning.objective import Level, Objective
from raytrain_speedup.tuning.parent import new_parent, past_curves, past_runs
from raytrain_speedup.tuning.plan import SweepPlan
from raytrain_speedup.tuning.search import LOSSY, Ending, Search
from raytrain_speedup.tuning.surrogate import GaussianProcess
from raytrain_speedup.tuning.sweep_settings import SEARCH_SEED, BudgetSettings

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import search as benchmark

LOSSLESS = {"objective": "cheapest-lossless"}
OBJECTIVE = Objective("cheapest-lossless", {"val_accuracy": "max", "train_flops": "min"}, margin=0.5)


def test_the_process_is_scikit_learns_at_equal_parameters() -> None:
    random = np.random.default_rng(0)
    x_ND, extra_N = random.random((12, 2)), random.random(12) * 0.02
    y_N = 90 + np.sin(3 * x_ND[:, 0]) + 0.1 * random.standard_normal(12)
    ours = GaussianProcess(x_ND, y_N, noise=0.1, extra_N=extra_N)
    scale, mean = ours._scale, y_N.mean()
    kernel = kernels.ConstantKernel(ours._variance) * kernels.Matern(ours._lengths, nu=2.5)
    noise = (ours.noise / scale) ** 2 + extra_N / scale**2 + 1e-8
    theirs = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(x_ND, (y_N - mean) / scale)
    at_MD = random.random((5, 2))
    expected, deviation = theirs.predict(at_MD, return_std=True)
    found = ours.predict(at_MD)
    np.testing.assert_allclose(found[0], expected * scale + mean, rtol=1e-6)
    np.testing.assert_allclose(found[1], deviation * scale, rtol=1e-4)
    surfaces = np.array([ours.draw(at_MD, random) for _ in range(2000)])
    np.testing.assert_allclose(surfaces.mean(axis=0), found[0], atol=4 * deviation.max() * scale / 40)
    np.testing.assert_allclose(surfaces.std(axis=0), found[1], rtol=0.1)


def test_the_noise_is_told_from_the_surface() -> None:
    random = np.random.default_rng(0)
    x_ND = np.repeat(random.random((15, 1)), 3, axis=0)
    y_N = 2 * x_ND[:, 0] + 0.3 * random.standard_normal(45)
    assert GaussianProcess(x_ND, y_N, noise=1.0).noise == pytest.approx(0.3, rel=0.35)


def test_optuna_is_told_the_constraint_once_the_baseline_is_known(tmp_path: Path) -> None:
    """And minimises the cost. The bound is baseline - margin."""
    search = Search(loaded(tmp_path, **LOSSLESS, margin=0.5))
    first, second = search.suggest(), search.suggest()
    search.tell(first, Ending("finished", metrics("trial-01")))
    assert search.told == 1 and not search.study.trials[0].state.is_finished(), "waits for the bound"
    search.learn(Level(98.0, 2))
    search.tell(second, Ending("finished", metrics("trial-02")))
    told = search.study.trials
    assert [trial.values for trial in told] == [[1.0], [1.0]]
    assert [trial.constraints[LOSSY] for trial in told] == [97.5 - 90.0, 97.5 - 98.0]


def test_the_bound_is_known_before_the_search_begins(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path, **LOSSLESS))
    names = [plan.suggest(slot)["run_name"] for slot in "abc"]
    assert names == ["baseline-seed1000003", "baseline-seed1000004", "trial-01"]
    plan.on_trial_complete("a", metrics(names[0]))
    assert plan.monitor.level is None
    plan.on_trial_complete("b", {**metrics(names[1]), "val_accuracy": 97.0})
    assert plan.monitor.level == Level(97.5, 2)


def test_settings_that_come_again_train_with_another_seed(tmp_path: Path) -> None:
    points = [{RATIO: 0.4}, {RATIO: 0.5}, {RATIO: 0.4}]
    plan = SweepPlan(loaded(tmp_path, points_to_evaluate=points, concurrency=1))
    configs = [plan.suggest(slot) for slot in "abcde"]
    seeds = [config["experiment"]["train"]["seed"] for config in configs if config["role"] == "trial"]
    assert seeds[:3] == [SEARCH_SEED, SEARCH_SEED, SEARCH_SEED + 1]


def test_a_forecast_is_a_regression_on_finished_runs() -> None:
    """Least squares with one observation more: that of two points of lead one is left."""
    now_N, end_N = np.array([57.0, 60.0, 61.0, 66.0]), np.array([70.0, 71.2, 71.4, 73.0])
    curves = Curves()
    for place, (now, end) in enumerate(zip(now_N, end_N, strict=True)):
        for progress, quality in ((0.25, now - 10), (0.75, now + 10), (1.0, end)):
            curves.report(f"run-{place}", progress, quality)
    curves.report("new", 0.5, 55.0)
    forecast = curves.forecast("new")
    away_N, gain_N = now_N - now_N.mean(), (end_N - now_N) - (end_N - now_N).mean()
    weight = gain_N.var() / 0.5**2
    rows, gained = np.append(away_N, math.sqrt(weight))[:, None], np.append(gain_N, -0.5 * math.sqrt(weight))
    slope = np.linalg.lstsq(rows, gained)[0][0]
    expected = end_N.mean() + (1 + slope) * (55 - now_N.mean())
    assert forecast is not None and forecast.mean == pytest.approx(expected)
    assert 0 < 1 + slope < 0.5, "these draw together"
    error = math.sqrt(((gain_N - slope * away_N) ** 2).sum() / 3)
    doubt = error * math.sqrt(1 + 1 / 4 + (55 - now_N.mean()) ** 2 / (away_N @ away_N + weight))
    assert forecast.chance_to_reach(70.0) == pytest.approx(stats.t.sf((70.0 - expected) / doubt, 3))
    fewer = Curves()
    fewer.report("one", 1.0, 70.0)
    fewer.report("new", 0.5, 55.0)
    assert fewer.forecast("new") is None, "one run says nothing of the spread"


def test_who_was_stopped_for_bad_luck_is_forecast_without_bias() -> None:
    """Equally good runs, seen with noise: those that look worst end as the others do."""
    random, curves, ends = np.random.default_rng(0), Curves(), []
    for place in range(40):
        for progress in (0.5, 1.0):
            curves.report(f"run-{place}", progress, 80 + 20 * progress + 0.3 * random.standard_normal())
    for place in range(200):
        curves.report(f"new-{place}", 0.5, 90 + 0.3 * random.standard_normal())
        forecast = curves.forecast(f"new-{place}")
        assert forecast is not None
        ends.append(forecast.mean)
    assert np.mean(sorted(ends)[:20]) == pytest.approx(100, abs=0.2), "by their gain alone it is 99.5"


def test_a_run_that_is_tried_again_or_reports_its_end_twice_has_one_curve() -> None:
    curves = Curves()
    for progress, quality in ((0.25, 1.0), (0.5, 9.0), (0.5, 2.0), (1.0, 3.0), (1.0, 4.0)):
        curves.report("run", progress, quality, role="baseline")
    assert [curves.usual("baseline", at) for at in (0.25, 0.5, 0.75, 1.0)] == [1.0, 2.0, 3.0, 4.0]


def watched(*, kind: str = "max") -> Monitor:
    """Four runs that gained 10 +- .15 from the half on, wherever they were, and a baseline at 90."""
    sign = 1 if kind == "max" else -1
    objective = Objective("cheapest-lossless", {"val_accuracy": kind, "train_flops": "min"}, margin=0.5)
    monitor = Monitor(objective, Level(sign * 90.0, 2))
    for place, (half, noise) in enumerate(((79.0, 0.05), (80.0, -0.15), (81.0, 0.0), (80.5, 0.1))):
        role = "baseline" if place == 1 else "trial"
        for progress, quality in ((0.5, half), (1.0, half + 10 + noise)):
            report = {"progress": progress, "val_accuracy": 80 + sign * (quality - 80)}
            monitor.report(f"run-{place}", report | {"train_flops": progress}, role=role)
    return monitor


def test_a_trial_is_stopped_when_it_cannot_reach_the_bound_any_more() -> None:
    monitor = watched()
    reports = {
        name: {"progress": progress, "val_accuracy": quality}
        for name, progress, quality in (("good", 0.5, 79.5), ("lost", 0.5, 79.0), ("early", 0.4, 20.0))
    }
    for name, report in reports.items():
        monitor.report(name, report)
    stopped = [name for name, report in reports.items() if monitor.is_superfluous(name, report, chance=0.1)]
    assert stopped == ["lost"], "where the early one was, nobody was before"
    assert monitor.stopped == {"lost": "at 50%: heads for 89.01 +- 0.15, and 89.5 is needed"}
    monitor.level = None
    assert not monitor.is_superfluous("lost", reports["lost"], chance=0.1), "without a baseline no bound"


def test_a_trial_is_stopped_where_one_as_good_is_cheaper() -> None:
    """From 80 at the half all head for 90, the baseline's 90 being as good as anybody asks for."""
    monitor = watched()
    monitor.lossless = {"trial-02": (0.4, 89.6), "trial-03": (0.5, 90.1)}
    reports = {
        name: {"progress": progress, "val_accuracy": quality, "train_flops": cost}
        for name, progress, quality, cost in (
            ("cheaper", 0.5, 80.0, 0.25),
            ("dearer", 0.5, 81.0, 0.3),
            ("better than the cheapest", 0.5, 79.8, 0.24),
            ("no better than the cheapest", 0.5, 79.5, 0.24),
            ("early", 0.4, 80.0, 0.3),
        )
    }
    for name, report in reports.items():
        monitor.report(name, report)
    for name, report in reports.items():
        monitor.is_superfluous(name, report, chance=0.1)
    assert monitor.stopped == {
        "dearer": "at 50%: trial-03 is cheaper, and believed to be as good",
        "no better than the cheapest": "at 50%: trial-02 is cheaper, and believed to be as good",
    }, "of the early one nothing would be learnt"


def test_which_trials_are_believed_to_be_lossless(tmp_path: Path) -> None:
    """Quality falls by 4 points a unit of the ratio: at .22 it is 89.5."""
    points = [{RATIO: ratio} for ratio in (0.1, 0.9, 0.2, 0.5, 0.7)]
    sweep = loaded(tmp_path, **LOSSLESS, trials=12, points_to_evaluate=points, margin=0.5)
    plan, found = SweepPlan(sweep), []
    while len(found) <= len(points):
        config = plan.suggest("x")
        ratio = config["params"].get(RATIO, 0.0)
        ended = {"val_accuracy": 90.4 - 4 * max(ratio, 0.1), "train_flops": 1 - ratio, "wall_seconds": 1.0}
        plan.on_trial_complete("x", ended | {"progress": 1.0, "passes_saved": 0.0, "final": True})
        if config["role"] == "trial":
            found.append(dict(plan.monitor.lossless))
    assert found[:3] == [{}] * 3, "too few say nothing"
    assert {name: cost for name, (cost, _) in found[4].items()} == {"trial-01": 0.9, "trial-03": 0.8}
    assert all(quality == pytest.approx(90, abs=0.5) for _, quality in found[4].values())
    plain = SweepPlan(
        loaded(tmp_path, **LOSSLESS, trials=12, scheduler={"method": "none"}), records(plan, [])
    )
    assert plain.monitor.lossless == {}


def test_the_doubt_of_a_forecast_holds_the_noise_of_a_run_already(tmp_path: Path) -> None:
    """One as doubtful as a run is noisy tells as much as that run would have."""
    bound = Bound(Level(90.0, 4), margin=0.5)

    def deviation(doubt: float) -> float:
        study = optuna.create_study()
        space = {"x": optuna.distributions.FloatDistribution(0, 1)}
        for x in (0.1, 0.4, 0.8):
            attributes = {"quality": 90 - x, "cost": 1 - x, "doubt": doubt}
            study.add_trial(
                optuna.create_trial(params={"x": x}, distributions=space, value=0, user_attrs=attributes)
            )
        return float(Beliefs(space, study.trials, bound).quality.predict(np.array([[0.4]]))[1][0])

    assert deviation(0.0) == deviation(bound.noise) < 0.9 * deviation(4 * bound.noise)


def test_ranks_go_by_the_cost_at_equal_quality() -> None:
    """At half the way the baseline had 80; within the margin of it the cheaper is better, below it the better."""
    seen = {"cheap": (79.6, 0.2), "dear": (82.0, 0.4), "poor": (79.4, 0.1), "poorer": (79.0, 0.05)}
    monitor = watched()
    ranks = {
        name: monitor.rank({"progress": 0.5, "val_accuracy": quality, "train_flops": flops})
        for name, (quality, flops) in seen.items()
    }
    assert sorted(ranks, key=lambda name: -ranks[name]) == list(seen)


def test_what_a_stopped_trial_was_heading_for_is_learnt(tmp_path: Path) -> None:
    search = Search(loaded(tmp_path, **LOSSLESS), level=Level(90.0, 2))
    monitor = watched()
    monitor.report("lost", {"progress": 0.5, "val_accuracy": 79.0})
    last = {"progress": 0.5, "val_accuracy": 79.0, "train_flops": 0.3}
    search.tell(search.suggest(), Ending("stopped", last, monitor.forecast("lost")))
    told = search.study.trials[0].user_attrs
    assert told["quality"] == pytest.approx(89.01, abs=0.01) and told["cost"] == 0.6 and told["doubt"] > 0


def test_limits() -> None:
    clock = iter([0.0, 3599.0, 3601.0]).__next__
    timed = Limits(BudgetSettings(hours=1), gpus=1, clock=clock)
    assert timed.reached() is None and timed.reached() == "budget.hours: 1 are over"
    spent = Limits(BudgetSettings(gpu_hours=2), gpus=4)
    spent.ran(1700)
    assert spent.reached() is None
    spent.ran(200)
    assert spent.reached() == "budget.gpu_hours: 2 are spent"
    still = Limits(BudgetSettings(patience=2), gpus=1)
    for best in ("", "a", "a", "b", "b"):
        still.best_is(best)
        assert still.reached() is None and still.settled() is None
    still.best_is("b")
    assert still.settled() == "budget.patience: b is the best since 2 trials"
    cheaper = Limits(BudgetSettings(patience=2), gpus=1)
    for best, cost in (("a", 0.9), ("b", 0.89), ("c", 0.8), ("b", 0.89)):
        cheaper.best_is(best, cost)
        assert cheaper.settled() is None
    cheaper.best_is("d", 0.79)
    assert cheaper.settled() == "budget.patience: c is the best since 2 trials", "1 % is no other setting"
    early = Limits(BudgetSettings(patience=1), gpus=1, parameters=2)
    for told in range(1, 21):
        early.best_is("a", 0.5)
        assert (early.settled(trials=100) is not None) == (told >= 20), "ten for each parameter"
        assert (early.settled(trials=24) is not None) == (told >= 12), "or half of all"


def test_a_search_ends_early_and_its_winner_is_confirmed(tmp_path: Path) -> None:
    said: list[str] = []
    plan = SweepPlan(loaded(tmp_path, trials=30, budget={"patience": 5}), say=said.append)
    names = []
    while isinstance(config := plan.suggest("x"), dict):
        names.append(config["run_name"])
        plan.on_trial_complete("x", metrics(names[-1]))
    assert [name for name in names if name.startswith("trial") and "seed" not in name][-1] == "trial-10"
    assert said[0] == "the search ends after 10 trials: budget.patience: trial-02 is the best since 8 trials"
    assert "trial-02-seed2" in names and plan.done


def test_a_failed_run_runs_once_more_and_what_is_sure_to_fail_does_not(tmp_path: Path) -> None:
    plan = SweepPlan(loaded(tmp_path))
    plan.on_trial_complete("a", metrics(plan.suggest("a")["run_name"]))
    first = plan.suggest("b")
    plan.on_trial_complete("b", {"error": "a port in use", "again": True})
    again = plan.suggest("c")
    assert (again["run_name"], again["params"]) == (
        first["run_name"],
        first["params"],
    ) and plan._search.told == 0
    plan.on_trial_complete("c", {"error": "a port in use", "again": True})
    assert plan._search.told == 1 and plan.suggest("d")["run_name"] == "trial-02"
    plan.on_trial_complete("d", {"error": "CUDA out of memory", "again": False})
    assert [bool(trial.constraints) for trial in plan._search.study.trials] == [True, True]


def final(name: str, params: Mapping[str, Any], lossy: float) -> dict[str, Any]:
    """Settings lose little on the validation split; above a ratio they lose 5 points on the test split."""
    seed = int(name.rpartition("seed")[2]) % 3 if "seed" in name else 0
    good = 98.0 - (5.0 if params.get(RATIO, 0.0) > lossy else 0.0)
    val_accuracy = 98.0 - 0.6 * params.get(RATIO, 0.0)
    known = {**metrics(name), "val_accuracy": val_accuracy, "accuracy": good + 0.1 * seed}
    return known | {"train_flops": 1 - params.get(RATIO, 0.0) / 2}


def test_each_proven_setting_is_followed_by_a_cheaper_one(tmp_path: Path) -> None:
    """Over the seeds that the baseline has already, each at the whole error; here and when it is resumed."""
    points = [{RATIO: ratio} for ratio in (0.8, 0.7, 0.3, 0.2)]
    confirm = {"winners": 2, "step_downs": 2, "max_seeds": 5}
    sweep = loaded(tmp_path, **LOSSLESS, points_to_evaluate=points, confirm=confirm, controls={})
    said: list[str] = []

    def go(plan: SweepPlan) -> list[str]:
        names = []
        while isinstance(config := plan.suggest("x"), dict):
            names.append(config["run_name"])
            plan.on_trial_complete("x", final(names[-1], config["params"], lossy=0.6))
        return names

    plan = SweepPlan(sweep, say=said.append)
    names = go(plan)
    assert plan.confirmation is not None and len(set(names)) == len(names)
    statuses = [look.status for look in plan.confirmation.looks.values()]
    assert len(statuses) >= 2 and set(statuses[:-1]) == {"lossless"} and statuses[-1] == "lossy"
    costs = [plan.finished[name].metrics.costs.train_flops or 0.0 for name in plan.confirmation.looks]
    assert costs == sorted(costs, reverse=True), "from safe to bold"
    assert any(line.startswith("proven; stepping up to trial-") for line in said)
    assert plan.confirmation.plan is not None and plan.confirmation.plan.winners == 1
    for ended in (7, len(names) - 2):
        assert names[:ended] + go(SweepPlan(sweep, records(plan, names[:ended]))) == names


def test_nothing_bolder_is_confirmed_once_one_is_not_proven(tmp_path: Path) -> None:
    points = [{RATIO: ratio} for ratio in (0.8, 0.7, 0.3, 0.2)]
    sweep = loaded(tmp_path, **LOSSLESS, points_to_evaluate=points, confirm={"max_seeds": 5}, controls={})
    plan = SweepPlan(sweep)
    while isinstance(config := plan.suggest("x"), dict):
        plan.on_trial_complete("x", final(config["run_name"], config["params"], lossy=0.0))
    assert plan.confirmation is not None
    assert [look.status for look in plan.confirmation.looks.values()] == ["lossy"]


def drive(
    plan: SweepPlan, tracker: Tracker, parent: str, *, limit: int | None = None
) -> list[tuple[Any, ...]]:
    """Runs of four reports, one at a time, each written down as a sweep does it: name, settings and progress of
    each. The run over the limit is under way when the driver is killed."""
    done: list[tuple[Any, ...]] = []
    while isinstance(config := plan.suggest("x"), dict):
        name, role, params = config["run_name"], config["role"], config["params"]
        experiment = load_any_dict(config["experiment"])
        known = {"into": "s", "role": role, "parent": parent, "params": params, "folder": config["folder"]}
        log = RunLog.start(tracker, experiment, name=name, **known)
        if len(done) == limit:
            return done
        lost = 8 * max(0.0, params.get(RATIO, 0.0) - 0.45) + zlib.crc32(repr(params).encode()) % 7 / 50
        report: dict[str, Any] = {}
        for epoch in (1, 2, 3, 4):
            cost = (1 - params.get(RATIO, 0.0) / 2) * epoch / 4
            quality = 98 - lost - (4 - epoch) ** 2 * (1 + 0.01 * lost)
            report = {"epoch": epoch, "progress": epoch / 4, "val_accuracy": quality, "train_flops": cost}
            log.epoch(report)
            plan.hear("x", report)
            if role == "trial" and epoch < 4 and plan.monitor.is_superfluous(name, report, chance=0.1):
                break
        if whole := report["progress"] == 1:
            report |= {"accuracy": quality, "wall_seconds": 1.0, "passes_saved": 0.0, "final": True}
            log.finish(FinalMetrics.from_dict(report))
        else:
            log.end("stopped")
        plan.on_trial_complete("x", report)
        done.append((name, dict(params), "whole" if whole else report["progress"]))
    return done


@pytest.mark.parametrize("limit", [1, 8, 11, 14])
def test_a_resumed_search_stops_and_tries_what_an_undisturbed_one_does(limit: int, tmp_path: Path) -> None:
    """What was stopped is forecast again from the curves of its tracker; the search ends where it would have."""
    changes = {"trials": 24, "budget": {"patience": 5}}
    sweep = loaded(tmp_path, **LOSSLESS, **changes, confirm=0, seeds=[0], controls={}, margin=0.5)
    undisturbed, disturbed = (open_tracker(f"json:{tmp_path / name}") for name in ("one", "other"))
    whole = drive(SweepPlan(sweep), undisturbed, new_parent(undisturbed, sweep))
    assert {end for *_, end in whole} >= {"whole", 0.25}, "some were stopped"
    assert 14 < len(whole) < 24, "and so was the search"
    parent = new_parent(disturbed, sweep)
    before = drive(SweepPlan(sweep), disturbed, parent, limit=limit)
    past = past_runs(disturbed, "s", parent)
    again = SweepPlan(sweep, past, curves=past_curves(disturbed, past, sweep.objective))
    assert before + drive(again, disturbed, parent) == whole


def test_on_a_known_surface() -> None:
    """One sweep of the benchmark: within 5 % of the optimum, and what it proves is lossless."""
    found = benchmark.simulate(benchmark.flat, seed=0, trials=40)
    assert found.first is not None and found.first <= 40
    assert found.proven is not None and found.proven[1] <= benchmark.MARGIN
