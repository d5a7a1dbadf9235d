"""What the driver writes down and shows when a trial says something. Ray's own trials, and nothing that trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.experiment import Trial

from raytrain_speedup.config import load_experiment
from raytrain_speedup.scaling.board import NodeTakenBack
from raytrain_speedup.scaling.trial_notes import BoardOfRun
from raytrain_speedup.tracking import open_tracker, store
from raytrain_speedup.tracking.heartbeat import Beat, Heartbeat
from raytrain_speedup.tracking.tracker import Tracker
from raytrain_speedup.tuning.callback import SweepCallback

FINAL = {"val_accuracy": 91.0, "accuracy": 90.0, "train_flops": 1.0, "baseline_key": "k", "final": True}


def trial(name: str) -> Trial:
    params = {"pruning.prune_ratio": 0.5}
    experiment = load_experiment("digits", {"pruning.method": "infobatch", **params}).shipped()
    config = {"run_name": name, "folder": f"{name}-a", "role": "trial", "params": params, "plan": None}
    return Trial("stub", stub=True, config={**config, "experiment": experiment})


class Sitting:
    """A callback, what it told, and the records it wrote."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self.tracker, self.name = tracker, name
        self.heartbeat = Heartbeat(tracker, tracker.start(name, "a sweep", {}))
        self.told: list[tuple[Any, ...]] = []
        self.callback = SweepCallback(
            tracker,
            into=name,
            heartbeat=self.heartbeat,
            margin=0.2,
            reopen={},
            listener=self.listen,
            stopped={"trial-01": "behind the others at 25%"},
        )

    def listen(self, name: str, state: str, metrics: Any, reason: str = "", settings: str = "") -> None:
        self.told.append((name, state, reason, settings))

    def state(self) -> dict[str, str]:
        found = store.records(self.tracker, self.name, parent=self.heartbeat.parent)
        return {run.name: run.state for run in found}


@pytest.fixture
def sitting(uri: str, request: pytest.FixtureRequest) -> Sitting:
    return Sitting(open_tracker(uri), request.node.name)


def test_a_run_is_shown_with_its_settings_and_written_with_its_sweep(sitting: Sitting) -> None:
    one = trial("trial-01")
    sitting.callback.on_trial_start(0, [one], one)
    sitting.callback.on_trial_start(1, [one], one)  # Tune begins a trial again whose process was lost
    assert sitting.told == [("trial-01", "running", "", "prune_ratio=0.5")]
    sitting.callback.on_trial_result(2, [one], one, {"epoch": 1, "val_accuracy": 50.0})
    sitting.callback.on_trial_result(3, [one], one, FINAL)
    sitting.callback.on_trial_complete(4, [one], one)
    assert [state for _, state, *_ in sitting.told] == ["running", "running", "finished"]
    (run,) = store.records(sitting.tracker, sitting.name)
    assert (run.parent, run.margin, run.folder) == (sitting.heartbeat.parent, 0.2, "trial-01-a")
    assert run.finished and run.final.metrics["accuracy"] == 90.0


def test_every_way_to_end(sitting: Sitting) -> None:
    """Stopped by the scheduler, failed by its own word, and interrupted, unless it had ended before."""
    trials = [trial(f"trial-0{number}") for number in (1, 2, 3)]
    stopped, failed, _ = trials
    for one in trials:
        sitting.callback.on_trial_start(0, trials, one)
    stopped.run_metadata.last_result = {"progress": 0.25}
    sitting.callback.on_trial_complete(1, trials, stopped)
    for report in ({"epoch": 1, "train_seconds": 5.0}, {"epoch": 1, "partial": True}):
        sitting.callback.on_trial_result(1, trials, trials[2], report)
    sitting.callback.on_trial_result(2, trials, failed, {"error": "CUDA out of memory", "traceback": "..."})
    sitting.callback.on_experiment_end(trials)
    (interrupted,) = [run for run in store.records(sitting.tracker, sitting.name) if run.name == "trial-03"]
    assert interrupted.wall_seconds == 5.0
    assert sitting.state() == {"trial-01": "stopped", "trial-02": "failed", "trial-03": "interrupted"}
    assert [reason for _, state, reason, _ in sitting.told if state != "running"] == [
        *("behind the others at 25%", "CUDA out of memory", "")
    ]


def test_a_trial_that_begins_again_says_why(
    sitting: Sitting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Tune keeps the error: of a process that left its node, and of one that died."""
    one, kept = trial("trial-01"), tmp_path / "error.pkl"
    monkeypatch.setattr(Trial, "pickled_error_file", str(kept))
    sitting.callback.on_trial_recover(0, [one], one)
    assert not sitting.told, "it is not known"
    sitting.callback.on_trial_start(1, [one], one)
    notice = NodeTakenBack("node 10.0.0.7 is taken back by the cloud (notice of 114 s)")
    for error in (
        RayTaskError("train", "Traceback ...", notice).as_instanceof_cause(),
        RayActorError("id", "its node has died"),
        RayActorError("id", "gone", preempted=True),
    ):
        kept.write_bytes(cloudpickle.dumps(error))
        sitting.callback.on_trial_recover(2, [one], one)
    kept.unlink()
    sitting.callback.on_trial_recover(3, [one], one)
    assert [(state, reason.partition("; it goes on")[0]) for _, state, reason, _ in sitting.told[1:]] == [
        ("waiting", str(notice)),
        ("waiting", "the node of the trial was lost"),
        ("waiting", "the node of the trial was taken back by the cloud"),
        ("waiting", "its process was lost"),
    ]
    assert sitting.state() == {"trial-01": "running"}


def test_what_workers_pin_is_told_under_the_name_of_their_run(
    sitting: Sitting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs at a time; one of them is begun again by Tune, which is no restart of its workers."""
    pinned: list[tuple[str, dict[str, Any]]] = []
    board = SimpleNamespace(
        put=SimpleNamespace(remote=lambda kind, metrics: pinned.append((kind, metrics))),
        take=SimpleNamespace(remote=lambda: [pinned.pop(0) for _ in range(len(pinned))]),
    )
    monkeypatch.setattr("ray.get", lambda answer, timeout: answer)
    sitting.callback.follow(board)
    one, two = (BoardOfRun(board, f"trial-0{number}") for number in (1, 2))
    for worker in (one, two):
        worker.put.remote("begin", {"checkpoint": None})
        worker.put.remote("progress", {"steps": 7})
    two.put.remote("failure", {"cause": "the process of worker 1 died"})
    two.put.remote("begin", {"checkpoint": None})
    one.put.remote("warning", {"text": "the storage does not answer"})
    two.put.remote("image", {"name": "x", "png": b"large"})
    assert pinned[-1] == ("image", {"run": "trial-02"})
    sitting.callback.on_step_end(0, [])
    ((name, state, line, _), warning) = sitting.told
    assert (name, state) == ("trial-02", "restarted") and line.startswith("the process of worker 1 died: ")
    assert warning[:3] == ("trial-01", "warning", "the storage does not answer")
    again = trial("trial-01")
    sitting.callback.on_trial_start(1, [again], again)
    sitting.callback.on_trial_recover(1, [again], again)
    one.put.remote("begin", {"checkpoint": None})
    sitting.callback.on_step_end(1, [])
    assert pinned, "a second has not gone by"
    sitting.callback.on_experiment_end([])
    assert not pinned and [state for _, state, _, _ in sitting.told[2:]] == ["running", "waiting"]


def test_a_driver_that_was_replaced_writes_no_more(sitting: Sitting) -> None:
    """The other one has resumed its runs."""
    under_way, later = trial("trial-01"), trial("trial-02")
    sitting.callback.on_trial_start(0, [under_way], under_way)
    sitting.heartbeat.replaced_by = Beat("other", "host", "name", 1, 0.0)
    sitting.callback.on_trial_result(1, [under_way], under_way, FINAL)
    sitting.callback.on_trial_start(2, [later], later)
    sitting.callback.on_experiment_end([under_way, later])
    assert sitting.state() == {"trial-01": "running"}
