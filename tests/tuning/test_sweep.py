"""Whole sweeps on real Ray Tune, Optuna and MLflow: the good case, and everything around it that can fail."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from full_disk import fill, tiny_disk
from mlflow.tracking import MlflowClient
from rich.console import Console
from tiny_runs import EPOCHS, space, tiny

from raytrain_speedup import retry
from raytrain_speedup.settings import RunFailed, UserError
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.tracker import TrackingLost
from raytrain_speedup.tuning.sweep import SweepResult, sweep

pytestmark = pytest.mark.usefixtures("ray_session")


def go(file: Path, uri: str, **arguments: object) -> tuple[SweepResult, str]:
    screen = Console(file=io.StringIO(), width=120)
    result = sweep(file, tracking_uri=uri, out=file.parent, console=screen, **arguments)  # type: ignore[arg-type]
    return result, screen.file.getvalue()  # type: ignore[attr-defined]


def runs_of(uri: str, name: str) -> list[store.Record]:
    return store.records(open_tracker(uri), name)


def test_a_sweep_of_the_engine(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits, two epochs: baseline, InfoBatch trials, the winner over the seeds, all that is left behind."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "digits.yaml"
    file.write_text(
        "name: engine\nexperiment: digits\ntrials: 2\nconfirm: {winners: 1, until: seeds}\nseeds: [0, 1]\n"
        "overrides: {train.epochs: 2, data.image_size: 8}\n"
        "trial: {pruning.method: infobatch, pruning.anneal_from: 1.0}\n"
        "search:\n  pruning.prune_ratio: {type: float, low: 0.3, high: 0.7}\n"
    )
    result, text = go(file, uri)
    records = runs_of(uri, "engine")
    assert [run.state for run in records] == ["finished"] * 8
    assert [run.role for run in records].count("baseline") == 4
    assert [run.role for run in records].count("winner") == 2
    client = MlflowClient(uri)
    parents = {run.parent for run in records}
    assert len(parents) == 1
    holding = client.get_run(parents.pop())
    assert holding.info.status == "FINISHED"
    assert holding.data.params["trials"] == "2" and holding.data.params["overrides.train.epochs"] == "2"
    assert holding.data.params["search.pruning.prune_ratio"] == "{'low': 0.3, 'high': 0.7}"
    one = next(run for run in records if run.role == "winner")
    assert 0 < one.final.passes_saved < 1 and one.final.costs.train_flops
    assert [point.step for point in client.get_metric_history(one.run_id, "epoch/val_accuracy")] == [1, 2]
    assert client.get_run(one.run_id).data.params["pruning.method"] == "infobatch"
    trial = next(run for run in records if run.role == "trial")
    assert trial.final.of("test") is None and trial.final.metrics["val_accuracy"] > 0, (
        "the test split is not read"
    )
    assert one.final.costs.reference_steps and one.final.setup.startswith("batch 64, device loader")
    row = next(row for row in result.rows if row.role == "winner")
    assert (
        row.seeds == (0, 1)
        and row.comparison is not None
        and row.comparison.speedup.clock in ("reference steps", "none")  # none: a machine too busy to believe
    )
    assert result.plot is not None and result.plot.read_bytes().startswith(b"\x89PNG")
    assert result.best is None and result.schedule is None, "two seeds prove nothing, and nothing is exported"
    assert not (tmp_path / "schedule.yaml").exists()
    assert "too few for a verdict" in text and "no setting is proven lossless" in text
    assert f"speedup export {row.run_id[:8]} --unproven" in text
    assert f"/runs/{holding.info.run_id}?workflowType=machine_learning" in text
    assert not list(tmp_path.glob("mlruns")), "artifacts belong beside the database"


def test_trials_that_fail(tmp_path: Path, uri: str) -> None:
    """An error, the loss of the process (retried) and a NaN: each ends for itself and says why."""
    file = space(tmp_path, [0.1, 0.2, 0.9, 0.4, 0.5], more="objectives: {val_accuracy: max}")
    file.write_text(file.read_text().replace("name: tiny", "name: faults"))
    result, text = go(file, uri, trainable=tiny)
    by_ratio = {
        run.params["pruning.prune_ratio"]: run for run in runs_of(uri, "faults") if run.role == "trial"
    }
    assert by_ratio[0.1].state == "failed"
    assert by_ratio[0.1].reason == "ArithmeticError: the loss is NaN in step 17"
    assert re.search(
        r"trial-01 +prune_ratio=0\.1  .*failed: ArithmeticError: the loss is NaN in step 17", text
    )
    assert by_ratio[0.2].state == "finished", "a lost process is retried"
    assert result.best is not None and "prune_ratio=0.5" in result.best.settings
    assert result.best.verdict == "lossless" and result.best.speedup == pytest.approx(1 / 0.75)
    client = MlflowClient(uri)
    died = client.get_metric_history(by_ratio[0.2].run_id, "epoch/train_loss")
    assert [point.step for point in died] == [1, 2, 3, 4], "a replayed epoch is logged once"
    assert {client.get_run(run.run_id).info.status for run in by_ratio.values()} == {"FINISHED", "FAILED"}


@pytest.mark.parametrize(("method", "reason"), [("asha", "behind the others"), ("bound", "heads for")])
def test_stopped_trials_are_no_results(method: str, reason: str, tmp_path: Path, uri: str) -> None:
    """ASHA stops what falls behind, the bound what cannot reach it: told as pruned, shown without speedup; the
    baseline goes on."""
    ratios = [0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    scheduler = f"scheduler: {{method: {method}, grace: 0.25, reduction: 2}}"
    file = space(tmp_path, ratios, more=scheduler, objective="cheapest-lossless")
    file.write_text(file.read_text().replace("name: tiny", f"name: {method}"))
    result, _ = go(file, uri, trainable=tiny, concurrency=1)
    records = runs_of(uri, method)
    stopped = [run for run in records if run.state == "stopped"]
    assert stopped and {run.role for run in stopped} == {"trial"}
    assert all(run.metrics is None and reason in run.reason for run in stopped)
    assert {run.params["pruning.prune_ratio"] for run in stopped} >= {0.6, 0.65, 0.7, 0.75}
    assert result.best is not None and result.best.verdict == "lossless"
    shown = {row.run_id: row for row in result.rows}
    assert all(shown[run.run_id].speedup is None for run in stopped)
    client = MlflowClient(uri)
    assert {client.get_run(run.run_id).info.status for run in stopped} == {"KILLED"}
    processes = {run.final.metrics["process"] for run in records if run.finished}
    assert len(processes) <= 2, "the trials' processes are reused"


def test_two_processes_serve_a_whole_sweep(tmp_path: Path, uri: str) -> None:
    """Between the rounds of a confirmation one waits for the other, which ends when nothing is next yet."""
    more = "confirm: {winners: 1, until: verdict, max_seeds: 9}\nmargin: 0.2"
    ratios = [0.4, 0.45, 0.5, 0.55]
    # A pause of its own: another sweep of this database would lend its baselines to it, and borrow these.
    file = space(tmp_path, ratios, pause=0.29, more=more, objective="cheapest-lossless")
    file.write_text(file.read_text().replace("name: tiny", "name: two"))
    go(file, uri, trainable=tiny, concurrency=2)
    finished = [run for run in runs_of(uri, "two") if run.finished]
    assert sum(run.role == "winner" for run in finished) > 3, "more than one round"
    processes = [run.final.metrics["process"] for run in sorted(finished, key=lambda run: run.started)]
    assert len(set(processes)) == 2, "none was begun in the place of another"
    assert len(set(processes[-6:])) == 2, "and both serve to the end"


def test_a_baseline_that_fails_ends_the_sweep(tmp_path: Path, uri: str) -> None:
    file = space(tmp_path, [0.5] * 9, more="baseline: {pruning.method: infobatch, pruning.prune_ratio: 0.1}")
    file.write_text(file.read_text().replace("name: tiny", "name: nothing"))
    with pytest.raises(RunFailed, match="the loss is NaN in step 17"):
        go(file, uri, trainable=tiny)
    states = {run.name: run.state for run in runs_of(uri, "nothing")}
    assert states["baseline-seed1000003"] == "failed"
    assert len(states) < 9, "what was not under way yet did not begin"


def test_a_sweep_without_confirmation(tmp_path: Path, uri: str) -> None:
    """What was chosen on one seed is not crowned, and not exported."""
    file = space(tmp_path, [0.4, 0.5])
    file.write_text(
        file.read_text().replace("name: tiny", "name: quick").replace("{winners: 1}", "{winners: 0}")
    )
    result, _ = go(file, uri, trainable=tiny)
    assert len(runs_of(uri, "quick")) == 2 + 2 + 3
    assert result.best is None and result.schedule is None and not (tmp_path / "schedule.yaml").exists()


@pytest.mark.timeout(900)  # three sittings
def test_a_disk_that_is_full_and_a_proof_that_goes_on(
    tmp_path: Path, uri: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full for some seconds: no finished run is lost. Full for good: a line, and what was written goes on, with
    another seed."""
    file = space(tmp_path, [0.4, 0.5, 0.3])
    text = file.read_text().replace("seeds: [0, 1, 2]", "seeds: [0]")
    file.write_text(text.replace("{winners: 1}", "{winners: 1, until: seeds}"))
    open_tracker(uri)
    with tiny_disk(tmp_path / "disk") as disk:
        shutil.copy(uri.removeprefix("sqlite:///"), disk / "mlflow.db")
        here = f"sqlite:///{disk / 'mlflow.db'}"
        filler: list[Path] = []

        def fill_when(finished: int, seconds: float) -> threading.Thread:
            def wait() -> None:
                while sum(run.finished for run in store.records(open_tracker(here))) < finished:
                    time.sleep(0.05)
                filler.append(fill(disk))
                time.sleep(seconds)
                if seconds:
                    filler.pop().unlink()

            thread = threading.Thread(target=wait)
            thread.start()
            return thread

        full = fill_when(2, seconds=8)  # longer than from one heartbeat to the next
        go(file, here, trainable=tiny, trials=1, concurrency=1)
        full.join()
        runs = runs_of(here, "tiny")
        search = ["baseline-seed1000003", "baseline-seed1000004", "trial-01"]
        assert {run.name: run.state for run in runs} == dict.fromkeys(
            [*search, "baseline-seed0", "trial-01-seed0"], "finished"
        )
        said = [line for line in capfd.readouterr().err.splitlines() if "tracking" in line]
        assert said and all(" full); trying again" in line or "No space" in line for line in said)

        monkeypatch.setattr(retry, "PATIENCE_SECONDS", 1.0)
        fill_when(6, seconds=0)
        with pytest.raises(TrackingLost, match=r"full|No space") as lost:
            go(file, here, trainable=tiny, trials=3, concurrency=1, resume=True)
        assert len(str(lost.value).splitlines()) == 1 and "Traceback" not in capfd.readouterr().err
        filler.pop().unlink()
        monkeypatch.undo()

        file.write_text(file.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
        result, _ = go(file, here, trainable=tiny, trials=3, concurrency=1, resume=True)
        after = runs_of(here, "tiny")
        assert {run.run_id for run in runs} <= {run.run_id for run in after}
        assert {run.name for run in after if run.finished} == {
            *(*search, "baseline-seed0", "baseline-seed1", "trial-02", "trial-03"),
            *("trial-01-seed0", "trial-01-seed1"),
        }, "the winner that was begun gets the new seed, though a later trial is cheaper"
        assert [row.seeds for row in result.rows if row.role == "winner"] == [(0, 1)]


def test_nothing_to_resume(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match="--resume"):
        go(space(tmp_path, [0.5]), uri, trainable=tiny, resume=True)


@pytest.mark.timeout(900)  # three sittings, two of which begin a Ray session
def test_killed_then_interrupted_then_finished(tmp_path: Path, uri: str) -> None:
    """SIGKILL to the driver; resumed and sent Ctrl-C; resumed again: nothing runs twice, nothing is lost, and
    a trial that was in the middle goes on from its last checkpoint."""
    file = space(tmp_path, [0.2, 0.3, 0.4], pause=0.3, trials=4)
    file.write_text(file.read_text().replace("name: tiny", "name: resumed"))

    def finished() -> set[str]:
        tracker = open_tracker(uri)
        if "resumed" not in tracker.experiments():
            return set()
        return {run.run_id for run in store.records(tracker, "resumed") if run.finished}

    def epochs(run: store.Record) -> int:
        return int(MlflowClient(uri).get_run(run.run_id).data.metrics.get("epoch/epoch", 0))

    def running() -> bool:
        """Whether a run is in the middle: it has some epochs behind it, and some before it."""
        return any(0 < epochs(run) < EPOCHS for run in runs_of(uri, "resumed") if run.state == "running")

    def driver(*arguments: str, until: int, send: signal.Signals) -> int:
        script = Path(__file__).parent / "tiny_runs.py"
        process = subprocess.Popen(
            [sys.executable, str(script), str(file), uri, *arguments],
            env=os.environ | {"RAY_ADDRESS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while len(finished()) < until and process.poll() is None:
            time.sleep(0.1)
        with pytest.raises(UserError, match=f"is being run by process {process.pid} on "):
            go(file, uri, trainable=tiny, resume=True)
        while not running() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(send)
        out, _ = process.communicate(timeout=60)
        print(out)
        return process.returncode

    assert driver(until=1, send=signal.SIGKILL) == -signal.SIGKILL
    before = finished()
    states = [run.state for run in runs_of(uri, "resumed")]
    assert "running" in states, "nobody was left to end them"
    cut = {run.name: epochs(run) for run in runs_of(uri, "resumed") if run.state == "running"}
    assert any(cut.values())

    assert driver("resume", until=4, send=signal.SIGINT) == 130
    middle = finished()
    assert before < middle
    assert {run.state for run in runs_of(uri, "resumed")} == {"finished", "interrupted"}
    client = MlflowClient(uri)
    statuses = {client.get_run(run.run_id).info.status for run in runs_of(uri, "resumed")}
    assert statuses == {"FINISHED", "KILLED"}

    result, _ = go(file, uri, trainable=tiny, resume=True)
    records = runs_of(uri, "resumed")
    assert middle <= {run.run_id for run in records if run.finished}
    assert [run.state for run in records] == ["finished"] * 12
    names = [run.name for run in records]
    assert len(set(names)) == len(names) == 2 + 4 + 3 * 2
    ratios = {run.params["pruning.prune_ratio"] for run in records if run.role == "trial"}
    assert {0.2, 0.3, 0.4} < ratios and len(ratios) == 4
    for run in records:
        assert run.final.metrics["resumed_after"] >= cut.get(run.name, 0)
        steps = [point.step for point in client.get_metric_history(run.run_id, "epoch/train_loss")]
        assert steps == sorted(set(steps)), "an epoch was logged twice"
        # An epoch whose checkpoint was written as the driver died was never told.
        assert {1, 2, 3, 4} - set(steps) <= {run.final.metrics["resumed_after"]}
    assert len({run.folder for run in records}) == 12
    for run in records:
        assert run.folder.startswith(f"{run.name}-")
        assert len(list((tmp_path / "runs").glob(f"*/{run.folder}"))) == 1, "it went on in the folder it had"
    assert result.best is not None and result.best.seeds == (0, 1, 2)
