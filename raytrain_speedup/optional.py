"""Libraries that only some experiments need: imported when they are, and missed with the extra that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from raytrain_speedup.settings import UserError


def optional_library(name: str, *, key: str, extra: str) -> ModuleType:
    """A library of an extra of this package.

    Args:
        name: of the module.
        key: the setting that needs it, for the message.
        extra: which of the package's extras brings it.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{key}: {error.name or name} is not installed; expected pip install 'raytrain-speedup[{extra}]'"
        ) from None
