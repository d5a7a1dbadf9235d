"""The line that a user reads when workers began anew: why, from where, and what was lost."""

import pickle
import re
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.train import UserCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling.default import _is_preemption_failure
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.tune.experiment import Trial

from raytrain_speedup.engine.reporter import Notice
from raytrain_speedup.scaling import tune_trial
from raytrain_speedup.scaling.board import NodeTakenBack, TellFailures, cause_of
from raytrain_speedup.scaling.restarts import Restarts
from raytrain_speedup.scaling.tune_trial import TrialReporter
from raytrain_speedup.tuning.trials import guarded


class At:
    """Restarts that hear a note at a time of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.restarts = Restarts(clock=lambda: self.now)

    def note(self, seconds: float, kind: str, **metrics: Any) -> str | None:
        self.now = seconds
        return self.restarts.note(kind, metrics)


def test_what_was_lost_is_since_the_checkpoint() -> None:
    at = At()
    notes = [
        (0, "begin", {"checkpoint": None}),
        (1, "progress", {"steps": 1}),
        (5, "progress", {"steps": 40}),
        (5, "checkpoint", {"name": "checkpoint-000000", "steps": 41}),
        (5, "report", {"epoch": 1}),
        (7, "progress", {"steps": 60}),
        (9, "progress", {"steps": 80, "of": "teacher"}),
    ]
    for seconds, kind, metrics in notes:
        assert at.note(seconds, kind, **metrics) is None
    assert at.note(20, "failure", cause="worker 0 failed: connection closed") is None
    assert at.note(20, "failure", cause="the node of worker 1 was lost") is None
    assert at.note(21, "failure", cause="worker 0 failed: connection closed") is None
    assert at.note(37, "begin", checkpoint="checkpoint-000000") == (
        "the node of worker 1 was lost: "
        "30 s later the workers went on from checkpoint-000000; 19 steps (2.0 s) lost"
    )
    assert at.note(40, "progress", steps=42) is None
    assert at.note(45, "begin", checkpoint="checkpoint-000000") == (  # an elastic group that has grown
        "another number of workers: 5 s later the workers went on from checkpoint-000000; 1 step (0.0 s) lost"
    )


def test_a_checkpoint_that_is_written_beside_later_steps_takes_none_of_them_back() -> None:
    at = At()
    at.note(0, "begin", checkpoint=None)
    at.note(5, "progress", steps=40)
    at.note(7, "progress", steps=60)
    at.note(8, "checkpoint", name="checkpoint-000000", steps=40)
    at.note(9, "failure", cause="the node of worker 1 was lost")
    assert str(at.note(10, "begin", checkpoint="checkpoint-000000")).endswith("; 20 steps (2.0 s) lost")


def test_nothing_is_lost_where_the_last_step_was_saved() -> None:
    at = At()
    at.note(0, "begin", checkpoint=None)
    at.note(1, "progress", steps=10)
    at.note(3, "checkpoint", name="checkpoint-000003", steps=12)
    at.note(4, "failure", cause="node 10.0.0.1 is taken back by the cloud (notice of 25 s)")
    assert at.note(9, "begin", checkpoint="checkpoint-000003") == (
        "node 10.0.0.1 is taken back by the cloud (notice of 25 s): "
        "6 s later the workers went on from checkpoint-000003; "
        "0 steps (0.0 s) lost"
    )


def test_without_a_checkpoint_all_is_lost_and_a_resumed_run_counts_from_its_own() -> None:
    at = At()
    at.note(0, "begin", checkpoint=None)
    at.note(1, "progress", steps=1)
    at.note(4, "progress", steps=31)
    assert at.note(9, "begin", checkpoint=None) == (
        "another number of workers: 5 s later the workers began again, for there was no checkpoint; "
        "31 steps (3.0 s) lost"
    )
    at = At()
    at.note(0, "begin", checkpoint="checkpoint-000007")
    at.note(1, "progress", steps=701)
    at.note(2, "progress", steps=704)
    at.note(2, "failure", cause="the process of worker 1 died")
    said = at.note(9, "begin", checkpoint="checkpoint-000007")
    assert said is not None and said.endswith("4 steps (1.0 s) lost")


def test_a_group_that_never_trained_says_why_it_began_again() -> None:
    at = At()
    at.note(0, "begin", checkpoint=None)
    at.note(1, "failure", cause="the process of worker 0 died")
    assert at.note(2, "begin", checkpoint=None) == (
        "the process of worker 0 died: the workers began again, for there was no checkpoint"
    )


def test_the_cause_is_the_first_death_and_not_what_the_others_say_of_it() -> None:
    def died(text: str, *, preempted: bool = False) -> Exception:
        return WorkerHealthCheckFailedError("check failed", RayActorError("id", text, preempted=preempted))

    closed = RuntimeError("[gloo/pair.cc] Read error [127.0.0.1]:6: Connection reset by peer. Check the logs")
    waited = RuntimeError(
        "[gloo/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete"
    )
    group = SimpleNamespace(
        scaling_config=SimpleNamespace(num_workers=4), backend_config=SimpleNamespace(timeout_s=3)
    )
    in_vain = "worker 1 waited 3 s for the others (scaling.timeout); not heard of meanwhile: "
    causes = {
        "the node of worker 1 was lost": {0: closed, 1: died("The actor is dead because its node has died.")},
        "the process of workers 0, 1 died": {
            1: died("worker process has died"),
            0: ActorUnavailableError("", None),
        },
        "the node of worker 1 was taken back by the cloud": {0: closed, 1: died("gone", preempted=True)},
        "node x is taken back": {0: closed, 1: NodeTakenBack("node x is taken back")},
        "worker 0 failed: a worker that it exchanges gradients with is gone": {0: closed, 1: closed},
        "worker 0 failed: out of memory": {0: MemoryError("at once:\nout of memory")},
        "worker 3 failed: its own": {0: closed, 1: waited, 3: ValueError("its own")},
        f"{in_vain}worker 2, worker 3": {0: closed, 1: waited},
        f"{in_vain}a worker that has answered since": {0: closed, 1: waited, 2: waited, 3: waited},
        "the process of worker 2 died": {1: waited, 2: died("worker process has died")},
        "worker 2 failed: MemoryError": {2: MemoryError()},
    }
    assert [cause_of(errors, group) for errors in causes.values()] == list(causes)


def test_to_ray_train_leaving_is_no_failure() -> None:
    """By its own rule for `max_failures`, and over the wire. A trial of one worker leaves as a group does."""
    left = pickle.loads(pickle.dumps(NodeTakenBack("node x is taken back")))
    assert str(left) == "node x is taken back" and left.preempted
    assert _is_preemption_failure(WorkerGroupError("two", {0: left, 1: left}))
    assert not _is_preemption_failure(WorkerGroupError("two", {0: RayActorError("id", "died")}))
    assert issubclass(TellFailures, UserCallback)
    notice = Notice(("x",))
    with pytest.raises(NodeTakenBack, match=f"^{re.escape(str(notice))}$"):
        TrialReporter.leave(None, notice)  # type: ignore[arg-type]


def test_to_tune_leaving_is_no_report() -> None:
    """A trial's other errors are; this one is Tune's to see, which does not count it."""

    def leaving(config: dict[str, Any]) -> None:
        raise NodeTakenBack("node x is taken back")

    with pytest.raises(NodeTakenBack):
        guarded(leaving)({})


def test_a_process_that_tune_keeps_begins_nothing_on_a_node_that_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Here(TrialReporter):
        watches = True

        def __init__(self, notice: Notice | None) -> None:
            self.told = notice

        def notice(self) -> Notice | None:
            return self.told

    begun: list[str] = []
    monkeypatch.setattr(tune_trial, "run_any", lambda experiment, reporter, test: begun.append(experiment))
    monkeypatch.setattr(tune_trial, "load_any_dict", str)
    monkeypatch.setattr(tune_trial, "trial_reporter", lambda config: Here(config["notice"]))
    with pytest.raises(NodeTakenBack):
        tune_trial.trial({"experiment": "first", "notice": Notice(("x",))})
    tune_trial.trial({"experiment": "second", "notice": None})
    assert begun == ["second"]


def test_tune_counts_a_trial_that_left_as_no_failure() -> None:
    one = Trial("stub", stub=True)
    for cause, failures in ((NodeTakenBack("node x"), 0), (ValueError("x"), 1)):
        one._handle_ray_task_error(RayTaskError("train", "Traceback", cause).as_instanceof_cause())
        assert one.num_failures == failures
