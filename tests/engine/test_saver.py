"""Checkpoints are written beside the training: what they hold, who waits, and what becomes of a failure."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, Diary, equal, same, tiny, trained, weights
from torch import Tensor, nn

from raytrain_speedup.engine.checkpoints import store as module
from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint, CheckpointFailed, snapshot
from raytrain_speedup.engine.checkpoints.saver import Saver
from raytrain_speedup.engine.checkpoints.store import CheckpointStore, FolderStore
from raytrain_speedup.engine.cost.clock import CpuClock, no_work_of_the_run
from raytrain_speedup.engine.run import run
from raytrain_speedup.scaling.uri_store import UriStore
from raytrain_speedup.settings import UserError


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the steps wait."""
    monkeypatch.setattr("raytrain_speedup.engine.loop.WRITES_IN_TURN", ())


class Lost(Exception):
    """The process of a run, as if it were killed."""


class Slow(Diary):
    """Its storage takes the first checkpoint when so many steps are over, or is full then; the run is lost after
    `lost_after` steps."""

    def __init__(self, folder: Path, *, steps: int, full: bool = False, lost_after: int = 10**6) -> None:
        super().__init__(folder)
        self._ready, self._wanted, self._full, self._lost_after = threading.Event(), steps, full, lost_after

    def _save(self, checkpoint: Checkpoint, number: int) -> None:
        assert self._ready.wait(60), "the training waited for its checkpoint"
        if self._full:
            raise CheckpointFailed("the disk is full")
        super()._save(checkpoint, number)

    def progress(self, metrics: Any) -> None:
        super().progress(metrics)
        if self.steps == self._wanted:
            self._ready.set()
        if self.steps == self._lost_after:
            raise Lost


def test_it_holds_the_step_it_was_taken_at_whatever_came_meanwhile(tmp_path: Path) -> None:
    """Two steps of the second epoch are taken before the first epoch's checkpoint is written, with moments, losses
    and averages of their own; then the process is lost."""
    experiment = tiny({"pruning.method": "infobatch"}, momentum=0.9, ema_decay=0.5)
    _, expected, _ = trained(experiment, tmp_path / "whole")
    lost = Slow(tmp_path / "parts", steps=6, lost_after=7)
    with pytest.raises(Lost):
        run(experiment, lost, device=CPU)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint-000000"]
    metrics, resumed, diary = trained(experiment, tmp_path / "parts")
    assert same(resumed, expected)
    assert metrics["epoch"] == 3 and len(diary.epochs) == 2


def test_the_next_one_waits_for_it(tmp_path: Path) -> None:
    """The second is due after step 8, and the storage would take the first after step 10."""
    slow = Slow(tmp_path, steps=10)
    threading.Timer(1.0, lambda: (slow.steps, slow._ready.set())).start()
    run(tiny(), slow, device=CPU)
    assert len(slow.epochs) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000002", "checkpoint-000003"]


def test_a_failure_is_told_between_two_steps(tmp_path: Path) -> None:
    full = Slow(tmp_path, steps=41, full=True)
    with pytest.raises(CheckpointFailed, match="the disk is full; there is no checkpoint before it"):
        run(tiny(epochs=20, checkpoint_every=10), full, device=CPU)
    assert full.steps < 80, "told before the next one"


def test_the_end_waits_for_the_last_one(tmp_path: Path) -> None:
    slow = Slow(tmp_path, steps=0)
    threading.Timer(0.5, slow._ready.set).start()
    run(tiny(epochs=1), slow, device=CPU)
    assert same(weights(slow), torch.load(tmp_path / "checkpoint-000001" / "model.pt"))


def test_one_at_a_time_and_each_failure_is_told_once() -> None:
    saver, order = Saver(), []

    def work(name: str, seconds: float, *, fails: bool = False) -> None:
        order.append(f"{name} begins")
        time.sleep(seconds)
        order.append(f"{name} ends")
        if fails:
            raise CheckpointFailed(name)

    saver.start(lambda: work("one", 0.2))
    saver.check()  # it is under way: nothing is known of it
    saver.start(lambda: work("two", 0, fails=True))
    saver.wait()
    assert order == ["one begins", "one ends", "two begins", "two ends"]
    with pytest.raises(CheckpointFailed, match="two"):
        saver.check()
    saver.check()
    saver.settle()


# --- the copy ----------------------------------------------------------------------------------------------


def test_a_copy_is_not_changed_by_what_comes_after(tmp_path: Path) -> None:
    network = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9)
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {
        "weights": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "list": [torch.ones(2), 7, None],
    }
    Checkpoint(tmp_path, {"now.pt": state}).write()
    copy = snapshot(state)
    optimizer.step()
    state["list"][0].zero_()
    Checkpoint(tmp_path, {"copy.pt": copy}).write()
    now, later = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("now", "copy"))
    assert equal(now, later) and not equal(later, state)


def test_what_shares_memory_is_copied_once_and_a_part_without_the_rest(tmp_path: Path) -> None:
    table = torch.arange(1000.0).reshape(100, 10)
    copy = snapshot(
        {"tied": table, "to": table.view(100, 10), "row": table[7], "turned": table.T, "none": table[:0]}
    )
    assert copy["tied"].data_ptr() == copy["to"].data_ptr() != table.data_ptr()
    assert torch.equal(copy["row"], table[7]) and torch.equal(copy["turned"], table.T)
    assert copy["row"].untyped_storage().nbytes() == 40
    assert copy["none"].shape == (0, 10)
    bits: Tensor = snapshot([table.view(torch.int32), table])[0]
    assert bits.dtype == torch.int32 and torch.equal(bits, table.view(torch.int32))


# --- the parts of several ranks ----------------------------------------------------------------------------


def part(store: CheckpointStore, number: int, rank: int) -> None:
    """A rank's files, handed over."""
    folder = store.begin(number)
    files = {f"rank-{rank}.pt": {"random": rank}, **({} if rank else {"run.pt": {"epoch": number}})}
    Checkpoint(folder, files).write()
    store.hand_over(folder, number)


@pytest.fixture(params=[FolderStore, lambda folder: UriStore(folder.as_uri())], ids=["folder", "uri"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    (tmp_path / "run").mkdir()
    return request.param(tmp_path / "run")


def test_it_is_one_when_the_last_rank_has_handed_over(store: CheckpointStore) -> None:
    part(store, 0, 0)
    late = threading.Timer(0.5, part, (store, 0, 1))
    began = time.monotonic()
    late.start()
    assert store.newest() is None
    assert store.commit(0, 2) == store.newest() == "checkpoint-000000"
    assert time.monotonic() - began > 0.4
    with store.fetched("checkpoint-000000", 1) as folder:
        assert {path.name for path in folder.glob("rank*")} == {"rank-0.pt", "rank-1.pt"}


def test_a_part_that_does_not_come_is_named(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARTS_SECONDS", 0.1)
    part(store, 0, 0)
    with pytest.raises(CheckpointFailed, match=r"checkpoint-000000: .* \(rank-1.pt did not come in 0.1 s\)"):
        store.commit(0, 2)
    assert store.newest() is None


class TestAStorageThatIsAwayForAMoment:
    """While manifests are read: no whole checkpoint may be taken for a damaged one, let alone be removed."""

    @pytest.fixture
    def away(self, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The checkpoints whose manifest is not read at the first try."""
        names: list[str] = []
        read = store._read_manifest

        def reads(name: str) -> bytes:
            if name in names:
                names.remove(name)
                raise OSError(5, "Input/output error")
            return read(name)

        monkeypatch.setattr(store, "_read_manifest", reads)
        return names

    def test_nothing_whole_is_removed(self, store: CheckpointStore, away: list[str]) -> None:
        for number in range(2):
            part(store, number, 0)
            store.commit(number, 1)
        away += ["checkpoint-000001", "checkpoint-000002"]
        part(store, 2, 0)
        store.commit(2, 1)
        assert store.newest() == "checkpoint-000002"
        assert {f"checkpoint-00000{number}" for number in (1, 2)} <= set(store._names())
        part(store, 3, 0)
        store.commit(3, 1)
        assert sorted(store._names()) == ["checkpoint-000002", "checkpoint-000003"]

    def test_the_newest_is_waited_for(self, store: CheckpointStore, away: list[str]) -> None:
        for number in range(2):
            part(store, number, 0)
            store.commit(number, 1)
        away += ["checkpoint-000001"]
        assert store.newest() == "checkpoint-000001"

    def test_one_that_stays_away_is_told(
        self, store: CheckpointStore, away: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("raytrain_speedup.retry.PATIENCE_SECONDS", 0.2)
        part(store, 0, 0)
        store.commit(0, 1)
        away += ["checkpoint-000000"] * 100
        with pytest.raises(
            UserError, match=r"cannot be read \(Input/output error\); expected a folder or URI"
        ):
            store.newest()


# --- whose work it is --------------------------------------------------------------------------------------


def test_what_is_done_beside_the_run_is_no_work_of_it() -> None:
    """While it goes on, and when it is over."""
    clock, beside, read = CpuClock(), threading.Event(), threading.Event()

    def write() -> None:
        with no_work_of_the_run():
            began = time.thread_time()
            while time.thread_time() - began < 0.3:
                pass
            beside.set()
            read.wait()

    before, own = clock.read(), time.thread_time()
    thread = threading.Thread(target=write)
    thread.start()
    beside.wait()
    during = clock.read() - before - (time.thread_time() - own)
    read.set()
    thread.join()
    after = clock.read() - before - (time.thread_time() - own)
    assert abs(during) < 0.05 and abs(after) < 0.05
