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

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import heartbeat, store
from raytrain_speedup.tracking.heartbeat import Beat, Heartbeat, read_beat, this_host
from raytrain_speedup.tracking.tracker import Tracker

DRIVER = """
import signal, sys, time
from raytrain_speedup.tracking import heartbeat, open_tracker
signal.signal(signal.SIGINT, signal.default_int_handler)  # as Tune's own: a job in the background ignores it
heartbeat.BEAT_SECONDS = 3.0
with heartbeat.Heartbeat(open_tracker(sys.argv[1]), sys.argv[2]) as holds:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("replaced by", holds.replaced_by.pid, flush=True)
"""


@pytest.fixture
def parent(tracker: Tracker) -> str:
    return tracker.start("heartbeats", "a sweep", {})


def is_refused(tracker: Tracker, parent: str) -> str:
    with pytest.raises(UserError) as told, Heartbeat(tracker, parent):
        pass
    assert len(str(told.value).splitlines()) == 1
    return str(told.value)


def wait_for(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_a_living_driver_beats(tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    with Heartbeat(tracker, parent):
        first = read_beat(tracker, parent)
        wait_for(lambda: read_beat(tracker, parent) != first, 10)
        later = read_beat(tracker, parent)
        assert first is not None and later is not None
        assert later.at > first.at and later.driver == first.driver
    assert read_beat(tracker, parent) is None, "who ends in order leaves the sweep free"


def test_beside_a_living_driver_a_second_one_is_refused(
    tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that lives is not replaced; one that is stopped is, and ends when it wakes up and sees it."""
    environment = os.environ | {"PYTHONPATH": str(Path(store.__file__).parents[2])}
    command = [sys.executable, "-c", DRIVER, tracker.uri, parent]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
        try:
            wait_for(lambda: read_beat(tracker, parent) is not None)
            beat = read_beat(tracker, parent)
            assert beat is not None and beat.pid == other.pid
            assert f"is being run by process {other.pid} on {beat.name}" in is_refused(tracker, parent)
            wait_for(lambda: read_beat(tracker, parent) != beat)
            time.sleep(0.3)
            other.send_signal(signal.SIGSTOP)  # between two beats
            assert "is being run by" in is_refused(tracker, parent), "it is silent, but not for long"
            monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 0.1)
            with Heartbeat(tracker, parent) as held:
                other.send_signal(signal.SIGCONT)
                assert other.communicate(timeout=60)[0] == f"replaced by {os.getpid()}\n"
                mine = read_beat(tracker, parent)
                assert mine is not None and mine.driver == held.driver, "the other wrote nothing more"
            assert held.replaced_by is None
        finally:
            other.kill()


def test_who_is_dead(tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        tracker.set_tags(parent, {store.DRIVER: json.dumps(asdict(beat))})
        if lives:
            assert f"process {beat.pid} on {beat.name}" in is_refused(tracker, parent)
        else:
            with Heartbeat(tracker, parent) as held:
                taken = read_beat(tracker, parent)
                assert taken is not None and taken.driver == held.driver and taken.pid == os.getpid()


def test_of_two_that_take_over_together_one_has_it(
    tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Beat("x", "another machine", "there", 1, 0.0)
    tracker.set_tags(parent, {store.DRIVER: json.dumps(asdict(dead))})
    faster = Heartbeat(tracker, parent)

    def meanwhile(seconds: float) -> None:
        """What the other one does while this one waits."""
        monkeypatch.undo()
        faster._beat(tracker)

    monkeypatch.setattr(heartbeat.time, "sleep", meanwhile)
    assert "was faster to resume" in is_refused(tracker, parent)
    beat = read_beat(tracker, parent)
    assert beat is not None and beat.driver == faster.driver
