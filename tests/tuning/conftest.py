"""A database shared by the tests of this folder: making its tables takes longer than a sweep."""

from __future__ import annotations

import pytest
from written_sweep import Written, write


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def written(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(uri, tmp_path_factory.mktemp("written"))
