"""A sweep on Ray's fake provider loses half of its nodes. tests/benchmarks/lost_node.py in short, by steps alone:
the seconds of a busy machine prove nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from counted_sweep import TRIALS, Swept, swept
from fake_provider import fake_cluster
from run_ends import same_weights

from raytrain_speedup.tracking import open_tracker
from raytrain_speedup.tracking.tracker import Entry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # for both sweeps

EPOCHS = 24
ACCOUNT = ("samples_shown", "passes_saved", "epoch", "compute_spent", "train_flops")


@pytest.fixture(scope="module")
def sweeps() -> Iterator[tuple[Swept, Swept]]:
    """The sweep that nothing happens to, and the one that loses a node of two."""
    home = Path(tempfile.mkdtemp(prefix="hn"))  # a short path: Ray's sockets live below it
    try:
        with fake_cluster(home) as address:
            whole = swept(home, address, "whole", epochs=EPOCHS, disturbed=False)
            lost = swept(home, address, "lost", epochs=EPOCHS, disturbed=True)
        yield whole, lost
    finally:
        shutil.rmtree(home, ignore_errors=True)


def tracked(sweep: Swept) -> dict[str, Entry]:
    """The sweep's runs by name."""
    entries = open_tracker(f"json:{sweep.folder / 'tracked'}").runs(tag="speedup.role")
    runs = {entry.name: entry for entry in entries if entry.tags["speedup.role"] != "sweep"}
    assert len(runs) == len(entries) - 1, "a run was tracked twice"
    return runs


def end_of(sweep: Swept, entry: Entry) -> Path:
    (folder,) = sweep.folder.glob(f"runs/*/{entry.tags['speedup.folder']}")
    return folder


def test_the_sweep_ends_by_itself_with_its_leaderboard(sweeps: tuple[Swept, Swept]) -> None:
    _, lost = sweeps
    runs = tracked(lost)
    assert {entry.tags["speedup.state"] for entry in runs.values()} == {"finished"}
    assert sum(entry.tags["speedup.role"] == "trial" for entry in runs.values()) == TRIALS
    assert f"{len(runs)}/{len(runs)}" in lost.said, "all that was planned was run"
    assert "goes on from its last checkpoint" in " ".join(lost.said.split())
    assert "lost: speedup against accuracy" in lost.said
    assert (lost.folder / "out" / "leaderboard.png").stat().st_size


def test_only_what_was_interrupted_takes_steps_again_those_since_its_checkpoint(
    sweeps: tuple[Swept, Swept],
) -> None:
    whole, lost = sweeps
    assert lost.lost and lost.lost.done and lost.lost.trial not in lost.lost.done
    assert set(whole.counts.values()) == {1}
    again = {step: count for step, count in lost.counts.items() if count > 1}
    assert {trial for trial, _ in again} <= {lost.lost.trial}, "a trial that was not there ran again"
    assert sum(count - 1 for count in again.values()) <= lost.lost.since_checkpoint
    epoch = 1 + max(number for (trial, (_, number)) in lost.counts if trial == lost.lost.trial)
    assert lost.lost.since_checkpoint <= epoch, "there is a checkpoint an epoch"


def test_nothing_is_paid_for_beyond_the_steps_that_were_lost(sweeps: tuple[Swept, Swept]) -> None:
    """The bar is 5 %; by steps it is nothing. And but one process more has to find its way to its first step."""
    whole, lost = sweeps
    assert lost.lost
    assert len(lost.taken) - lost.lost.since_checkpoint <= len(whole.taken)
    assert len(lost.counts) == len(whole.counts)
    processes = [len({step.pid for step in sweep.taken}) for sweep in (whole, lost)]
    assert processes[1] <= processes[0] + 1


def test_every_trial_is_what_it_would_have_been(sweeps: tuple[Swept, Swept]) -> None:
    """Its settings, its account of samples and compute, and the weights it ended with."""
    whole, lost = sweeps
    expected, found = tracked(whole), tracked(lost)
    assert expected.keys() == found.keys() and len(found) > TRIALS
    for name, entry in expected.items():
        other = found[name]
        assert other.tags["speedup.params"] == entry.tags["speedup.params"], name
        assert {key: other.metrics[key] for key in ACCOUNT} == {key: entry.metrics[key] for key in ACCOUNT}, (
            name
        )
        assert same_weights(end_of(lost, other), end_of(whole, entry)), name
