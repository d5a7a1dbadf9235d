"""How a report writes its numbers."""

from __future__ import annotations

from collections.abc import Callable

from raytrain_speedup.tracking.leaderboard import Row

HOUR = 3600.0


def speedup_of(row: Row) -> str:
    return "no time is believed" if row.speedup is None else f"{row.speedup:.2f} x"


def difference_of(row: Row) -> str:
    """Without its interval."""
    return "unknown" if row.difference is None else row.ranking.difference(row.difference, None)


def margin_of(row: Row) -> str:
    """In points, where more is better."""
    return f"{row.margin:g}" + (row.ranking.sign > 0) * f" point{'s' * (row.margin != 1)}"


def bounds(interval: tuple[float, float] | None, form: Callable[[float], str], confidence: str) -> str:
    if interval is None:
        return "no interval before the third seed"
    low, high = map(form, interval)
    return f"between {low} and {high} ({confidence})"


def seed_count(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}"


def spoken_time(seconds: float) -> str:
    """Of wall time, as one says it."""
    if seconds < 90:
        return f"{seconds:.2g} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 1.5 * HOUR else f"{seconds / HOUR:.1f} hours"


def verdict_class(row: Row) -> str:
    return {"lossless": "good", "lossy": "bad"}.get(row.verdict or "", "open")
