"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from raytrain_speedup import terminal
from raytrain_speedup.engine.final_metrics import FinalMetrics
from raytrain_speedup.metric import Direction
from raytrain_speedup.terminal import LongProgress, TrainProgress, epoch_line, summary, synthesis_line


def shown(progress: TrainProgress) -> str:
    """The last state of the bar, without colours."""
    with progress.console.capture() as capture:
        progress._bar.refresh()
        progress.console.print(progress._bar.get_renderable())
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capture.get()).strip().splitlines()[-1]


def told(metrics: dict[str, Any], **others: Direction) -> str:
    """The summary as text."""
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(summary(FinalMetrics.from_dict(metrics), others))
    return console.export_text()


def step(epoch: int, fraction: float, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "epochs": 4, "progress": fraction, "samples_shown": 1000 * fraction, **more}


def test_the_bar_says_whose_training_it_is():
    progress = TrainProgress(Console(file=io.StringIO(), force_terminal=True, width=160), "digits-dfkd")
    progress("progress", step(1, 0.1, of="teacher"))
    progress("progress", step(4, 0.9, of="teacher"))
    line = shown(progress)
    assert "teacher epoch 4/4" in line
    assert "90%" in line
    assert "kept" not in line
    progress("progress", step(1, 0.1))
    assert "left" not in shown(progress), "the teacher's pace says nothing of the student's"
    progress("progress", step(1, 0.2))
    line = shown(progress)
    assert "teacher" not in line
    assert re.search(r"epoch 1/4 · [\d,]+ samples/s · 0:00 left · 100% kept", line)


def test_the_bar_says_what_a_run_is_at_before_its_first_step():
    progress = TrainProgress(Console(file=io.StringIO(), force_terminal=True, width=160), "digits")
    progress("phase", {"name": "compiling, stage 2 of 3"})
    assert "compiling, stage 2 of 3" in shown(progress)
    progress("progress", step(1, 0.1))
    assert "compiling" not in shown(progress)


def test_a_log_has_the_phases_that_last(monkeypatch: pytest.MonkeyPatch):
    """As they are, not when they are over; those of a short run, and of later epochs, are nobody's business."""
    monkeypatch.setattr(terminal, "LASTS", 0.05)
    console = Console(file=io.StringIO(), width=80)
    with TrainProgress(console, "digits") as progress:
        for name, seconds in {"opening the data": 0.0, "waiting for 2 workers": 0.5}.items():
            progress("phase", {"name": name})
            time.sleep(seconds)
        assert console.file.getvalue() == "waiting for 2 workers ...\n"
        progress("progress", step(1, 0.1, of="teacher"))
        progress("phase", {"name": "loading the first batch"})
        time.sleep(0.5)
        progress("progress", step(1, 0.1))
        progress("phase", {"name": "planning epoch 2"})
        time.sleep(0.2)
        progress("phase", {"name": "the first step of epoch 2"})
    time.sleep(0.2)
    assert console.file.getvalue() == "waiting for 2 workers ...\nloading the first batch ...\n"


def test_long_work_is_a_line_now_and_then_in_a_log(monkeypatch: pytest.MonkeyPatch):
    """And none where it is short, or over."""
    monkeypatch.setattr(terminal, "EVERY", 0.1)
    out = io.StringIO()
    with LongProgress(Console(file=out, width=80)) as progress:
        for number in progress.track(range(4000), description="indexing"):
            time.sleep(0.4 if number == 1000 else 0)
        time.sleep(0.3)
    time.sleep(0.3)
    lines = out.getvalue().splitlines()
    assert lines and all(
        re.fullmatch(r"indexing: [\d,]+ of 4,000(, about \d+:\d\d left)?", line) for line in lines
    )
    assert not any(line.startswith("indexing: 4,000") for line in lines), "it is done"


def test_the_losses_of_synthesis_stand_below_their_epoch():
    losses = {"loss": 13.7, "bn": 12.0, "oh": 0.0432, "adv": -123456.0, "balance": -1.3}
    metrics = {"train_loss": 0.5, "synthesis_seconds": 3.0} | {f"synthesis_{k}": v for k, v in losses.items()}
    line = synthesis_line(metrics)
    assert line.split() == ["synthesis", "bn", "12", "oh", "0.0432", "adv", "-1.235e+05", "balance", "-1.3"]
    assert len(line) <= 80
    assert synthesis_line({"train_loss": 0.5, "synthesis_seconds": 0.0}) == ""
    console = Console(file=io.StringIO(), width=80)
    told = {"epoch": 1, "progress": 1.0, "kept_fraction": 1.0, "samples_per_second": 1.0}
    TrainProgress(console, "run")("report", told | metrics)
    epoch, below, *_ = console.file.getvalue().splitlines()
    assert epoch.startswith("epoch") and "bn 12" in below


def test_the_summary_of_a_run_without_data():
    metrics = {
        "accuracy": 98.9,
        "teacher_accuracy": 99.7,
        "val_agreement": 93.1,
        "train_seconds": 110.2,
        "synthesis_seconds": 57.1,
        "teacher_seconds": 14.7,
        "pool_images": 2400,
        "passes_saved": 0.0,
    }
    text = told(metrics)
    for label, value in (
        ("test accuracy", "98.90 %"),
        ("teacher's test accuracy", "99.70 %"),
        ("agreement with the teacher", "93.10 %"),
        ("preparing the teacher", "14.7 s"),
        ("of it, synthesis", "57.1 s"),
        ("synthetic images", "2,400"),
    ):
        assert re.search(rf"{label}\W+{re.escape(value)}", text), label
    assert "sample passes saved" not in text


def test_the_summary_names_the_tasks_metric():
    metrics = {"metric": "miou", "miou": 61.5, "teacher_miou": 64.0, "val_miou": 60.2, "pixel_accuracy": 91.0}
    metrics |= {"fade": 0.0, "drift": 0.12345, "unnamed": 1.0}
    text = told(metrics, pixel_accuracy="max", fade="max", drift="min", absent="max")
    assert "absent" not in text and "unnamed" not in text
    for label, value in (
        ("test mIoU", "61.50 %"),
        ("test pixel accuracy", "91.00 %"),
        ("test fade", "0.00 %"),
        ("test drift", "0.1235"),
        ("teacher's test mIoU", "64.00 %"),
        ("validation mIoU", "60.20 %"),
    ):
        assert re.search(rf"{label}\W+{re.escape(value)}", text), label


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"val_miou": 49.66, "val_pixel_accuracy": 88.01}, "mIoU 49.66 %"),
        ({"val_accuracy": 98.25}, "accuracy 98.25 %"),
        ({"val_agreement": 100.0}, "agreement 100.00 %"),
        ({}, "123,457 samples/s"),  # an epoch without evaluation
    ],
)
def test_an_epoch_is_a_line_of_80_columns_that_ends_with_the_metric_of_merit(
    metrics: dict[str, float], expected: str
):
    told = {"epoch": 100, "progress": 1.0, "train_loss": 12.3456, "kept_fraction": 1.0, "val_loss": 0.5}
    line = epoch_line(told | {"samples_per_second": 123456.7} | metrics)
    assert line.endswith(expected) and len(line) <= 80


def test_only_what_a_script_reports_is_a_line_of_its_own():
    """A checkpoint within an epoch, an image and the end are no news of an epoch."""
    progress = TrainProgress(Console(file=io.StringIO(), width=100), "mine")
    progress("report", {"epoch": 0, "partial": True})
    progress("image", {"name": "decisions-0001.png", "png": b""})
    progress("report", {"epoch": 2, "progress": 1.0, "val_accuracy": 90.0, "final": True})
    progress("report", {"epoch": 1, "progress": 0.5, "val_accuracy": 90.0})
    assert progress.console.file.getvalue() == "report   1   50%  val_accuracy 90\n"  # type: ignore[attr-defined]
