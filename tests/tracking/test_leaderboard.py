"""Rows from runs: what is one row, what it is compared with, and what is never a speedup."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from rich.console import Console

from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.statistics.verdict import fixed_look, plan_for, settle
from raytrain_speedup.metric import Metric
from raytrain_speedup.settings import RunFailed, UserError
from raytrain_speedup.tracking import open_tracker, store, uri_or_default
from raytrain_speedup.tracking.leaderboard import Row, best, fastest_control, leaderboard, rows, safest
from raytrain_speedup.tracking.mlflow_database import absolute_uri
from raytrain_speedup.tracking.run_log import RunLog, log_run
from raytrain_speedup.tracking.store import STATE, short_ids
from raytrain_speedup.tracking.table import show
from raytrain_speedup.tracking.tracker import Tracker

INFOBATCH = {"pruning.method": "infobatch", "pruning.prune_ratio": 0.4}
RANDOM = {"pruning.method": "random", "pruning.prune_ratio": 0.3}


def rows_of(tracker: Tracker, name: str) -> list[Row]:
    return leaderboard(name, tracker.uri)


def test_seeds_are_one_row_and_the_lucky_trial_is_no_evidence(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed)
        write("winner", seed, keys=INFOBATCH, accuracy=96.9 + seed, train_seconds=5.0, passes_saved=0.4)
        write("random", seed, keys=RANDOM, accuracy=90.0 + seed, train_seconds=4.0)
    lucky = write("trial", 3, keys=INFOBATCH, val_accuracy=100.0, train_seconds=5.0)
    baseline, winner, control = rows_of(tracker, experiment_name)
    assert (baseline.label, winner.label, control.label) == ("baseline", "infobatch", "random")
    assert lucky not in winner.run_ids and winner.seeds == (0, 1, 2)
    assert winner.verdict == "lossless" and control.verdict == "lossy"
    assert winner.speedup == pytest.approx(2.0) and baseline.speedup == 1.0
    assert winner.difference == pytest.approx(-0.1) and winner.settings == "prune_ratio=0.4"
    assert best([baseline, winner, control]) is winner, "a control is no schedule, however fast"
    assert best([baseline, control]) is None and safest([baseline, control]) is None


def test_the_fastest_control_that_is_lossless(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed)
        write("winner", seed, keys=INFOBATCH, accuracy=96.9 + seed, train_seconds=2.0)
        write("slower", seed, keys=RANDOM, accuracy=96.9 + seed, train_seconds=6.0)
        write(
            "faster",
            seed,
            keys=RANDOM | {"pruning.prune_ratio": 0.6},
            accuracy=96.9 + seed,
            train_seconds=5.0,
        )
        write(
            "lossy", seed, keys=RANDOM | {"pruning.prune_ratio": 0.7}, accuracy=80.0 + seed, train_seconds=3.0
        )
    found = rows_of(tracker, experiment_name)
    control = fastest_control(found)
    assert control is not None and control.label == "faster" and control.verdict == "lossless"
    assert fastest_control([row for row in found if row.role in ("baseline", "winner", "lossy")]) is None


def test_what_is_lossy_or_unknown_is_never_crowned(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    """A sweep whose only winner lost 2.23 points exported it once."""
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed)
        write("winner", seed, keys=INFOBATCH, accuracy=94.77 + seed, train_seconds=5.0)
        more = INFOBATCH | {"pruning.prune_ratio": 0.6}
        write("winner", seed, keys=more, accuracy=96.8 + seed * (seed - 1), train_seconds=5.0)
    rows = rows_of(tracker, experiment_name)
    assert {row.settings: row.verdict for row in rows[1:]} == {
        "prune_ratio=0.6": "not yet known",
        "prune_ratio=0.4": "lossy",
    }
    assert best(rows) is None
    least = safest(rows)
    assert least is not None and least.interval is not None
    assert least.interval[0] == max(row.interval[0] for row in rows if row.interval)


def test_the_fastest_proven_setting_is_crowned(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    """Not a faster control, which is as good, nor a trial that was lucky."""
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed, val_accuracy=90.0)
        write("random", seed, keys=RANDOM, accuracy=97.0 + seed, train_seconds=2.0)
        for ratio, seconds in ((0.4, 5.0), (0.6, 4.0)):
            keys = INFOBATCH | {"pruning.prune_ratio": ratio}
            write("winner", seed, keys=keys, accuracy=96.6 + ratio + seed, train_seconds=seconds)
    write("trial", 3, keys=INFOBATCH | {"pruning.prune_ratio": 0.9}, val_accuracy=99.0, train_seconds=1.0)
    rows = rows_of(tracker, experiment_name)
    crowned, least = best(rows), safest(rows)
    assert crowned is not None and crowned.settings == "prune_ratio=0.6"
    assert least is not None and least.settings == "prune_ratio=0.6"


def test_the_margin_and_the_baseline_are_those_of_the_sweep(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    for parent, level, margin in (("one", 97.0, 1.0), ("two", 95.0, 0.5)):
        for seed in range(3):
            more = {"parent": parent, "margin": margin}
            write("baseline", seed, accuracy=level + seed, **more)
            write("winner", seed, keys=INFOBATCH, accuracy=96.2 + seed + 0.05 * (seed == 1), **more)
    found = {row.sweep: row for row in rows_of(tracker, experiment_name) if row.role == "winner"}
    assert found["one"].difference == pytest.approx(-0.8, abs=0.02) and found["one"].verdict == "lossless"
    assert found["two"].difference == pytest.approx(1.2, abs=0.02) and found["one"].margin == 1.0


def test_a_trial_is_shown_on_the_validation_split_and_has_no_verdict(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0, val_accuracy=90.0)
        write("trial", seed + 9, keys=INFOBATCH, val_accuracy=89.0, train_seconds=5.0)
    baseline, trial = rows_of(tracker, experiment_name)
    assert (trial.split, trial.accuracy, trial.difference) == ("validation", 89.0, -1.0)
    assert trial.verdict is None and baseline.split == "test"
    assert best([baseline, trial]) is None
    screen = Console(file=io.StringIO(), width=160)
    show([baseline, trial], screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "grey: one seed of the search, on validation data" in text


def test_the_winners_of_a_sweep_are_judged_together_by_their_plan(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    """Two winners share the error: their bounds are wider than those of three seeds looked at once."""
    plan = plan_for(0.5, max_seeds=6, winners=2, pairing="paired")
    methods: dict[str, dict[int, float]] = {"0.4": {}, "0.6": {}}
    level = {}
    for seed in range(3):
        level[seed] = 97.0 + seed + 0.05 * (seed == 1)
        write("baseline", seed, accuracy=level[seed])
        for number, (ratio, values) in enumerate(methods.items()):
            values[seed] = 97.0 + seed - 0.1 * number * seed
            keys = INFOBATCH | {"pruning.prune_ratio": float(ratio)}
            write("winner", seed, keys=keys, plan=plan, accuracy=values[seed], train_seconds=5.0)
    expected = settle(plan, methods, level)
    for row in rows_of(tracker, experiment_name)[1:]:
        look = expected[row.settings.removeprefix("prune_ratio=")]
        assert row.interval == pytest.approx(look.interval) and row.verdict == look.verdict
        assert row.looks == 1 and row.plan == plan
        alone = fixed_look(methods[row.settings.removeprefix("prune_ratio=")], level, 0.5)
        assert alone.interval is not None and row.interval is not None
        assert row.interval[0] < alone.interval[0]


def test_equal_losses_of_a_confirmation_are_no_certainty(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    """Every seed lost one of 359 test images; nothing else is known of the spread."""
    plan = plan_for(0.5, max_seeds=6, pairing="paired")
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed, test_samples=359)
        more = {"plan": plan, "test_samples": 359}
        write("winner", seed, keys=INFOBATCH, accuracy=97.0 + seed - 100 / 359, **more)
    row = rows_of(tracker, experiment_name)[1]
    ours = {seed: 97.0 + seed - 100 / 359 for seed in range(3)}
    look = plan.look(ours, {seed: 97.0 + seed for seed in range(3)}, grain=100 / 359)
    assert row.interval == pytest.approx(look.interval) and row.verdict == "not yet known"


def test_an_extended_plan_is_that_of_all_seeds(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    short = plan_for(0.5, max_seeds=3, pairing="paired")
    longer = short.extended(5)
    for seed in range(5):
        write("baseline", seed, accuracy=97.0 + seed)
        plan = short if seed < 3 else longer
        write("winner", seed, keys=INFOBATCH, plan=plan, accuracy=97.0 + seed + 0.1 * (seed % 2))
    row = rows_of(tracker, experiment_name)[1]
    assert row.plan == longer and row.looks == 3


def test_a_disturbed_row_says_so_and_a_hopeless_time_is_not_told(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    write("baseline", 0, accuracy=97.0)
    write("run", 0, keys=INFOBATCH, accuracy=97.0, train_seconds=20.0, reference_steps=7.0, core_fraction=0.4)
    write("run", 0, keys=RANDOM, accuracy=97.0, train_seconds=8.0, reference_spread=4.0, train_flops=7e8)
    screen = Console(file=io.StringIO(), width=160)
    rows = rows_of(tracker, experiment_name)
    show(rows, screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "1.43 x ~" in text and "disturbed (as little as 40% of a core) but 0.50 x by wall seconds" in text
    assert "no time ~" in text and "1/1.43" in text
    assert [row.speedup for row in rows if row.method == "random"] == [None]


def test_run_ids_are_as_long_as_they_have_to_be() -> None:
    """Two that begin alike to their ninth character are told apart, and each is found by what is shown."""
    alike = ["aaaaaaaab1", "aaaaaaaac1", "b" * 10, "aaaaaaaac1"]
    assert short_ids(alike) == {"aaaaaaaab1": "aaaaaaaab", "aaaaaaaac1": "aaaaaaaac", "b" * 10: "b" * 8}
    shown = {"experiment": "x", "sweep": None, "role": "run", "method": "infobatch", "settings": ""}
    ended = {"state": "finished", "seeds": (0,)}
    rows = [Row(run_id=run_id, run_ids=(run_id,), **shown, **ended) for run_id in alike[:3]]  # type: ignore[arg-type]
    for width in (80, 140):
        screen = Console(file=io.StringIO(), width=width)
        show(rows, screen)
        text = screen.file.getvalue()  # type: ignore[attr-defined]
        assert all(f"{short} " in text for short in ("aaaaaaaab", "aaaaaaaac", "bbbbbbbb"))


def test_without_a_baseline_there_is_no_speedup(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    write("run", 0, keys=INFOBATCH, accuracy=97.0)
    (row,) = rows_of(tracker, experiment_name)
    assert row.speedup is None and row.verdict is None and row.note == "no baseline run"


@pytest.mark.parametrize("key", ["baseline_key", "train_key", "hardware"])
def test_another_problem_training_or_machine_is_no_baseline(
    key: str, tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    write("baseline", 0, accuracy=97.0)
    write("run", 0, keys=INFOBATCH, accuracy=97.0, **{key: "another"})
    row = next(row for row in rows_of(tracker, experiment_name) if row.method == "infobatch")
    assert row.speedup is None and row.note == "no baseline run"


def test_runs_that_did_not_end_are_shown_with_their_reason(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    write("baseline", 0, accuracy=97.0)
    for state, reason in (("failed", "NaN in step 3"), ("stopped", "behind"), ("interrupted", "")):
        RunLog.start(tracker, load_experiment("digits", INFOBATCH), name=state, into=experiment_name).end(
            state, reason
        )
    first, *others = rows_of(tracker, experiment_name)
    assert first.role == "baseline"
    assert {row.note for row in others} == {"NaN in step 3", "behind", "interrupted"}
    assert all(row.speedup is None and row.accuracy is None for row in others)
    screen = Console(file=io.StringIO(), width=80)
    show([first, *others], screen)
    lines = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    failed = next(row for row in others if row.state == "failed")
    assert f"{failed.run_id[:8]} failed: NaN in step 3" in lines, "whole, below the table"
    assert sum("interrupted" in line for line in lines) == 1


@pytest.mark.parametrize("width", [80, 140])
def test_the_table_shows_every_row_whole(
    width: int, tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    run = write("baseline", 0, accuracy=97.123)
    write("winner", 0, keys=INFOBATCH, accuracy=97.0, train_seconds=4.0)
    screen = Console(file=io.StringIO(), width=width)
    show(rows_of(tracker, experiment_name), screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert run[:8] in text and "97.12" in text and "2.50 x" in text and "prune_ratio=0.4" in text
    assert max(map(len, text.splitlines())) <= width


def test_the_metric_is_the_tasks_own(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    for seed in range(3):
        write("baseline", seed, metric="miou", miou=60.0 + seed, pixel_accuracy=90.0)
        write("winner", seed, keys=INFOBATCH, metric="miou", miou=59.9 + seed, pixel_accuracy=10.0)
    rows = rows_of(tracker, experiment_name)
    assert [(row.metric, row.accuracy) for row in rows] == [("miou", 61.0), ("miou", pytest.approx(60.9))]
    assert rows[1].verdict == "lossless" and rows[1].difference == pytest.approx(-0.1)
    screen = Console(file=io.StringIO(), width=140)
    show(rows, screen)
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "speedup against mIoU" in text and "mIoU %" in text and "accuracy" not in text


def test_rows_are_plain_data(tracker: Tracker, experiment_name: str, write: Callable[..., str]) -> None:
    write("baseline", 0, accuracy=97.0)
    (row,) = json.loads(json.dumps([row.to_dict() for row in rows_of(tracker, experiment_name)]))
    assert {
        "method",
        "settings",
        "seeds",
        "accuracy",
        "interval",
        "verdict",
        "run_id",
    } <= row.keys()


def test_the_intervals_of_both_halves_are_everywhere(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed, train_seconds=10.0 + seed / 10)
        write("winner", seed, keys=INFOBATCH, accuracy=97.0 + seed, train_seconds=5.0 - seed / 10)
    _, row = rows_of(tracker, experiment_name)
    assert row.speedup_interval is not None
    low, high = row.speedup_interval
    assert 1.9 < low < row.speedup < high < 2.3  # type: ignore[operator]
    plain = json.loads(json.dumps(row.to_dict()))
    assert plain["speedup_interval"] == pytest.approx([low, high])
    assert plain["interval"] == pytest.approx(row.interval)
    assert plain["speedup_clock"] == "reference steps" and plain["verdict"] == "lossless"
    for width in (80, 160):
        screen = Console(file=io.StringIO(), width=width)
        show([row], screen)
        text = screen.file.getvalue().replace(", ", ",")  # type: ignore[attr-defined]
        assert f"[{low:.2f},{high:.2f}]" in text


def test_an_unknown_experiment_names_those_there_are(tracker: Tracker, write: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"'nothing': no such experiment at .*; expected one of: .*test_"):
        leaderboard("nothing", tracker.uri)


def test_log_run_ends_as_the_run_ended(tracker: Tracker, experiment_name: str) -> None:
    experiment = load_experiment("digits", {"tracking.experiment": experiment_name, "pruning.method": "none"})
    with log_run(experiment, tracking_uri=tracker.uri) as log:
        for epoch in (1, 2, 2, 1, 3):  # 2 and 1 are replayed after a fault
            log("report", {"epoch": epoch, "train_loss": 1 / epoch, "progress": epoch / 3})
        log("progress", {"epoch": 9})
        log("report", {"epoch": 3, "accuracy": 97.0, "baseline_key": "k", "hardware": "h", "final": True})
    assert [step for step, _ in tracker.curve(log.run_id, "epoch/train_loss")] == [1, 2, 3]
    client = MlflowClient(tracker.uri)
    run = tracker.run(log.run_id)
    assert client.get_run(log.run_id).info.status == "FINISHED" and run.metrics["accuracy"] == 97.0
    assert run.tags["speedup.role"] == "baseline" and run.tags["speedup.hardware"] == "h"
    for error, status, state in (
        (ValueError("broken"), "FAILED", "failed"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
        (Stopped("stopped in epoch 2"), "KILLED", "interrupted"),
        (RunFailed("the loss is not finite"), "FAILED", "failed"),
    ):
        with pytest.raises(type(error)), log_run(experiment, tracking_uri=tracker.uri) as log:
            raise error
        run = client.get_run(log.run_id)
        assert (run.info.status, run.data.tags[STATE]) == (status, state)


def test_a_mistake_before_the_first_epoch_is_no_run(tracker: Tracker, experiment_name: str) -> None:
    experiment = load_experiment("digits", {"tracking.experiment": experiment_name})
    told = {"epoch": 1, "train_loss": 1.0, "progress": 0.5}
    for epochs, left in ((0, 0), (1, 1)):
        with pytest.raises(UserError), log_run(experiment, tracking_uri=tracker.uri) as log:
            for _ in range(epochs):
                log("report", told)
            raise UserError("data.train: no such file")
        assert len(rows_of(tracker, experiment_name)) == left


def test_where_runs_go(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, because Ray's workers stand elsewhere; the option, then the variable, then the folder."""
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert uri_or_default() == f"sqlite:///{folder}/mlflow.db"
    assert absolute_uri(uri_or_default("sqlite:///runs.db")) == f"sqlite:///{folder}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert absolute_uri(uri_or_default()) == "http://server:5000"
    assert absolute_uri(uri_or_default("sqlite:////elsewhere/x.db")) == "sqlite:////elsewhere/x.db"
    assert open_tracker("json:runs").uri == f"json:{folder}/runs"


def test_a_server_that_does_not_answer() -> None:
    with pytest.raises(UserError, match=r"tracking uri 'nonsense://here' does not answer"):
        open_tracker("nonsense://here")
    before = time.monotonic()
    with pytest.raises(UserError, match=r"'http://127.0.0.1:9' does not answer .*http://host:5000"):
        open_tracker("http://127.0.0.1:9")
    assert time.monotonic() - before < 60


def test_runs_that_an_earlier_version_recorded_are_read() -> None:
    """Two runs of November 2026, whose metric has no direction and whose end no field of its own: lines of the json
    tracker as it wrote them, but for the epochs and the settings."""
    baseline, row = leaderboard("old", f"json:{Path(__file__).parent / 'recorded_before'}")
    assert (baseline.role, row.method, row.seeds) == ("baseline", "infobatch", (0,))
    assert baseline.ranking == row.ranking == Metric("accuracy", "max")
    assert baseline.accuracy == row.accuracy == 38.99721448467967 and row.split == "test"
    assert row.comparison is not None and row.comparison.speedup.clock == "reference steps"
    assert row.speedup == pytest.approx(22.186600635127906 / 20.190977189669137)
    assert row.verdict == "not yet known" and row.hardware == "1 x AMD EPYC, 1 threads, fp32"


def test_the_leaderboard_reads_what_it_compares_by(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    """A third of the metrics is enough, and every number of every row is the same."""
    many = {f"metric_{number}": float(number) for number in range(5)}
    cost = {
        "core_fraction": 0.5,
        "switches_per_second": 900.0,
        "reference_spread": 1.4,
        "other_processes": 2.0,
    }
    budget = {"epochs": 10, "workers_min": 1, "workers_max": 1, "wall_seconds": 12.0, "train_flops": 1e9}
    sizes = {"test_samples": 359, "val_samples": 100, "metric": "miou"}
    for seed in range(3):
        more = many | cost | budget | sizes
        write("baseline", seed, miou=97.0 + seed / 9, **more)
        write("winner", seed, keys=INFOBATCH, miou=96.9 + seed / 7, train_seconds=5.0 + seed, **more)
    write("trial", 9, keys=RANDOM, val_miou=90.0, **many, **cost, **budget, **sizes)
    whole = store.records(tracker, experiment_name)
    assert [row.to_dict() for row in rows_of(tracker, experiment_name)] == [
        row.to_dict() for row in rows(whole)
    ]
    assert whole[0].final.metrics["metric_3"] == 3.0
    few = tracker.runs(experiment_name, tag=store.GROUP, wanted=("progress", "wall_seconds"))
    assert {frozenset(entry.metrics) for entry in few} == {
        frozenset({"progress", "wall_seconds", "miou"}),
        frozenset({"progress", "wall_seconds", "val_miou"}),
    }
