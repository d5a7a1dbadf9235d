"""What the libraries below read from the environment, set before they are imported."""

from __future__ import annotations

import os


def set_environment() -> None:
    """What MLflow and Ray read when they are imported; anything the user has set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    if "RAY_ADDRESS" not in os.environ:  # a cluster of one's own asks for a token; another says what it does
        os.environ.setdefault("RAY_AUTH_MODE", "token")
