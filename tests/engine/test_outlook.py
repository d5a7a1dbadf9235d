"""What other numbers of workers would take: measured steps, computed exchange."""

from __future__ import annotations

import io
from typing import Any

import pytest
from engine_runs import tiny
from rich.console import Console

from raytrain_speedup.engine.outlook import BUCKET, Outlook, outlooks
from raytrain_speedup.engine.preflight import Preflight, StageCheck
from raytrain_speedup.methods.curriculum.base import Stage
from raytrain_speedup.settings import UserError
from raytrain_speedup.terminal import outlook_table

STAGE = Stage(ends_at=1.0, size=8, cost=1.0, replay=2)


def outlook(workers: int, *, gradients: int = 100_000_000, link: float = 1e9, **fields: Any) -> Outlook:
    """6,400 samples in a hundred steps of .064 s."""
    given = {"stage": STAGE, "magnitudes": (0, 1), "size": 8, "batch": 64, "samples": 6400.0}
    rates = {"device_rate": 1000.0, "loader_rate": 4000.0, "workers": 2, "memory": 1 << 30}
    check = StageCheck(**(given | rates | fields))
    return Outlook(workers, Preflight([check], gradients, sample_bytes=3000.0), link)


def test_the_exchange_is_hidden_behind_the_backward_pass() -> None:
    """100 MB among four workers: .15 s at 1 GB/s, of which .0427 s pass during the backward pass."""
    assert outlook(1).exchange_seconds == 0 and outlook(1).seconds == pytest.approx(6.4)
    four = outlook(4)
    assert four.exchange_seconds == pytest.approx(100 * (0.15 - 2 / 3 * 0.064))
    assert four.seconds == pytest.approx(6.4 + four.exchange_seconds)
    quick = outlook(4, link=10e9)  # .015 s, all of it hidden but for the last bucket
    assert quick.exchange_seconds == pytest.approx(100 * 1.5 * BUCKET / 10e9)
    small = outlook(4, gradients=1_000_000, link=10e9)
    assert small.exchange_seconds == pytest.approx(100 * 1.5 * 1e6 / 10e9)


def test_what_holds_a_run_up_is_named() -> None:
    assert outlook(4).limit == "exchange"
    assert outlook(4, link=100e9).limit == "device"
    assert outlook(1, loader_rate=100.0).limit == "images"
    assert outlook(4, loader_rate=999.0, link=1e8).limit == "exchange"


def test_all_workers_read() -> None:
    """A stage that replays reads half of what it shows."""
    assert outlook(4).input_rate == pytest.approx(4 * 3000 * 1000 / 2)
    assert outlook(2, loader_rate=500.0).input_rate == pytest.approx(2 * 3000 * 500 / 2)
    assert Outlook(4, Preflight(outlook(4).preflight.checks), 1e9).input_rate is None


def test_the_table_says_what_it_costs() -> None:
    stream = io.StringIO()
    shown = [outlook(1), outlook(4, samples=1600.0, link=100e9)]
    Console(file=stream, width=80).print(outlook_table(shown, tiny(), price=3600.0))
    lines = [line.split() for line in stream.getvalue().splitlines()]
    assert ["1", "64", "0:06", "0%", "100%", "1.5", "MB/s", "device", "6.40"] in lines
    (four,) = (line for line in lines if line[:1] == ["4"])
    assert four[2:5] == ["0:02", "1%", "99%"] and four[-1] == "6.44"
    assert "100.0 MB of gradients" in stream.getvalue() and "1 GB/s (--link)" in stream.getvalue()


def test_each_number_of_workers_is_tried() -> None:
    """Of ten samples a step, five are for each of two workers; what a step exchanges is what the network trains."""
    tried = tiny(batch_size=10)
    one, two = outlooks(tried, [1, 2], link=1e9, steps=1)
    assert [one.preflight.checks[0].batch, two.preflight.checks[0].batch] == [10, 5]
    assert one.preflight.checks[0].samples == 2 * two.preflight.checks[0].samples
    assert one.preflight.gradient_bytes == two.preflight.gradient_bytes > 0 and one.input_rate is None
    with pytest.raises(UserError, match=r"batch_size: 10 does not split into 3 workers"):
        next(outlooks(tried, [3], link=1e9, steps=1))
