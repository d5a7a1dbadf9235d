"""What several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# A busy machine is no failure, and a test that fails here fails everywhere.
hypothesis.settings.register_profile("speedup", deadline=None, derandomize=True)
hypothesis.settings.load_profile("speedup")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository, or the one that SPEEDUP_DATA names."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SPEEDUP_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the real data sets in {folder} (or where SPEEDUP_DATA says)")
    return folder
