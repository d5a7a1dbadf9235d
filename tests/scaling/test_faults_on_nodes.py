"""A worker, a node, the driver, the storage or a disk's space is gone without a word, at a fixed number of workers
on several nodes: what goes on is the same run, in its samples and its weights."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from full_disk import tiny_disk
from outside_ray import plain_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
]  # the first waits for the nodes and the undisturbed run

HERE = Path(__file__).parent
EPOCHS = list(range(1, 31))

Told = dict[str, Any]


class Nodes:
    """The nodes that `faults_on_nodes.py` holds."""

    def __init__(self, process: subprocess.Popen[str], errors: Path) -> None:
        self._process, self._errors = process, errors

    def suffer(self, fault: str, *arguments: str) -> Told:
        """What the runs of this fault told."""
        assert self._process.stdin and self._process.stdout
        print(fault, *arguments, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("answer: "):
                told = json.loads(line.removeprefix("answer: "))
                assert "failed" not in told, told["failed"]
                return dict(told)
        raise AssertionError(self._errors.read_text()[-3000:])


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    place = tmp_path_factory.mktemp("nodes")
    path = ":".join(map(str, (HERE, HERE.parent, HERE.parents[1])))
    with (place / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "faults_on_nodes.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=plain_environment() | {"PYTHONPATH": path},
            cwd=place,
        )
    try:
        yield Nodes(process, place / "errors")
        assert process.stdin
        process.stdin.close()
        process.wait(60)
    finally:
        process.kill()


@pytest.fixture(scope="module")
def whole(nodes: Nodes) -> Told:
    """The run that nothing happens to."""
    told = nodes.suffer("whole")
    assert [epoch for epoch, _ in told["shown"]] == EPOCHS
    return told


def same_run(told: Told, whole: Told) -> None:
    """The samples of every epoch, as often as it was shown, the whole account, and the weights."""
    expected = dict(map(tuple, whole["shown"]))
    assert set(map(tuple, told["shown"])) == set(expected.items()), (
        "every epoch, alike when it is shown again"
    )
    assert told["account"] == whole["account"] and told["steps"] == whole["steps"]
    assert told["same weights"]


def went_on(told: Told, cause: str) -> None:
    """The user was told of it in one line. gloo misses the other worker before Ray misses its process or its node,
    and then Ray may be told of that alone."""
    (said,) = [line for line in told["said"] if "went on" in line]
    gone = r"worker \d failed: a worker that it exchanges gradients with is gone"
    from_where = r"\d+ s later the workers went on from checkpoint-0\d+; \d+ steps? \(.* s\) lost"
    assert re.fullmatch(rf"({cause}|{gone}): {from_where}", said), said


@pytest.mark.parametrize(
    ("fault", "cause"),
    [("worker_killed", r"the process of worker \d died"), ("node_lost", r"the node of worker \d was lost")],
)
def test_a_worker_is_gone(fault: str, cause: str, nodes: Nodes, whole: Told) -> None:
    told = nodes.suffer(fault)
    assert told["nodes"] == 2
    went_on(told, cause)
    same_run(told, whole)


def test_the_storage_is_away_for_a_minute(nodes: Nodes, whole: Told) -> None:
    told = nodes.suffer("storage_away", "62")
    assert told["nodes"] == 2
    assert 62 < told["seconds"] < 240
    assert any(
        "does not answer (No such file or directory); trying for 120 s" in line for line in told["said"]
    )
    assert any("answers again" in line for line in told["said"])
    assert not any("went on" in line for line in told["said"]), "nobody was started again"
    assert [epoch for epoch, _ in told["shown"]] == EPOCHS, "no epoch twice"
    same_run(told, whole)


def test_the_disk_is_full(nodes: Nodes, whole: Told, tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as disk:
        told = nodes.suffer("full_disk", str(disk))
    before = told["before"]
    assert before["nodes"] == 2
    assert "checkpoint not written (No space left on device)" in before["error"]
    assert f"the last good checkpoint is {disk / 'run' / 'checkpoint-0'}" in before["error"]
    assert {name[:12] for name in before["left"]} == {"checkpoint-0"}, "nothing half-written is left"
    assert before["shown"][0][0] == 1 < told["shown"][0][0], "what was kept is not trained again"
    same_run(told | {"shown": before["shown"] + told["shown"]}, whole)


def test_the_driver_is_killed(nodes: Nodes, whole: Told) -> None:
    told = nodes.suffer("driver_killed")
    assert told["nodes"] == 2, "its workers lived"
    assert not told["ended"], "it was killed before its end"
    assert "epoch   1 " not in told["output"], "what was kept is not trained again"
    assert told["account"] == whole["account"] and told["steps"] == whole["steps"]
    assert told["same weights"]
