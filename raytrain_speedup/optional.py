"""Libraries that only some experiments need: imported when they are, and missed with the extra that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from raytrain_speedup.settings import UserError


def optional_library(name: str, *, key: str, extra: str | None) -> ModuleType:
    """A library that not every installation has.

    Args:
        name: of the module.
        key: the setting that needs it, for the message.
        extra: which of the package's extras brings it; None where it is installed by its own name.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        wanted = missing.replace("_", "-") if extra is None else f"'raytrain-speedup[{extra}]'"
        raise UserError(f"{key}: {missing} is not installed; expected pip install {wanted}") from None
