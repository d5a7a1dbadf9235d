"""`speedup leaderboard --where`, `--sort`, `--csv` and `--watch`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from raytrain_speedup import cli
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking.leaderboard import Row, leaderboard
from raytrain_speedup.tracking.query import sort, where
from raytrain_speedup.tracking.table import MOST_TRIALS, csv_table, show
from raytrain_speedup.tracking.tracker import Tracker


def row(name: str, **more: Any) -> Row:
    known = {"experiment": "x", "sweep": None, "role": "run", "method": "infobatch", "settings": ""}
    ended = {"state": "finished", "run_ids": (name,), "seeds": (0,)}
    return Row(run_id=name, **(known | ended | more))  # type: ignore[arg-type]


ROWS = [
    row("a", data="digits", accuracy=97.0, train_seconds=5.0),
    row("b", data="CIFAR10", accuracy=None, method="random"),
    row("c", data="cifar100", accuracy=99.0, seeds=(0, 1, 2)),
]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], "abc"),
        (["data=digits"], "a"),
        (["data=cifar10"], "b"),
        (["data=CIFAR100"], "c"),
        (["data=cifar*"], "bc"),
        (["data!=digits", "method=infobatch"], "c"),
        (["accuracy>=97"], "ac"),
        (["accuracy<=97.0"], "a"),
        (["accuracy!=99"], "ab"),
        (["accuracy=99"], "c"),
        (["seeds=0,1,2"], "c"),
        (["verdict=lossless"], ""),
    ],
)
def test_where(conditions: list[str], expected: str) -> None:
    assert "".join(found.run_id for found in where(ROWS, conditions)) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [("accuracy", "cab"), ("-accuracy", "acb"), ("data", "bca"), ("-data", "acb"), ("seeds", "abc")],
)
def test_sort(key: str, expected: str) -> None:
    assert "".join(found.run_id for found in sort(ROWS, key)) == expected


def test_mistakes_are_a_line() -> None:
    for call, message in (
        (lambda: where(ROWS, ["data"]), "--where: 'data' is no condition; expected KEY=VALUE"),
        (lambda: where(ROWS, ["dta=x"]), "--where: 'dta' is no key of a row; did you mean 'data'?"),
        (lambda: where(ROWS, ["accuracy>=high"]), "'high' is not a number"),
        (lambda: sort(ROWS, "speeed"), "--sort: 'speeed' is no key of a row; did you mean 'speedup'?"),
    ):
        with pytest.raises(UserError) as told:
            call()
        assert message in str(told.value) and "\n" not in str(told.value)


def test_csv_has_every_key_of_every_row(
    tracker: Tracker, experiment_name: str, write: Callable[..., str]
) -> None:
    for seed in range(3):
        write("baseline", seed, accuracy=97.0 + seed)
        keys = {"pruning.method": "infobatch"}
        write("winner", seed, keys=keys, accuracy=97.0 + seed, train_seconds=5.0 + seed / 10)
    rows = leaderboard(experiment_name, tracker.uri)
    read = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert [line["role"] for line in read] == ["baseline", "winner"] and read[0]["interval_low"] == ""
    interval = float(read[1]["speedup_interval_low"]), float(read[1]["speedup_interval_high"])
    assert interval == rows[1].speedup_interval and float(read[1]["speedup"]) == rows[1].speedup
    assert read[1]["seeds"] == "0 1 2" and read[1]["run_ids"].split() == list(rows[1].run_ids)
    assert csv_table([]).strip() == ""


def test_a_thousand_trials_are_not_all_drawn() -> None:
    rows = [row("w", role="winner"), *(row(f"{number:08d}", role="trial") for number in range(1000))]
    for every, lines in ((False, MOST_TRIALS), (True, 1000)):
        screen = Console(file=io.StringIO(), width=140)
        show(rows, screen, every=every)
        text = screen.file.getvalue()  # type: ignore[attr-defined]
        assert sum("0000" in line for line in text.splitlines()) >= lines - 1
        assert (f"and {1000 - MOST_TRIALS} trials more: --all shows them" in text) != every


def test_the_command(
    tracker: Tracker,
    experiment_name: str,
    write: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Conditions after `--where` and beside it; watched, it shows what changed, once, until Ctrl-C."""
    fast, slow = (
        write("run", 0, keys={"pruning.method": "infobatch", "pruning.prune_ratio": ratio}, accuracy=97.0,
              train_seconds=100 * ratio)
        for ratio in (0.3, 0.4)
    )  # fmt: skip
    write("baseline", 0, accuracy=97.0)
    here = ["leaderboard", "--experiment", experiment_name, "--tracking-uri", tracker.uri]
    chosen = [*here, "--where", "data=digits", "role=run", "--sort", "train_seconds", "--csv"]
    cli.app(chosen, standalone_mode=False)
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["run_id"] for line in read] == [slow, fast]

    naps = iter([None, lambda: write("random", 0, accuracy=97.0), KeyboardInterrupt])

    def sleep(seconds: float) -> None:
        then = next(naps)
        if then is KeyboardInterrupt:
            raise KeyboardInterrupt
        if then is not None:
            then()  # type: ignore[operator]

    monkeypatch.setattr(cli.time, "sleep", sleep)
    cli.app([*here, "--watch", "--csv"], standalone_mode=False)
    out = capsys.readouterr().out
    assert out.count("experiment,sweep,role") == 2, "shown again because a run came, and only then"
