"""raytrain_speedup: how much faster can this model train on this data without losing accuracy?

    from raytrain_speedup import leaderboard, load_schedule, sweep, train

Each of these is imported when it is first asked for; `import raytrain_speedup` alone takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain_speedup.api import leaderboard, sweep, train
    from raytrain_speedup.engine.script_run import Run
    from raytrain_speedup.schedule import load_schedule

__version__ = "0.1.0"
__all__ = ["Run", "leaderboard", "load_schedule", "sweep", "train"]

_HOMES = dict.fromkeys(("leaderboard", "sweep", "train"), "api") | {
    "Run": "engine.script_run",
    "load_schedule": "schedule",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
