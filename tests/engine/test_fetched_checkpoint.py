"""A checkpoint behind a URI is copied to the temporary folder, and nothing of it stays there, whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CPU, Diary, UriDiary, distilled, run, same, tiny, trained
from loopback_s3 import LoopbackS3
from test_checkpoint import file_limit

from raytrain_speedup.engine.checkpoints.checkpoint import CheckpointFailed
from raytrain_speedup.engine.loop import Stopped
from raytrain_speedup.engine.script_run import Run, run_script
from raytrain_speedup.scaling.uri_store import UriStore
from raytrain_speedup.script import load_script
from raytrain_speedup.settings import RunFailed, UserError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of this process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run that was stopped in its third epoch of three."""
    with pytest.raises(Stopped):
        run(tiny(), UriDiary(tmp_path / "begun", stop_after=10), device=CPU)
    return tmp_path / "begun"


def held(temporary: Path) -> list[str]:
    return [path.name for path in temporary.iterdir()]


class Looking(UriDiary):
    """Notes what the temporary folder holds when a network is to be built, and at every step."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.at_phase: dict[str, list[str]] = {}
        self.at_steps: list[str] = []

    def phase(self, name: str) -> None:
        self.at_phase[name] = held(Path(tempfile.gettempdir()))

    def progress(self, metrics: Any) -> None:
        super().progress(metrics)
        self.at_steps += held(Path(tempfile.gettempdir()))


def test_a_copy_lives_until_the_run_goes_on(begun: Path, tmp_path: Path) -> None:
    _, expected, _ = trained(tiny(), tmp_path / "whole")
    looking = Looking(begun)
    run(tiny(), looking, device=CPU)
    last = max(begun.iterdir())
    assert same(torch.load(last / "model.pt", weights_only=True), expected)
    (copy,) = looking.at_phase["reading the checkpoint"]
    assert copy.startswith("speedup-held-checkpoint-000002-")
    assert looking.steps == 2 and not looking.at_steps
    assert not held(Path(tempfile.gettempdir()))


def test_a_finished_run_only_tells_its_metrics_again(begun: Path, temporary: Path) -> None:
    metrics = run(tiny(), UriDiary(begun), device=CPU)
    assert run(tiny(), UriDiary(begun), device=CPU)["accuracy"] == metrics["accuracy"]
    assert not held(temporary)


def test_a_copy_that_cannot_be_read_goes_too_and_the_checkpoint_is_named(
    begun: Path, temporary: Path
) -> None:
    """Of another experiment, and damaged without its size telling."""
    last = max(begun.iterdir())
    with pytest.raises(UserError, match="is a checkpoint of another experiment") as error:
        run(tiny(lr=0.7), UriDiary(begun), device=CPU)
    assert str(error.value).startswith(last.as_uri())
    (last / "run.pt").write_bytes(bytes((last / "run.pt").stat().st_size))
    with pytest.raises(UserError, match=f"^{last.as_uri()}/run.pt: not a whole checkpoint"):
        run(tiny(), UriDiary(begun), device=CPU)
    assert not held(temporary)


def test_a_copy_that_does_not_fit_is_a_line(begun: Path, temporary: Path) -> None:
    with file_limit(1000), pytest.raises(CheckpointFailed) as error:
        run(tiny(), UriDiary(begun), device=CPU)
    said = str(error.value)
    assert said.startswith(f"{max(begun.iterdir()).as_uri()}: cannot be copied to {temporary} (")
    assert "File too large" in said and "\n" not in said
    assert not held(temporary)


@pytest.mark.parametrize("place", ["nowhere", "begun/run-id"])
def test_a_temporary_folder_that_cannot_be_written_is_a_line(
    place: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not there, or is a file."""
    (begun / "run-id").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / place))
    reason = "No such file or directory" if place == "nowhere" else "Not a directory"
    expected = rf"\({tmp_path / place}: {reason}\); expected a temporary folder \(TMPDIR\)"
    with pytest.raises(CheckpointFailed, match=rf"checkpoint-000002: cannot be copied here {expected}"):
        run(tiny(), UriDiary(begun), device=CPU)
    with pytest.raises(CheckpointFailed, match=rf"checkpoint-000000: checkpoint not written {expected}"):
        run(tiny(), UriDiary(tmp_path / "new"), device=CPU)


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    """Nor does one that was begun by a run that failed before it was reported."""
    with file_limit(1000), pytest.raises(CheckpointFailed, match=f"^{temporary}/.*: checkpoint not written"):
        run(tiny(), UriDiary(tmp_path / "full"), device=CPU)
    assert not held(temporary)
    store = UriStore((tmp_path / "full").as_uri())
    for number in range(2):
        (store.begin(number) / "run.pt").touch()
    assert len(held(temporary)) == 2
    store.close()
    assert not held(temporary)


KILLED = """
import os, signal, sys, tempfile
from raytrain_speedup.scaling.uri_store import UriStore
tempfile.tempdir, uri = sys.argv[1:]
store = UriStore(uri)
(store.begin(7) / "run.pt").write_bytes(bytes(1000))
with store.fetched("checkpoint-000002", 0):
    print("both held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("by", ["the next copy", "the next checkpoint", "the driver"])
def test_what_a_killed_process_leaves_goes_with_the_next_one(by: str, begun: Path, temporary: Path) -> None:
    """And while it lives, nobody takes it away."""
    arguments = [sys.executable, "-c", KILLED, str(temporary), begun.as_uri()]
    store = UriStore(begun.as_uri())
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "both held\n"
        of_the_other = set(held(temporary))
        assert len(of_the_other) == 2
        comes_by(by, store)
        assert set(held(temporary)) == of_the_other
        other.send_signal(signal.SIGKILL)
    assert set(held(temporary)) == of_the_other
    comes_by(by, store)
    assert not held(temporary)


def comes_by(by: str, store: UriStore) -> None:
    if by == "the next copy":
        with store.fetched("checkpoint-000002", 0) as folder:
            assert (folder / "run.pt").is_file()
    elif by == "the next checkpoint":
        store.begin(8)
        store.close()
    else:
        store.clear()


def test_a_folder_that_all_see_is_read_where_it_is(tmp_path: Path, temporary: Path) -> None:
    with pytest.raises(Stopped):
        run(tiny(), Diary(tmp_path / "begun", stop_after=10), device=CPU)
    diary = Diary(tmp_path / "begun")
    assert diary.has_checkpoint() and not Diary(tmp_path / "new").has_checkpoint()
    with diary.fetched() as folder:
        assert folder == tmp_path / "begun" / "checkpoint-000002" == diary.latest()
        assert not held(temporary)
    assert (folder / "run.pt").is_file()


@pytest.fixture
def s3() -> Iterator[LoopbackS3]:
    with LoopbackS3().running() as server:
        yield server


def test_a_distillation_that_goes_on_reads_its_checkpoint_once(
    s3: LoopbackS3, tmp_path: Path, temporary: Path
) -> None:
    """Though whether there is one is asked again, before the teacher would be saved."""
    with pytest.raises(Stopped):
        run(distilled(), UriDiary(tmp_path, uri=f"{s3.uri}/run", stop_after=2), device=CPU)
    s3.clear()
    diary = UriDiary(tmp_path, uri=f"{s3.uri}/run")
    run(distilled(), diary, device=CPU)
    read = [path for method, path, _ in s3.requests if method == "GET" and path.endswith("run.pt")]
    assert read == ["/data/run/checkpoint-000001/run.pt"]
    assert not any("partial" in report for report in diary.reports), "the teacher was saved again"
    assert not held(temporary)


calls: dict[str, Any] = {}


def main(run: Run) -> Any:
    return calls["main"](run)


def test_a_script_has_its_files_until_its_first_report(tmp_path: Path, temporary: Path) -> None:
    """And what it had begun when it failed is gone."""
    read: list[str] = []
    after_report: list[list[str]] = []

    def body(run: Run) -> dict[str, float]:
        if run.resumed_from is not None:
            read.append((run.resumed_from / "mine.txt").read_text())
        with run.training():
            time.sleep(0.01)
        (run.checkpoint_dir / "mine.txt").write_text("my own")
        run.report(progress=0.5, val_accuracy=90)
        run._reporter.settle()
        after_report.append(held(temporary))
        if not read:
            (run.checkpoint_dir / "mine.txt").write_text("not reported")
            raise ArithmeticError("lost")
        return {"test_accuracy": 91}

    calls["main"] = body
    content = {"name": "mine", "trainable": f"{Path(__file__).stem}:main"}
    experiment = load_script(content, {}, folder=Path(__file__).parent, where="mine.yaml")
    with pytest.raises(RunFailed, match="ArithmeticError: lost"):
        run_script(experiment, UriDiary(tmp_path / "run"))
    assert not held(temporary)
    run_script(experiment, UriDiary(tmp_path / "run"))
    assert read == ["my own"] and after_report == [[], []]
    assert not held(temporary)
