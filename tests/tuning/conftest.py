"""A database shared by the tests of this folder: making its tables takes longer than a sweep."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
