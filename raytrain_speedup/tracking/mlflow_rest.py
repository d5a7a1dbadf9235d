"""A schedule from an MLflow server where MLflow is not installed: two GET requests.

MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, are sent as MLflow sends them.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.tracker import SCHEDULE_FILE, split_name

SECONDS = 30.0
LARGEST_ANSWER = 1 << 20


def published_text(server: str, uri: str) -> str:
    """As `schedules.published_text`, from a server.

    Raises:
        UserError: if it does not answer, or has no such schedule.
    """
    scheme, _, name = uri.partition(":/")
    run_id = name if scheme == "runs" else _run_of(server, uri, name)
    return _get(server, uri, "/get-artifact", {"path": SCHEDULE_FILE, "run_uuid": run_id}).decode("utf-8")


def _run_of(server: str, uri: str, name: str) -> str:
    """The run of a version."""
    model, which = split_name(name)
    api = "/api/2.0/mlflow/"
    if which == "latest":
        quoted = model.replace('"', "")
        found = _json(server, uri, f"{api}model-versions/search", {"filter": f'name = "{quoted}"'})
        versions = found.get("model_versions", [])
        if not versions:
            raise UserError(f"{uri}: no schedule of this name at {server}; expected one that was exported")
        return str(max(versions, key=lambda version: int(version["version"]))["run_id"])
    if which.startswith("@"):
        asked = {"name": model, "alias": which[1:]}
        found = _json(server, uri, f"{api}registered-models/alias", asked)
    else:
        found = _json(server, uri, f"{api}model-versions/get", {"name": model, "version": which})
    return str(found["model_version"]["run_id"])


def _json(server: str, uri: str, path: str, query: dict[str, str]) -> Any:
    return json.loads(_get(server, uri, path, query))


def _get(server: str, uri: str, path: str, query: dict[str, str]) -> bytes:
    request = Request(f"{server.rstrip('/')}{path}?{urlencode(query)}", headers=_authorization())
    try:
        with urlopen(request, timeout=SECONDS) as answer:
            content: bytes = answer.read(LARGEST_ANSWER)
    except HTTPError as error:
        reason = _reason(error)
        raise UserError(
            f"{uri}: {server} says: {reason}; expected a schedule that was exported there"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{uri}: {server} does not answer ({error}); expected an MLflow server") from None
    return content


def _reason(error: HTTPError) -> str:
    """MLflow's words where it has any."""
    try:
        return str(json.loads(error.read())["message"])
    except (ValueError, KeyError, OSError):
        return f"{error.code} {error.reason}"


def _authorization() -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user is None:
        return {}
    pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
