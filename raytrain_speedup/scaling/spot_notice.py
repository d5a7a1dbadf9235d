"""The notice that a cloud gives before it takes a machine back, passed on to Ray: `speedup cluster watch`.

A machine learns of it from its own metadata service, which needs no credentials; Ray's launcher does not ask. The
watcher asks every few seconds, and tells Ray that its node is drained, with the deadline. Ray then starts nothing
more on it, and Ray Train's workers hear of it (`scaling/worker.py`).

Sources: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html,
https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-v2-how-it-works.html,
https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.message import Message
from pathlib import Path

from raytrain_speedup.settings import UserError

log = logging.getLogger("raytrain_speedup")

METADATA = "http://169.254.169.254"
"""Where a machine's metadata service is, on both clouds."""

ANSWER_SECONDS = 2.0
"""It is a hop away, or not there."""

EARLY_SECONDS = 5.0
"""Ray is told of an earlier deadline than the cloud's: a node that is gone before it counts as a failure."""

TOKEN_SECONDS = 21600
GOOGLE_SECONDS = 30.0
"""What Google Cloud gives; it does not say when it began."""

ATTEMPTS = 3
"""At the start, before a machine counts as no cloud's."""


class Unanswered(Exception):
    """The metadata service did not answer, or not as one does."""


class MetadataService(ABC):
    """What a cloud tells a machine about itself.

    Args:
        address: of the service, `http://HOST[:PORT]`.
    """

    cloud: str

    def __init__(self, address: str = METADATA) -> None:
        self._address = address

    @abstractmethod
    def deadline(self) -> float | None:
        """When this machine is taken back, in seconds since 1970; None while nothing is said of it.

        Raises:
            Unanswered: if it cannot be asked.
        """

    def _ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, Message, str]:
        """Status, headers and text of an answer; a proxy would be asked for a machine of its own."""
        request = urllib.request.Request(self._address + path, headers=dict(headers), method=method)
        try:
            with _DIRECT.open(request, timeout=ANSWER_SECONDS) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, ""
        except (OSError, ValueError) as error:
            raise Unanswered(str(error)) from error


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Ec2(MetadataService):
    """Of a machine of EC2, by the second version of the service, which wants a token for every question.

    A recommendation to rebalance is no notice: such a machine may stay for days.
    """

    cloud = "AWS"
    _token: str | None = None

    def deadline(self) -> float | None:
        for _ in range(2):
            if self._token is None:
                self._token = self._new_token()
            headers = {"X-aws-ec2-metadata-token": self._token}
            status, _, text = self._ask("/latest/meta-data/spot/instance-action", headers)
            if status != 401:
                break
            self._token = None  # it has expired
        if status == 404:
            return None
        try:
            return datetime.fromisoformat(json.loads(text)["time"]).timestamp()
        except (ValueError, KeyError, TypeError) as error:
            raise Unanswered(f"spot/instance-action is answered by {status} and {text[:80]!r}") from error

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        status, _, token = self._ask("/latest/api/token", headers, "PUT")
        if status != 200 or not token:
            raise Unanswered(f"api/token is answered by {status}")
        return token


class Google(MetadataService):
    """Of a machine of Google Cloud."""

    cloud = "Google Cloud"
    _since: float | None = None

    def deadline(self) -> float | None:
        path = "/computeMetadata/v1/instance/preempted"
        status, headers, text = self._ask(path, {"Metadata-Flavor": "Google"})
        if status != 200 or headers.get("Metadata-Flavor") != "Google":
            raise Unanswered(f"instance/preempted is answered by {status}")
        if text.strip() != "TRUE":
            return None
        if self._since is None:
            self._since = time.time()
        return self._since + GOOGLE_SECONDS


def metadata_service(address: str = METADATA, *, pause: float = 2.0) -> MetadataService | None:
    """That of the cloud this machine belongs to; None if it is none's.

    Args:
        address: of the service.
        pause: seconds between attempts; a machine that has just started may be slow.
    """
    for attempt in range(ATTEMPTS):
        for kind in (Ec2, Google):
            service = kind(address)
            with contextlib.suppress(Unanswered):
                service.deadline()
                return service
        if attempt < ATTEMPTS - 1:
            time.sleep(pause)
    return None


def wait_for_notice(service: MetadataService, *, every: float = 2.0) -> float:
    """Ask until the machine is to be taken back; gives the deadline in seconds since 1970.

    A service that is away is asked again, and told of once.

    Args:
        service: of this machine.
        every: seconds between questions.
    """
    away = False
    while True:
        try:
            deadline = service.deadline()
        except Unanswered as error:
            if not away:
                log.warning("the metadata service does not answer (%s); asking on", error)
            away = True
        else:
            if away:
                log.warning("the metadata service answers again")
            away = False
            if deadline is not None:
                return deadline
        time.sleep(every)


def drain(deadline: float, *, address: str | None = None, node: str | None = None) -> list[str]:
    """Tell Ray that nodes of its cluster are taken back; gives their ids, those that Ray took.

    Args:
        deadline: of the cloud, in seconds since 1970.
        address: HOST:PORT of the cluster; default: RAY_ADDRESS, or the one that runs on this machine.
        node: its id; default: whatever nodes run on this machine.

    Raises:
        UserError: if no cluster answers or it refuses.
    """
    import ray
    from ray._private.services import canonicalize_bootstrap_address, get_node_ip_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # which is compiled
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

    from raytrain_speedup.scaling.cluster import knock

    try:
        where = canonicalize_bootstrap_address(address or os.environ.get("RAY_ADDRESS", "auto"))
    except ConnectionError:
        where = None
    if where is None:
        raise UserError("no Ray cluster runs on this machine; expected one, or --address HOST:PORT")
    try:
        knock(where, ANSWER_SECONDS)
        client = GcsClient(address=where)
        here = get_node_ip_address(where)
        nodes = [
            info.node_id.hex()
            for info in client.get_all_node_info(timeout=ANSWER_SECONDS * 5).values()
            if info.state == ALIVE
            and (info.node_id.hex() == node if node else info.node_manager_address == here)
        ]
        said = "the cloud takes this machine back"
        due = int(1000 * max(deadline - EARLY_SECONDS, time.time() + 1))
        answers = {each: client.drain_node(each, DRAIN_NODE_REASON_PREEMPTION, said, due) for each in nodes}
    except (ray.exceptions.RayError, OSError, RuntimeError) as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error
    refused = [f"{each}: {why}" for each, (accepted, why) in answers.items() if not accepted]
    if refused or not nodes:
        raise UserError(
            f"{where}: {'; '.join(refused) or f'no node {node or here}'}; expected it to be drained"
        )
    return nodes


ALIVE = 0
"""Of `GcsNodeInfo.GcsNodeState`."""


@contextlib.contextmanager
def only_one(file: Path | None = None) -> Iterator[bool]:
    """Whether this process is the only watcher of its machine, inside.

    Args:
        file: by which they know of each other.
    """
    file = file or Path(tempfile.gettempdir()) / f"speedup-watch-{os.getuid()}.lock"
    with file.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def watch(
    service: MetadataService, tell: Callable[[float], list[str]], *, every: float = 2.0
) -> tuple[float, list[str]]:
    """Wait for the notice and pass it on, again and again until it is taken.

    Args:
        service: of this machine.
        tell: as `drain`, given the deadline.
        every: seconds between questions.

    Returns:
        The deadline, and the ids of the nodes that are drained.
    """
    told = ""
    while True:
        deadline = wait_for_notice(service, every=every)
        try:
            return deadline, tell(deadline)
        except UserError as error:
            if str(error) != told:
                log.warning("the notice could not be passed on (%s); trying on", error)
            told = str(error)
        time.sleep(every)
