"""What every tracker has to do; and that a whole search, its leaderboard and its schedule need no more."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from raytrain_speedup import tracking
from raytrain_speedup.config import load_experiment
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.schedule import load_schedule
from raytrain_speedup.tracking import mlflow_sql, open_tracker, store
from raytrain_speedup.tracking.export import export
from raytrain_speedup.tracking.leaderboard import Row, leaderboard
from raytrain_speedup.tracking.mlflow_sql import read_runs
from raytrain_speedup.tracking.mlflow_tracker import MlflowTracker
from raytrain_speedup.tracking.run_log import log_run
from raytrain_speedup.tracking.tracker import SCHEDULE_FILE, Entry, NotTracked, Tracker


@pytest.fixture(params=["mlflow", "json"])
def every(request: pytest.FixtureRequest, tmp_path: Path) -> Tracker:
    if request.param == "mlflow":
        return request.getfixturevalue("tracker")
    return open_tracker(f"json:{tmp_path / 'kept'}")


@pytest.fixture
def name(experiment_name: str) -> str:
    return experiment_name


def test_a_run_is_read_back(every: Tracker, name: str) -> None:
    before = time.time() * 1000
    parent = every.start(name, "a sweep", {"speedup.sweep": "key"})
    run_id = every.start(name, "the run", {"speedup.role": "trial", "other.tag": "x"}, parent=parent)
    every.set_tags(run_id, {"speedup.state": "running", "speedup.text": "ä\nb"})
    every.set_tags(run_id, {"speedup.state": "finished", "speedup.passing": "x"})
    every.remove_tag(run_id, "speedup.passing")
    every.log_params(run_id, {"train.lr": "0.1"})
    every.log_metrics(run_id, {"accuracy": 0.1 + 0.2, "epoch/loss": 3.0, "bad": math.nan})
    every.end(run_id, "finished")
    (run,) = every.runs(name, tag="speedup.role")
    assert plain(run) == plain(every.run(run_id))
    assert (run.run_id, run.name, run.experiment, run.parent) == (run_id, "the run", name, parent)
    assert run.tags == {"speedup.role": "trial", "speedup.state": "finished", "speedup.text": "ä\nb"}
    assert run.metrics.keys() == {"accuracy", "bad"} and run.metrics["accuracy"] == 0.1 + 0.2
    assert math.isnan(run.metrics["bad"]) and before - 1000 < run.started < before + 60_000
    assert len(run_id) >= 8 and name in every.experiments()


def test_runs_are_chosen_by_tag_parent_and_experiment(every: Tracker, name: str) -> None:
    parent, other = (every.start(name, "sweep", {"speedup.sweep": key}) for key in "ab")
    elsewhere = every.start(f"{name}/2", "sweep", {"speedup.sweep": "a"})
    children = []
    for number in range(3):
        time.sleep(0.002)
        children.append(every.start(name, f"{number}", {"speedup.group": "g"}, parent=parent))
    stray = every.start(name, "stray", {"speedup.group": "h"}, parent=other)
    gone = every.start(name, "gone", {"speedup.group": "g"}, parent=parent)
    every.delete(gone)

    def ids(*experiment: str, **wanted: str) -> list[str]:
        return [run.run_id for run in every.runs(*experiment, **wanted)]  # type: ignore[arg-type]

    assert ids(name, tag="speedup.group", parent=parent) == children, "oldest first"
    assert set(ids(name, tag="speedup.group")) == {*children, stray}
    assert ids(name, tag="speedup.group", value="h") == [stray]
    assert set(ids(tag="speedup.sweep", value="a")) >= {parent, elsewhere}
    assert other not in ids(tag="speedup.sweep", value="a")
    assert ids("nowhere", tag="speedup.group") == [] and ids(name, tag="speedup.none") == []


def test_a_metric_is_that_of_its_highest_step(every: Tracker, name: str) -> None:
    run = every.start(name, "run", {"speedup.group": "g"})
    for step, value in ((1, 5.0), (3, 7.0), (2, 6.0)):
        every.log_metrics(run, {"epoch/loss": value, "final": value}, step)
    assert every.curve(run, "epoch/loss") == [(1, 5.0), (2, 6.0), (3, 7.0)]
    assert every.curve(run, "epoch/none") == []
    assert every.run(run).metrics == {"final": 7.0} == every.runs(name, tag="speedup.group")[0].metrics


def test_files(every: Tracker, name: str, tmp_path: Path) -> None:
    run = every.start(name, "run", {})
    every.log_text(run, "äb\n", "some/where.txt")
    (tmp_path / "plot.png").write_bytes(b"a plot")
    every.log_file(run, tmp_path / "plot.png")
    every.log_file(run, tmp_path / "plot.png", "images")
    assert every.read_text(run, "some/where.txt") == "äb\n"
    assert every.read_text(run, "plot.png") == every.read_text(run, "images/plot.png") == "a plot"
    start = time.monotonic()
    with pytest.raises(NotTracked, match=f"run {run[:8]}: its nothing.txt cannot be read"):
        every.read_text(run, "nothing.txt")
    assert time.monotonic() - start < 5, "it is not waited for"


def test_versions_and_aliases(every: Tracker, name: str) -> None:
    runs = [every.start(name, f"{number}", {}) for number in range(2)]
    for run in runs:
        every.log_text(run, run, SCHEDULE_FILE)
        every.publish(name, run)
    every.set_alias(name, "proven", 1)
    every.set_alias(name, "best", 1)
    every.set_alias(name, "best", 2)
    first, second = every.versions(name)
    assert [(one.version, one.run_id, one.aliases) for one in (first, second)] == [
        (1, runs[0], ("proven",)),
        (2, runs[1], ("best",)),
    ]
    assert {first, second} <= set(every.versions()) and every.versions("nothing") == []
    assert every.version(name, "@best") == second == every.version(name, "2") == every.version(name, "latest")
    with pytest.raises(NotTracked, match=r"no version '@production' at .*; expected 1 @proven, 2 @best"):
        every.version(name, "@production")
    with pytest.raises(
        NotTracked, match=f"no schedule of this name at .*; expected one of: .*{re.escape(name)}"
    ):
        every.version("nothing", "1")
    with pytest.raises(NotTracked):
        every.set_alias(name, "best", 9)


def plain(entry: Entry) -> str:
    """All of an entry, NaN too, whatever the order of its keys."""
    return repr(replace(entry, tags=sorted(entry.tags.items()), metrics=sorted(entry.metrics.items())))  # type: ignore[arg-type]


def test_a_thousand_runs_at_once_are_those_that_mlflow_finds(tracker: Tracker, name: str) -> None:
    """The rows of MLflow's tables, read at once, against its own search: every tag, metric, parent and order."""
    assert isinstance(tracker, MlflowTracker)
    parents = [tracker.start(name, "a sweep", {"speedup.sweep": "k"}) for _ in range(2)]
    for number in range(6):
        tags = {"speedup.group": f"g{number % 2}", "speedup.text": "ä'\"\n", "mine": "x"}
        run = tracker.start(name, f"run {number}", tags, parent=(*parents, None)[number % 3])
        tracker.log_metrics(
            run, {"accuracy": 1 / 3 + number, "nan": math.nan, "epoch/loss": 1.0, "epoch": 2.0}
        )
        tracker.set_tags(run, {"speedup.group": f"g{number % 2}"})
    tracker.delete(tracker.start(name, "gone", {"speedup.group": "g0"}))
    for wanted in (
        {"experiment": name, "value": None, "parent": None},
        {"experiment": name, "value": "g1", "parent": None},
        {"experiment": None, "value": None, "parent": parents[1]},
        {"experiment": "nowhere", "value": None, "parent": None},
    ):
        file = Path(tracker.uri.removeprefix("sqlite:///"))
        found = read_runs(file, tag="speedup.group", **wanted)  # type: ignore[arg-type]
        expected = tracker._search(tag="speedup.group", **wanted)  # type: ignore[arg-type]
        assert found is not None and [plain(run) for run in found] == [plain(run) for run in expected]
        assert bool(found) == (wanted["experiment"] != "nowhere")


def test_tables_of_another_version_are_mlflows_to_read(
    tracker: Tracker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracker.start(name, "run", {"speedup.role": "run"})
    monkeypatch.setattr(mlflow_sql, "KNOWN_SCHEMAS", {"of yesterday"})
    assert read_runs(Path(tracker.uri.removeprefix("sqlite:///")), experiment=name, tag="speedup.role",
                     value=None, parent=None) is None  # fmt: skip
    assert [found.run_id for found in tracker.runs(name, tag="speedup.role")] == [run]


def test_another_process_sees_the_same(every: Tracker, name: str) -> None:
    run = every.start(name, "run", {"speedup.role": "run"})
    every.impatient().set_tags(run, {"speedup.beat": "1"})
    assert open_tracker(every.uri).run(run).tags == {"speedup.role": "run", "speedup.beat": "1"}
    every.impatient().remove_tag(run, "speedup.beat")
    assert "speedup.beat" not in open_tracker(every.uri).run(run).tags


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    """A process was killed while it wrote; another goes on."""
    tracker = open_tracker(f"json:{tmp_path}")
    run = tracker.start("x", "run", {"speedup.a": "1"})
    with next(tmp_path.rglob("run.jsonl")).open("ab") as file:
        file.write(b'\n{"tags": {"speedup.b": "2')
    tracker.set_tags(run, {"speedup.c": "3"})
    assert tracker.run(run).tags == {"speedup.a": "1", "speedup.c": "3"}


def test_mlflow_is_known_to_its_own_files_alone() -> None:
    package = Path(tracking.__file__).parents[1]
    importing = re.compile(r"^\s*(import|from) mlflow", re.MULTILINE)
    found = {file.name for file in package.rglob("*.py") if importing.search(file.read_text())}
    assert found == {"mlflow_tracker.py", "mlflow_database.py"}


def test_plain_files_need_no_mlflow(tmp_path: Path) -> None:
    """A run, the leaderboard and an export where MLflow cannot be imported."""
    experiment = load_experiment(
        "digits", {"tracking.uri": f"json:{tmp_path}", "pruning.method": "infobatch"}
    )
    with log_run(experiment) as log:
        known = {"accuracy": 97.0, "baseline_key": "k", "hardware": "h", "passes_saved": 0.2}
        log.finish(FinalMetrics.from_dict(known | {"train_seconds": 1.0, "progress": 1.0}))
    program = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from raytrain_speedup.cli import app\n"
        f"for command in (['leaderboard'], ['export', {log.run_id[:8]!r}, '--unproven', '-o', sys.argv[1]]):\n"
        f"    app([*command, '--tracking-uri', 'json:{tmp_path}'], standalone_mode=False)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "s.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "infobatch" in done.stdout and (tmp_path / "s.yaml").is_file()


def without_places(rows: list[Row]) -> list[dict[str, object]]:
    """Rows without the ids, which every tracker makes for itself."""
    return [
        {key: value for key, value in row.to_dict().items() if key not in ("run_id", "run_ids", "sweep")}
        for row in rows
    ]


def copy_runs(source: Tracker, target: Tracker, experiment: str) -> None:
    """The runs of one tracker in another."""
    sweeps = {
        run.run_id: target.start(experiment, run.name, run.tags)
        for run in source.runs(experiment, tag=store.SWEEP)
    }
    for run in source.runs(experiment, tag=store.GROUP):
        time.sleep(0.002)  # the order of their beginnings is kept
        copied = target.start(
            experiment, run.name, run.tags, parent=sweeps[run.parent] if run.parent else None
        )
        target.log_metrics(copied, run.metrics)
        target.log_text(copied, source.read_text(run.run_id, "experiment.yaml"), "experiment.yaml")


@pytest.fixture
def small_sweep(tmp_path: Path) -> Path:
    file = tmp_path / "digits.yaml"
    file.write_text(
        "name: small\nexperiment: digits\ntrials: 1\nconfirm: {winners: 1, until: seeds}\nseeds: [0, 1]\n"
        f"overrides: {{train.epochs: 2, data.image_size: 8, scaling.storage: {tmp_path}/runs}}\n"
        "trial: {pruning.method: infobatch, pruning.anneal_from: 1.0}\n"
        "search:\n  pruning.prune_ratio: {type: float, low: 0.3, high: 0.7}\n"
    )
    return file


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_through_plain_files(
    small_sweep: Path, tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `speedup train`, a sweep, its leaderboard and its export; and MLflow makes the same of the same runs."""
    from raytrain_speedup import cli
    from raytrain_speedup.tuning.sweep import sweep

    uri = f"json:{tmp_path / 'kept'}"
    monkeypatch.chdir(tmp_path)
    arguments = ["digits", "train.epochs=1", "data.image_size=8", "tracking.experiment=small"]
    cli.app(["train", *arguments, "--tracking-uri", uri], standalone_mode=False)
    screen = Console(file=io.StringIO(), width=160)
    result = sweep(small_sweep, tracking_uri=uri, out=tmp_path, console=screen)
    kept = open_tracker(uri)
    rows = leaderboard("small", uri)
    assert {row.role for row in rows} == {"run", "baseline", "winner"}
    winner = next(row for row in result.rows if row.role == "winner")
    assert winner.seeds == (0, 1) and winner.comparison is not None

    copy_runs(kept, tracker, "small")
    assert without_places(leaderboard("small", tracker.uri)) == without_places(rows)

    export(winner.run_id, tmp_path / "s.yaml", uri, unproven=True)
    schedule = load_schedule(tmp_path / "s.yaml")
    assert schedule.evidence is not None and schedule.evidence.speedup == winner.speedup
    assert winner.sweep is not None and "speedup against accuracy" in kept.read_text(
        winner.sweep, "README.md"
    )
