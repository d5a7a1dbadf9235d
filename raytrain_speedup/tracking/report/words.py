"""How a report writes its numbers."""

from __future__ import annotations

from raytrain_speedup.tracking.leaderboard import Row

HOUR = 3600.0


def speedup_of(row: Row) -> str:
    return "no time is believed" if row.speedup is None else f"{row.speedup:.2f} x"


def points(difference: float | None) -> str:
    return "unknown" if difference is None else f"{difference:+.2f} points"


def bounds(interval: tuple[float, float] | None, form: str, confidence: str) -> str:
    if interval is None:
        return "no interval before the third seed"
    low, high = (form.format(bound) for bound in interval)
    return f"between {low} and {high} ({confidence})"


def seeds(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}"


def duration(seconds: float) -> str:
    """Of wall time, as one says it."""
    if seconds < 90:
        return f"{seconds:.2g} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 1.5 * HOUR else f"{seconds / HOUR:.1f} hours"


def verdict_class(row: Row) -> str:
    return {"lossless": "good", "lossy": "bad"}.get(row.verdict or "", "open")
