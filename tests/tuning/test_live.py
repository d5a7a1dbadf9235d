"""What a sweep shows while it runs."""

from __future__ import annotations

import io

from rich.console import Console

from raytrain_speedup.tuning.live import SweepTable


def shown(table: SweepTable) -> str:
    screen = Console(file=io.StringIO(), width=120)
    screen.print(table._table())
    return screen.file.getvalue()  # type: ignore[attr-defined]


def test_the_live_table_shows_a_run_with_its_settings() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with SweepTable(console, "search", total=5, done=1, quality="val_accuracy") as table:
        table("trial-01", "running", {}, settings="prune_ratio=0.5 r=2")
        table("trial-01", "running", {"progress": 0.5, "val_accuracy": 91.234, "train_seconds": 7.0})
        table("trial-02", "running", {}, settings="prune_ratio=0.7")
        rows = {line.split()[0]: line for line in shown(table).splitlines() if "trial" in line}
        assert "prune_ratio=0.5 r=2" in rows["trial-01"] and "prune_ratio=0.7" in rows["trial-02"]
        assert "91.23" in rows["trial-01"] and "7.0" in rows["trial-01"]
        heading = next(line for line in shown(table).splitlines() if "search" in line)
        assert "1 of 5 runs" in heading, "an earlier run of the sweep's are counted"
        table("trial-01", "finished", {"val_accuracy": 95.0, "passes_saved": 0.25})
        table("trial-02", "failed", {}, "CUDA out of memory")
        assert "trial" not in shown(table), "what has ended is a line above"
        assert "3 of 5 runs" in shown(table) and "1 failed" in shown(table)
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "prune_ratio=0.5 r=2" in drawn and "CUDA out of memory" in drawn


def test_without_a_terminal_a_line_says_how_a_run_ended() -> None:
    console = Console(file=io.StringIO(), width=120)
    with SweepTable(console, "search", total=2, quality="val_accuracy") as table:
        table("trial-01", "running", {}, settings="prune_ratio=0.5")
        table("trial-01", "running", {"val_accuracy": 50.0})
        table("trial-01", "stopped", {"val_accuracy": 50.0}, "behind the others at 25%")
    (line,) = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert line.startswith("  1/2  trial-01  ")
    assert line.endswith("  prune_ratio=0.5  50.00 %  stopped: behind the others at 25%")
