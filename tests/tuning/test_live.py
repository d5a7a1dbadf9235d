"""What a sweep shows while it runs."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from written_sweep import final

from raytrain_speedup.engine.final_metrics import TEXTS
from raytrain_speedup.engine.statistics.verdict import plan_for
from raytrain_speedup.metric import Metric
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.leaderboard import best, rows
from raytrain_speedup.tracking.store import Record, record_of
from raytrain_speedup.tracking.tracker import Entry
from raytrain_speedup.tuning import live, standing
from raytrain_speedup.tuning.live import SweepTable
from raytrain_speedup.tuning.standing import Standing

PLAN = json.dumps(plan_for(1.0, max_seeds=5).to_dict())


def run(name: str, role: str, seed: int, quality: float, seconds: float, state: str = "finished") -> Record:
    """A run that ended; its setting is its name without the seed."""
    setting = name.partition("-seed")[0]
    metrics = final(quality, seconds, seed, test=role != "trial") if state == "finished" else {}
    tags = {
        store.ROLE: role, store.STATE: state, store.SEED: str(seed), store.METHOD: "infobatch",
        store.SETTINGS: setting, store.GROUP: setting, store.MARGIN: "1.0", store.SPENT: "2.5",
        **({store.PLAN: PLAN} if role == "winner" else {}),
        **{f"speedup.{key}": str(metrics[key]) for key in TEXTS if key in metrics},
    }  # fmt: skip
    numbers = {key: float(value) for key, value in metrics.items() if not isinstance(value, str)}
    return record_of(Entry(name, name, "e", 0, "parent", tags, numbers))


def baselines() -> list[Record]:
    return [run(f"baseline-seed{seed}", "baseline", seed, 97 + seed / 10, 10.0) for seed in range(3)]


def shown(table: SweepTable) -> str:
    screen = Console(file=io.StringIO(), width=120)
    screen.print(table._table())
    return screen.file.getvalue()  # type: ignore[attr-defined]


def printed(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_best_so_far_is_the_leaderboards() -> None:
    """The fastest trial within the margin, whatever the order; a winner goes before it, unless it is lossy."""
    now = Standing(20, baselines())
    assert now.best is None
    for name, quality, seconds in (("b", 96.9, 6.0), ("a", 97.2, 8.0), ("c", 90.0, 2.0), ("d", 96.8, 5.0)):
        now.end(run(f"trial-{name}", "trial", 9, quality, seconds))
    assert now.best is not None and now.best.settings == "trial-d" and now.best.speedup == pytest.approx(2.0)
    lossy = [run(f"bad-seed{seed}", "winner", seed, 90 + seed / 10, 3.0) for seed in range(3)]
    for one in lossy:
        now.end(one)
    assert now.best.settings == "trial-d"
    good = [run(f"good-seed{seed}", "winner", seed, 96.9 + seed / 10, 6.0) for seed in range(3)]
    now.end(good[0])
    assert now.best.settings == "good" and now.best.verdict == "not yet known"
    for one in good[1:]:
        now.end(one)
    assert now.best == best(rows([*baselines(), *lossy, *good])), "proven, and with its intervals"


def test_what_was_spent_and_how_long_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs of an earlier sitting count to the total and to what was spent, not to the pace."""
    clock = [100.0]
    monkeypatch.setattr(standing.time, "monotonic", lambda: clock[0])
    now = Standing(9, baselines())
    assert now.left is None and now.spent == pytest.approx(3 * 11)
    clock[0] += 30
    now.end(run("trial-1", "trial", 9, 97.0, 5.0))
    now.end(run("trial-2", "trial", 9, 0.0, 0.0, "stopped"))
    now.report("trial-3", {"progress": 0.25, "train_seconds": 2.0, "setup_seconds": 1.0})
    now.report("trial-3", {"progress": 0.5, "train_seconds": 4.0, "setup_seconds": 1.0, "eval_seconds": 0.5})
    now.report("trial-4", {"progress": 0.5})
    assert now.spent == pytest.approx(33 + 6 + 2.5 + 5.5), "of those under way too"
    assert now.left == pytest.approx(30 / 3 * 3), "three runs in 30 s, and three are left"
    assert now.ended == 5 and now.states["stopped"] == 1


def test_the_live_table_shows_a_run_with_its_settings() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    now = Standing(5, baselines()[:1])
    with SweepTable(console, "search", standing=now, quality=Metric("val_accuracy")) as table:
        table("trial-01", "running", {}, settings="prune_ratio=0.5 r=2")
        table("trial-01", "running", {"progress": 0.5, "val_accuracy": 91.234, "train_seconds": 7.0})
        table("trial-02", "running", {}, settings="prune_ratio=0.7")
        lines = {line.split()[0]: line for line in shown(table).splitlines() if line.startswith("trial")}
        assert "prune_ratio=0.5 r=2" in lines["trial-01"] and "prune_ratio=0.7" in lines["trial-02"]
        assert "91.23" in lines["trial-01"] and "7.0" in lines["trial-01"]
        assert "search: 1 of 5 runs" in shown(table), "an earlier run of the sweep's are counted"
        assert "spent 0:18 of run time, at most" in shown(table) and "best so far" not in shown(table)
        now.end(run("trial-01", "trial", 9, 97.0, 5.0))
        table("trial-01", "finished", {"val_accuracy": 97.0, "passes_saved": 0.25})
        now.end(run("trial-02", "trial", 9, 0.0, 0.0, "failed"))
        table("trial-02", "failed", {}, "CUDA out of memory")
        text = shown(table)
        assert "\ntrial" not in text, "what has ended is a line above"
        assert "3 of 5 runs" in text and "1 failed" in text
        assert "best so far: infobatch trial-01: one seed of the search, validation data, +0.00" in text
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "prune_ratio=0.5 r=2" in drawn and "CUDA out of memory" in drawn


def test_without_a_terminal_lines_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: list[float] = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=120)
    now = Standing(6, baselines())

    with SweepTable(console, "search", standing=now, quality=Metric("val_accuracy")) as table:
        table("trial-01", "running", {}, settings="prune_ratio=0.5")
        table("trial-01", "running", {"val_accuracy": 50.0})
        now.end(run("trial-01", "trial", 9, 0.0, 0.0, "stopped"))
        table("trial-01", "stopped", {"val_accuracy": 50.0}, "behind the others at 25%")
        (line,) = printed(console)
        assert line.startswith("  4/6  trial-01  ")
        assert line.endswith("  prune_ratio=0.5  50.00 %  stopped: behind the others at 25%")
        now.end(run("trial-02", "trial", 9, 96.5, 5.0))
        table("trial-02", "finished", {"val_accuracy": 96.5})
        assert printed(console)[-1].startswith("best so far: infobatch trial-02: one seed of the search")
        table("trial-03", "running", {"progress": 0.25, "val_accuracy": 60.0, "train_seconds": 2.0})
        assert len(printed(console)) == 3, "nothing new to say yet"
        clock[0] += live.LOG_SECONDS
        table("trial-03", "running", {"progress": 0.5, "val_accuracy": 70.0, "train_seconds": 4.0})
        assert printed(console)[3:] == [
            "search: 5 of 6 runs in 1:00, 1 stopped; spent 0:45 of run time, at most 0:12 to go",
            "     trial-03  50%  70.00 %  4.0 s",
        ]
        table("trial-03", "waiting", {}, "its process was lost")
        assert printed(console)[-1].endswith("  70.00 %  4.0 s  waiting: its process was lost")
        table("trial-03", "running", {})
        table("trial-03", "restarted", {}, "the process of worker 1 died: ...")
        assert printed(console)[-1].endswith("  70.00 %  4.0 s  restarted: the process of worker 1 died: ...")
        clock[0] += live.LOG_SECONDS
        table("trial-02", "running", {})
        assert "trial-03" in printed(console)[-1], "it runs on"
        table("trial-03", "waiting", {}, "its process was lost")
        clock[0] += live.LOG_SECONDS
        table("trial-02", "running", {})
        assert "trial-03" not in printed(console)[-1], "until it is heard of again"


def test_a_distance_is_not_in_percent() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with SweepTable(
        console, "search", standing=Standing(1, []), quality=Metric("val_frechet_distance", "min")
    ) as table:
        table("trial-01", "running", {"val_frechet_distance": 0.04123})
        head, line = shown(table).splitlines()[-2:]
        assert "val Fréchet distance  " in head and "%" not in head and "0.04123" in line
        table("trial-01", "finished", {"val_frechet_distance": 0.04123})
        assert "0.04123" in console.file.getvalue() and "0.04123 %" not in console.file.getvalue()
