"""From a run in MLflow to the schedule file and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from raytrain_speedup.engine.statistics.verdict import Plan, plan_for
from raytrain_speedup.schedule import load_schedule
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.export import ALIAS, export, find, free_name
from raytrain_speedup.tracking.tracker import SCHEDULE_FILE, NotTracked, Tracker

KEYS = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.4}


def test_a_winner_with_its_evidence(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed)
        run = write("winner", seed, keys=KEYS, accuracy=97.0 + seed, train_seconds=5.0, passes_saved=0.4)
    exported = export(run[:10], tmp_path / "s.yaml", tracker.uri)
    schedule = load_schedule(tmp_path / "s.yaml")
    assert schedule == exported
    assert schedule.tuned_on.run_id == run and schedule.tuned_on.data["source"] == "digits"
    evidence = schedule.evidence
    assert evidence is not None and evidence.seeds == (0, 1, 2)
    assert evidence.speedup == pytest.approx(2.0) and evidence.verdict == "lossless"
    published = tracker.version(f"{experiment_name}-schedule", f"@{ALIAS}")
    assert published.run_id == run and tracker.read_text(run, SCHEDULE_FILE) == schedule.to_yaml()


def test_the_evidence_of_a_trial_is_that_of_its_settings(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0)
        write("winner", seed, keys=KEYS, accuracy=96.9, train_seconds=5.0)
    trial = write("trial", 3, keys=KEYS, val_accuracy=99.0, train_seconds=1.0)
    evidence = export(trial, tmp_path / "s.yaml", tracker.uri).evidence
    assert evidence is not None and evidence.seeds == (0, 1, 2) and evidence.accuracy == pytest.approx(96.9)


def test_the_evidence_names_its_metric(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    write("baseline", 0, metric="miou", miou=60.0)
    run = write("winner", 0, keys=KEYS, metric="miou", miou=61.0)
    evidence = export(run, tmp_path / "s.yaml", tracker.uri, unproven=True).evidence
    assert evidence is not None and evidence.metric == "miou"
    assert evidence.accuracy == 61.0 and evidence.baseline_accuracy == 60.0
    assert load_schedule(tmp_path / "s.yaml").evidence == evidence


def test_a_run_without_a_baseline_has_no_evidence(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    run = write("run", 0, keys=KEYS, accuracy=97.0)
    assert export(run, tmp_path / "s.yaml", tracker.uri, unproven=True).evidence is None


def test_what_is_not_proven_is_exported_only_when_asked(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    """And then its first line says so, and it gets no alias that production asks for."""
    write("baseline", 0, accuracy=97.0)
    run = write("winner", 0, keys=KEYS, accuracy=96.0, train_seconds=5.0)
    out = tmp_path / "s.yaml"
    with pytest.raises(
        UserError, match=r"not proven \(2.00 x as fast, -1.00 points over 1 seed: not yet known\)"
    ):
        export(run, out, tracker.uri)
    assert not out.exists()
    schedule = export(run, out, tracker.uri, unproven=True)
    assert not schedule.proven
    assert out.read_text().startswith("# Not proven lossless: 2.00 x as fast, -1.00 points over 1 seed")
    with pytest.raises(NotTracked, match="no version '@proven'"):
        tracker.version(f"{experiment_name}-schedule", f"@{ALIAS}")


def test_a_file_is_not_overwritten_without_a_word(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed)
        run = write("winner", seed, keys=KEYS, accuracy=97.0 + seed, train_seconds=5.0)
    out = tmp_path / "s.yaml"
    export(run, out, tracker.uri)
    export(run, out, tracker.uri)  # the same again
    out.write_text("somebody's own\n")
    with pytest.raises(
        UserError, match=r"s.yaml: is there already; expected another name \(s-2.yaml\) or --force"
    ):
        export(run, out, tracker.uri)
    assert out.read_text() == "somebody's own\n"
    export(run, out, tracker.uri, force=True)
    assert load_schedule(out).proven


def test_the_evidence_says_how_it_was_found(
    tracker: Tracker, experiment_name: str, write: Callable[..., str], tmp_path: Path
) -> None:
    plan = plan_for(0.5, max_seeds=6, pairing="paired")
    for seed in range(4):
        write("baseline", seed, accuracy=97.0 + seed, train_seconds=10.0 + seed / 10)
        cost = {"train_seconds": 5.0, "reference_steps": 4.0, "train_flops": 6e8, "core_fraction": 0.5}
        run = write("winner", seed, keys=KEYS, plan=plan, accuracy=97.1 + seed, **cost)
    export(run, tmp_path / "s.yaml", tracker.uri)
    found = load_schedule(tmp_path / "s.yaml").evidence
    assert found is not None and found.plan is not None
    assert Plan.from_dict(found.plan) == plan and found.looks == 2
    assert found.speedup_clock == "reference steps" and found.disturbed == "as little as 50% of a core"
    ratios = found.speedup, found.wall_speedup, found.flops_ratio
    assert ratios == pytest.approx([10.15 / cost for cost in (4, 5, 6)], rel=1e-3)
    assert found.speedup_interval is not None and found.speedup_interval[0] < 2.54 < found.speedup_interval[1]
    assert found.interval is not None and found.interval[0] <= found.difference <= found.interval[1] < 1
    assert (found.accuracy, found.baseline_accuracy) == pytest.approx((98.6, 98.5))


def test_a_free_name_is_one_that_no_file_has(tmp_path: Path) -> None:
    for name in ("s.yaml", "s-2.yaml", "s-3.yaml"):
        assert free_name(tmp_path / "s.yaml").name == name
        (tmp_path / name).touch()


def test_an_unknown_run_names_recent_ones(tracker: Tracker, write: Callable[..., str]) -> None:
    run = write("run", 0, accuracy=97.0)
    with pytest.raises(UserError, match=f"no such run .*expected one of:\n  {run[:8]}"):
        find(tracker, "zzz")
    with pytest.raises(UserError, match=r"several runs|no such run"):
        find(tracker, "")
    assert find(tracker, run).run_id == run
