"""Checkpoints are whole or not there, whatever happens to the disk."""

from __future__ import annotations

import itertools
import resource
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine_runs import (
    CPU,
    VIT,
    Diary,
    UriDiary,
    UriWorker,
    WorkerDiary,
    same,
    tiny,
    trained,
    untimed,
    weights,
)
from engine_runs import run as told
from ranks import on_two_ranks
from torch import Tensor

from raytrain_speedup.engine.checkpoints.checkpoint import Checkpoint, CheckpointFailed, read_own, read_shared
from raytrain_speedup.engine.local import LocalReporter
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.run import run
from raytrain_speedup.settings import RunFailed, UserError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes of a file fails, as on a full disk; the signal is one that Python ignores."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Filling(Diary):
    """Fills the disk after the first checkpoint."""

    def report(self, metrics: Any, checkpoint: Checkpoint | None = None) -> None:
        super().report(metrics, checkpoint)
        self.settle()
        with (self.folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 4096)


def test_a_full_disk_leaves_the_previous_checkpoint_intact(small_disk: Path, tmp_path: Path):
    run_folder = small_disk / "run"
    with pytest.raises(CheckpointFailed) as error:
        run(tiny(), Filling(run_folder), device=CPU)
    assert "checkpoint not written (No space left on device" in str(error.value)
    assert f"the last good checkpoint is {run_folder / 'checkpoint-000000'}" in str(error.value)
    assert error.value.exit_code == 1
    assert not list(run_folder.rglob("*.pt.partial"))

    (run_folder / "filler").unlink()
    _, expected, _ = trained(tiny(), tmp_path / "whole")
    metrics, resumed, _ = trained(tiny(), run_folder)
    assert same(resumed, expected)
    assert metrics["epoch"] == 3


def test_a_write_that_breaks_off_leaves_nothing_half_written(tmp_path: Path):
    state = {"weights": torch.zeros(1 << 20)}
    files = {"rank-0.pt": {"random": 7}, "run.pt": {"weights": torch.ones(1 << 20)}}
    Checkpoint(tmp_path, files).write()
    with (
        file_limit(1 << 20),
        pytest.raises(CheckpointFailed, match=r"run.pt: checkpoint not written \(File too large\)"),
    ):
        Checkpoint(tmp_path, files | {"run.pt": state}).write()
    assert torch.equal(read_shared(tmp_path, CPU)["weights"], torch.ones(1 << 20))
    assert read_own(tmp_path, rank=0) == {"random": 7}
    assert read_own(tmp_path, rank=1) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank-0.pt", "run.pt"]


def test_a_image_that_cannot_be_written_is_reported_in_a_line(tmp_path: Path):
    with (
        file_limit(1000),
        pytest.raises(RunFailed, match=r"grid-0001.png: image not written \(File too large\)"),
    ):
        Diary(tmp_path).image("grid", 1, bytes(5000))


def test_the_last_file_of_a_run_may_fail_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`model.pt` does not fit any more: the message is that of every checkpoint."""
    from raytrain_speedup.engine.checkpoints import checkpoint as module

    def limited(content: Any, path: Path) -> None:
        with file_limit(1000) if path.name == "model.pt" else nullcontext():
            module_save(content, path)

    module_save = module.save_tensors
    monkeypatch.setattr(module, "save_tensors", limited)
    with pytest.raises(
        CheckpointFailed, match=r"model.pt: checkpoint not written .*; the last good checkpoint"
    ):
        run(tiny(epochs=1), Diary(tmp_path), device=CPU)
    monkeypatch.undo()
    assert trained(tiny(epochs=1), tmp_path)[2].steps == 0


def test_a_damaged_checkpoint_is_a_message(tmp_path: Path):
    with pytest.raises(Stopped):
        run(tiny(), Diary(tmp_path, stop_after=1), device=CPU)
    file = tmp_path / "checkpoint-000000" / "run.pt"
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        file.write_bytes(damaged)
        with pytest.raises(
            UserError, match=rf"not one whole .*: run.pt has {len(damaged)} of {len(whole)} b"
        ):
            run(tiny(), Diary(tmp_path), device=CPU)
    file.write_bytes(bytes(len(whole)))
    with pytest.raises(UserError, match=r"run.pt: not a whole checkpoint"):
        run(tiny(), Diary(tmp_path), device=CPU)
    file.unlink()
    with pytest.raises(UserError, match=r"run.pt has 0 of"):
        run(tiny(), Diary(tmp_path), device=CPU)


def cut_off(file: Path) -> None:
    """As by a copy that broke off."""
    file.write_bytes(file.read_bytes()[:-1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a run that nothing happened to."""
    return trained(tiny(), tmp_path_factory.mktemp("whole"))[1]


@pytest.mark.parametrize("harm", [cut_off, Path.unlink], ids=["cut off", "missing"])
@pytest.mark.parametrize("lost", ["run.pt", "rank-0.pt", "manifest.json"])
@pytest.mark.parametrize("kind", [Diary, UriDiary], ids=["folder", "uri"])
def test_the_newest_whole_checkpoint_is_taken_and_said(
    kind: type[Diary],
    lost: str,
    harm: Callable[[Path], None],
    undisturbed: dict[str, Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """Two are kept, and the last one is damaged: the run goes on from the one before, to the same end."""
    with pytest.raises(Stopped):
        run(tiny(), kind(tmp_path / "cut", stop_after=10), device=CPU)  # of 12
    before, last = sorted((tmp_path / "cut").iterdir())
    harm(last / lost)
    metrics, resumed, diary = trained(tiny(), tmp_path / "cut", kind)
    assert same(resumed, undisturbed)
    assert diary.steps == 4  # the last epoch, whose two first steps were in the lost one
    assert metrics["samples_shown"] == 3 * 230
    said = [record.getMessage() for record in caplog.records]
    names = [path.name for path in sorted((tmp_path / "cut").iterdir())]
    assert len(names) == 2 and before.name not in names
    if kind is UriDiary and lost == "manifest.json" and harm is Path.unlink:
        assert (
            not said
        )  # there it is what was being written when a run ended: removed, and its number is free
    else:
        assert len(said) == 1 and last.name in said[0] and said[0].endswith(f"taking {before.name}")
        assert last.name not in names


KINDS = {"folder": WorkerDiary, "uri": UriWorker}
DAMAGES = {
    "a file cut off": ("run.pt", cut_off),
    "a rank's file cut off": ("rank-1.pt", cut_off),
    "a rank's file missing": ("rank-1.pt", Path.unlink),
    "no manifest": ("manifest.json", Path.unlink),
}
DRAWING = tiny(VIT | {"model.drop_rate": 0.1, "pruning.method": "infobatch", "train.lr": 0.01})


def damaged(kind: str, damage: str, rank: int, folder: Path) -> dict[str, Any]:
    """What a rank sees of a run that goes on behind a damaged checkpoint."""
    with pytest.raises(Stopped):
        run(DRAWING, KINDS[kind](folder, rank, stop_after=10), device=CPU)
    dist.barrier()
    names = sorted(path.name for path in folder.glob("checkpoint-*"))
    file, harm = DAMAGES[damage]
    if rank == 0:
        harm(folder / names[-1] / file)
    dist.barrier()
    diary = KINDS[kind](folder, rank)
    metrics = told(DRAWING, diary, device=CPU)
    dist.barrier()
    return {
        "kept": names,
        "steps": diary.steps,
        "metrics": untimed(metrics),
        "weights": weights(diary),
    }


def undisturbed_and_damaged(rank: int, folder: Path) -> dict[str, Any]:
    """Every kind of store and every damage, by two processes."""
    tempfile.tempdir = str(folder / "temporary")
    whole = WorkerDiary(folder / "whole", rank)
    seen = {"whole": {"metrics": untimed(told(DRAWING, whole, device=CPU)), "weights": weights(whole)}}
    for kind, damage in itertools.product(KINDS, DAMAGES):
        seen[f"{kind}: {damage}"] = damaged(kind, damage, rank, folder / f"{kind}-{damage}".replace(" ", "-"))
    return seen


def test_two_ranks_go_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    """To the weights of two ranks that nothing happened to, and nothing stays in the temporary folder."""
    (tmp_path / "temporary").mkdir()
    for seen in on_two_ranks(undisturbed_and_damaged, tmp_path):
        whole = seen.pop("whole")
        assert len(seen) == 8
        for case, found in seen.items():
            assert found["kept"] == ["checkpoint-000001", "checkpoint-000002"], case
            assert same(found["weights"], whole["weights"]), case
            assert found["metrics"] == whole["metrics"], case
            assert found["steps"] == 4, case
    assert not list((tmp_path / "temporary").iterdir())


def test_the_last_two_checkpoints_are_kept(tmp_path: Path):
    run(tiny(checkpoint_steps=1), Diary(tmp_path), device=CPU)
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names == ["checkpoint-000011", "checkpoint-000012"]  # 3 x (3 steps + the epoch), and the result


def test_a_stop_checkpoints_and_names_it_and_the_step(tmp_path: Path):
    with pytest.raises(Stopped) as error:
        run(tiny(checkpoint_every=0), Diary(tmp_path, stop_after=6), device=CPU)
    assert str(error.value) == (
        f"stopped in epoch 2 after step 2 of 4; the checkpoint is {tmp_path / 'checkpoint-000000'}"
    )
    assert error.value.exit_code == 130
    assert (tmp_path / "checkpoint-000000" / "run.pt").is_file()


class Away(Diary):
    """Its storage goes away after the first epoch, and comes back after `seconds`, if at all."""

    def __init__(self, folder: Path, *, seconds: float | None) -> None:
        super().__init__(folder)
        self.seconds = seconds

    def report(self, metrics: Any, checkpoint: Checkpoint | None = None) -> None:
        super().report(metrics, checkpoint)
        self.settle()
        mount = self.folder.parent
        if len(self.reports) == 1:
            away = mount.rename(mount.with_name("away"))
            if self.seconds is not None:
                threading.Timer(self.seconds, lambda: away.rename(mount)).start()


def test_a_storage_that_is_away_for_a_moment_costs_time_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    _, expected, _ = trained(tiny(), tmp_path / "whole")
    away = Away(tmp_path / "mount" / "run", seconds=1.5)
    run(tiny(), away, device=CPU)
    assert same(weights(away), expected)
    said = [record.getMessage() for record in caplog.records]
    assert "does not answer (No such file or directory); trying for 120 s" in said[0]
    assert said[-1].endswith("answers again")


def test_a_storage_that_stays_away_is_told_by_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("raytrain_speedup.retry.PATIENCE_SECONDS", 0.5)
    folder = tmp_path / "mount" / "run"
    with pytest.raises(CheckpointFailed) as error:
        run(tiny(), Away(folder, seconds=None), device=CPU)
    assert "checkpoint not written (No such file or directory)" in str(error.value)
    assert f"the last good checkpoint is {folder / 'checkpoint-000000'}" in str(error.value)
    assert not (tmp_path / "mount").exists(), "nothing was written beside the storage that was away"


def test_a_report_is_heard_before_its_checkpoint_is_there(tmp_path: Path) -> None:
    """Killed in between, the epoch is run again; a listener that fails leaves the checkpoint all the same."""
    there: list[list[Path]] = []

    def hear(kind: str, metrics: Any) -> None:
        there.append(list(tmp_path.glob("checkpoint-*")))
        raise RunFailed("nobody listens")

    reporter = LocalReporter(tmp_path, hear)
    with pytest.raises(RunFailed, match="nobody listens"):
        reporter.report({"epoch": 1}, Checkpoint(reporter.new_folder(), {"rank-0.pt": {}, "run.pt": {}}))
    assert there == [[]] and reporter.latest() == tmp_path / "checkpoint-000000"
