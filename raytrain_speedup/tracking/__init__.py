"""What is written down of a run, and what is made of it: leaderboard, plot, schedule.

Everything goes through a `Tracker` (`tracker.py`). A new one is a file beside `json_tracker.py` and a line below;
`mlflow*.py` are the only files that know MLflow.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from raytrain_speedup.tracking.tracker import Tracker

TRACKERS = {
    "json": "raytrain_speedup.tracking.json_tracker:JsonTracker",
}
"""By the scheme of a tracking URI; what is not named here is MLflow's business (sqlite, http, databricks, ...)."""

MLFLOW = "raytrain_speedup.tracking.mlflow_tracker:MlflowTracker"


def open_tracker(uri: str | None = None) -> Tracker:
    """The tracker of a URI; a database or folder is made if need be.

    Args:
        uri: `json:FOLDER`, `sqlite:///FILE`, `http://HOST:5000` or another that MLflow knows; by default
            MLFLOW_TRACKING_URI, else `mlflow.db` in the current directory, as `mlflow ui` started there has it.

    Raises:
        UserError: if nothing answers there.
    """
    given = uri_or_default(uri)
    module, _, name = TRACKERS.get(given.partition(":")[0], MLFLOW).partition(":")
    tracker: Tracker = getattr(import_module(module), name)(given)
    return tracker


def uri_or_default(uri: str | None = None) -> str:
    """The tracking URI: the one given, else MLFLOW_TRACKING_URI, else ./mlflow.db."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
