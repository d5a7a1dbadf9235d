"""One driver at a time: another process is refused while it lives, and takes over when it does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import heartbeat, store
from raytrain_speedup.tracking.heartbeat import Beat, Heartbeat, read_beat, this_host

DRIVER = """
import sys, time
from raytrain_speedup.tracking import heartbeat, store
heartbeat.BEAT_SECONDS = 1.0
with heartbeat.Heartbeat(store.connect(sys.argv[1]), sys.argv[2]) as holds:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("replaced by", holds.replaced_by.pid, flush=True)
"""


@pytest.fixture
def parent(client: MlflowClient) -> str:
    return str(client.create_run("0").info.run_id)


def is_refused(client: MlflowClient, parent: str) -> str:
    with pytest.raises(UserError) as told, Heartbeat(client, parent):  # type: ignore[arg-type]
        pass
    assert len(str(told.value).splitlines()) == 1
    return str(told.value)


def wait_for(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_a_living_driver_beats(client: MlflowClient, parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    with Heartbeat(client, parent):  # type: ignore[arg-type]
        first = read_beat(client, parent)
        wait_for(lambda: read_beat(client, parent) != first, 10)
        later = read_beat(client, parent)
        assert first is not None and later is not None
        assert later.at > first.at and later.driver == first.driver
    assert read_beat(client, parent) is None, "who ends in order leaves the sweep free"


def test_beside_a_living_driver_a_second_one_is_refused(
    client: MlflowClient, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lives is not replaced; one that is stopped is, and ends when it wakes up and sees it."""
    environment = os.environ | {"PYTHONPATH": str(Path(store.__file__).parents[2])}
    command = [sys.executable, "-c", DRIVER, client.tracking_uri, parent]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        try:
            wait_for(lambda: read_beat(client, parent) is not None)
            beat = read_beat(client, parent)
            assert beat is not None and beat.pid == other.pid
            assert f"is being run by process {other.pid} on {beat.name}" in is_refused(client, parent)
            wait_for(lambda: read_beat(client, parent) != beat)
            time.sleep(0.3)
            other.send_signal(signal.SIGSTOP)  # between two beats
            assert "is being run by" in is_refused(client, parent), "it is silent, but not for long"
            monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 0.1)
            with Heartbeat(client, parent) as held:  # type: ignore[arg-type]
                other.send_signal(signal.SIGCONT)
                assert other.communicate(timeout=60)[0] == f"replaced by {os.getpid()}\n"
                mine = read_beat(client, parent)
                assert mine is not None and mine.driver == held.driver, "the other wrote nothing more"
            assert held.replaced_by is None
        finally:
            other.kill()


def test_who_is_dead(client: MlflowClient, parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SETTLING_SECONDS", 0.0)
    with subprocess.Popen(["true"]) as gone:
        pass
    now = time.time()
    here = Beat("x", this_host(), "here", gone.pid, now)
    elsewhere = replace(here, host="another machine", name="there")
    for beat, lives in {
        here: False,  # a process of this machine that is no more, however short ago it beat
        replace(here, pid=os.getpid()): False,  # an earlier sweep of this process
        replace(here, pid=os.getppid()): True,
        elsewhere: True,  # its processes are not seen from here
        replace(elsewhere, at=now - 50): True,
        replace(elsewhere, at=now - 70): False,
        replace(here, pid=os.getppid(), at=now - 70): False,  # the number was given to another process
    }.items():
        client.set_tag(parent, store.DRIVER, json.dumps(asdict(beat)))
        if lives:
            assert f"process {beat.pid} on {beat.name}" in is_refused(client, parent)
        else:
            with Heartbeat(client, parent) as held:  # type: ignore[arg-type]
                taken = read_beat(client, parent)
                assert taken is not None and taken.driver == held.driver and taken.pid == os.getpid()


def test_of_two_that_take_over_together_one_has_it(
    client: MlflowClient, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Beat("x", "another machine", "there", 1, 0.0)
    client.set_tag(parent, store.DRIVER, json.dumps(asdict(dead)))
    faster = Heartbeat(client, parent)  # type: ignore[arg-type]

    def meanwhile(seconds: float) -> None:
        """What the other one does while this one waits."""
        monkeypatch.undo()
        faster._beat(client)

    monkeypatch.setattr(heartbeat.time, "sleep", meanwhile)
    assert "was faster to resume" in is_refused(client, parent)
    beat = read_beat(client, parent)
    assert beat is not None and beat.driver == faster.driver
