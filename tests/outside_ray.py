"""What a process is started with that is to know nothing of this session's Ray."""

from __future__ import annotations

import os


def plain_environment() -> dict[str, str]:
    """Of this process, without what Ray and this package have set for it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
