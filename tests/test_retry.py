"""What may pass is waited for until a deadline, and said once."""

from __future__ import annotations

import pytest

from raytrain_speedup import retry


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Away:
    """Answers after so many seconds."""

    def __init__(self, clock: Clock, until: float) -> None:
        self.clock, self.until, self.calls = clock, until, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.clock.now < self.until:
            raise OSError("away")
        return "there"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


def test_it_waits_longer_and_longer_and_says_so_once(clock: Clock) -> None:
    said: list[Exception] = []
    call = Away(clock, until=9.0)
    answer = retry.retry(call, may_pass=lambda error: isinstance(error, OSError), say=said.append, seconds=30)
    assert answer == "there" and [str(error) for error in said] == ["away"]
    assert clock.now == 0.25 + 0.5 + 1 + 2 + 4 + 5 and call.calls == 7


@pytest.mark.parametrize("seconds, calls", [(0, 1), (0.24, 1), (0.25, 2), (1.0, 3)])
def test_it_ends_at_the_deadline_and_not_after(seconds: float, calls: int, clock: Clock) -> None:
    call = Away(clock, until=1e9)
    with pytest.raises(OSError, match="away"):
        retry.retry(call, may_pass=lambda error: True, say=lambda error: None, seconds=seconds)
    assert call.calls == calls and clock.now <= seconds


def test_what_will_not_pass_is_told_at_once(clock: Clock) -> None:
    call = Away(clock, until=1e9)
    with pytest.raises(OSError, match="away"):
        retry.retry(call, may_pass=lambda error: False, say=pytest.fail, seconds=30)
    assert call.calls == 1
