"""What the libraries below read from the environment, set before they are imported."""

from __future__ import annotations

import os
import sys


def set_environment() -> None:
    """What MLflow and Ray read when they are imported; anything the user has set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # A cluster of one's own asks for a token; another says what it does. Ray reads this when it is imported: set
    # later, the processes that it starts would ask this one for a token that it does not send.
    if "RAY_ADDRESS" not in os.environ and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
