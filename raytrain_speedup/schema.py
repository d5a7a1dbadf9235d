"""JSON schemas of the files that a user writes, for editors: completion, meanings, and mistakes while typing.

They are those of the settings classes, so a new method's keys are in them. What pydantic does not know is added:
the short forms that a file may use, and the dotted keys of an experiment that a search-space file sets and varies.
A schema says what a file may look like; whether its values fit together is found out when it is read.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from raytrain_speedup.config import Experiment
from raytrain_speedup.explain import keys
from raytrain_speedup.script import ScriptExperiment

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KEYS = "KeysOfAnExperiment"
SET_KEYS = ("overrides", "trial", "proxy", "baseline")
"""Sections of a search-space file that set keys of an experiment."""


def experiment_schema() -> dict[str, Any]:
    """Of an experiment file, of the package's own loop or of a script."""
    _, found = models_json_schema([(Experiment, "validation"), (ScriptExperiment, "validation")])
    definitions = found["$defs"]
    definitions["Experiment"]["properties"]["task"].pop("required")  # classification unless it says otherwise
    return {
        "$schema": DIALECT,
        "title": "An experiment of raytrain_speedup",
        "if": {"required": ["trainable"]},
        "then": {"$ref": "#/$defs/ScriptExperiment"},
        "else": {"$ref": "#/$defs/Experiment"},
        "$defs": definitions,
    }


def sweep_schema(settings: type[BaseModel]) -> dict[str, Any]:
    """Of a search-space file.

    Args:
        settings: the class that reads it, which is of a floor above.
    """
    schema = settings.model_json_schema()
    own, definitions = schema["properties"], schema.setdefault("$defs", {})
    own["confirm"] = {"anyOf": [own["confirm"], {"type": "integer", "minimum": 0}]}  # how many winners
    told = {key: {"description": meaning} for key, meaning in _meanings().items()}
    definitions[KEYS] = {"type": "object", "properties": told}
    for name in SET_KEYS:
        if name in own:
            own[name]["$ref"] = f"#/$defs/{KEYS}"
    own["controls"]["additionalProperties"] = {"$ref": f"#/$defs/{KEYS}"}
    searched = own["search"]
    searched["properties"] = {
        key: {**searched["additionalProperties"], **about} for key, about in told.items()
    }
    return {"$schema": DIALECT, **schema, "title": "A search space of raytrain_speedup"}


def _meanings() -> dict[str, str]:
    """What each key of an experiment means; several methods may have one of the same name."""
    told: dict[str, list[str]] = {}
    for key, default, meaning in keys():
        told.setdefault(key, []).append(f"{meaning} (default: {default})" if default else meaning)
    return {key: "; ".join(meanings) for key, meanings in told.items()}
