"""What a person sees while a run goes on: a progress bar on a terminal, a line per epoch elsewhere, and one for
what lasts before the first step."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType

from rich import box
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from raytrain_speedup.config import Experiment
from raytrain_speedup.engine.final_metrics import FinalMetrics, is_final, metric_of
from raytrain_speedup.engine.outlook import Outlook
from raytrain_speedup.engine.preflight import Preflight
from raytrain_speedup.engine.reporter import Metrics
from raytrain_speedup.metric import Direction, Metric, spoken

LASTS = 2.0
"""Seconds that a phase takes before it is told where there is no bar: a short run stays quiet."""


EVERY = 10.0
"""Seconds between two lines about long work, where there is no terminal."""


class LongProgress(Progress):
    """How far long work is: bars on a terminal; elsewhere, as in the log of a job, a line now and then.

    Args:
        console: where to draw, or to print.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, transient=True, disable=not console.is_terminal)
        self._over = threading.Event()

    def start(self) -> None:
        super().start()
        if self.disable:
            threading.Thread(target=self._tell, daemon=True, name="progress").start()

    def stop(self) -> None:
        self._over.set()
        super().stop()

    def _tell(self) -> None:
        while not self._over.wait(EVERY):
            for task in self.tasks:
                if not task.total or task.finished:
                    continue
                line = f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}"
                if task.completed and task.elapsed:
                    line += f", about {duration(task.elapsed * (task.total / task.completed - 1))} left"
                self.console.print(line, highlight=False, soft_wrap=True)


class TrainProgress:
    """A listener that draws one run: what it is at, then epoch, samples per second, kept fraction, time left.

    Args:
        console: where to draw.
        title: what to call the run.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=1.0, metrics="preparing")
        self._kept_fraction = 1.0
        self._of = ""  # whose training is shown, where it is not the run's own
        self._first: tuple[float, float, float] | None = None  # time, progress, samples at the first sign
        self._lasting: threading.Timer | None = None  # tells a phase

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._enter(None)

    def __call__(self, kind: str, metrics: Metrics) -> None:
        self._enter(str(metrics["name"]) if kind == "phase" else None)
        if kind == "progress":
            self._move(float(metrics["progress"]), float(metrics["samples_shown"]), metrics)
        elif "kept_fraction" in metrics:
            self._kept_fraction = float(metrics["kept_fraction"])
            self.console.print(epoch_line(metrics), highlight=False)
            if losses := synthesis_line(metrics):
                self.console.print(losses, highlight=False)
        elif "progress" in metrics and not is_final(
            metrics
        ):  # nor a checkpoint within an epoch, nor an image
            self.console.print(script_line(metrics), highlight=False)

    def _enter(self, phase: str | None) -> None:
        """Show a phase on the bar; elsewhere write one down that lasts, until there are steps to be told of."""
        if self._lasting is not None:
            self._lasting.cancel()
            self._lasting = None
        if phase is not None and self.console.is_terminal:
            self._bar.update(self._task, metrics=phase)
        elif phase is not None and (self._first is None or self._of):
            self._lasting = threading.Timer(LASTS, self.console.print, [f"{phase} ..."], {"highlight": False})
            self._lasting.daemon = True
            self._lasting.start()

    def _move(self, progress: float, samples: float, metrics: Metrics) -> None:
        now, of = time.monotonic(), str(metrics.get("of", ""))
        if of != self._of:  # the student's rate is not the teacher's
            self._of, self._first = of, None
        self._first = self._first or (now, progress, samples)
        seconds, advanced, shown = now - self._first[0], progress - self._first[1], samples - self._first[2]
        text = f"{of} epoch {metrics['epoch']}/{metrics['epochs']}".lstrip()
        if seconds > 0 and advanced > 0:
            left = seconds * (1 - progress) / advanced
            text += f" · {shown / seconds:,.0f} samples/s · {duration(left)} left"
        if not of:
            text += f" · {self._kept_fraction:.0%} kept"
        self._bar.update(self._task, completed=progress, metrics=text)


def epoch_line(metrics: Metrics) -> str:
    """One finished epoch in a line that fits 80 columns: of the validation metrics the one of merit alone."""
    parts = [
        f"epoch {metrics['epoch']:>3}",
        f"{metrics['progress']:4.0%}",
        f"loss {metrics['train_loss']:.4f}",
        f"kept {metrics['kept_fraction']:4.0%}",
        f"{metrics['samples_per_second']:,.0f} samples/s",
    ]
    ranking = metric_of(metrics)
    known = {name.removeprefix("val_"): value for name, value in metrics.items() if name.startswith("val_")}
    merits = [ranking.name] if ranking.name in known else [name for name in known if name != "loss"]
    for name in merits[:1]:
        unit = ranking.unit if name == ranking.name else "%"  # without data the agreement with the teacher
        parts.append(f"{spoken(name)} {known[name]:.{2 if unit else 4}f} {unit}".rstrip())
    return "  ".join(parts)


def script_line(metrics: Metrics) -> str:
    """What a training script reported, in a line."""
    told = [f"{name} {value:.4g}" for name, value in metrics.items() if name.startswith("val_")]
    return "  ".join([f"report {metrics['epoch']:>3}", f"{metrics['progress']:4.0%}", *told])


def synthesis_line(metrics: Metrics) -> str:
    """The weighted losses of the epoch's last synthesis; empty where there is none."""
    losses = {
        name.removeprefix("synthesis_"): value
        for name, value in metrics.items()
        if name.startswith("synthesis_") and name not in ("synthesis_loss", "synthesis_seconds")
    }
    told = "  ".join(f"{name} {value:.4g}" for name, value in losses.items())
    return f"{'':9}  synthesis  {told}" if told else ""


def summary(run: FinalMetrics, others: Mapping[str, Direction] = MappingProxyType({})) -> Table:
    """The final metrics of a run, for people.

    Args:
        run: what is told.
        others: metrics of its task to be told beside the one that ranks runs, as `Task.others`.
    """
    table = Table(title="result", show_header=False, title_justify="left")
    metric, costs, found = run.metric, run.costs, run.metrics
    form = _form(metric)
    memory = None if costs.peak_memory_bytes is None else costs.peak_memory_bytes / 2**30
    beside = [Metric(name, direction) for name, direction in others.items()]
    found_out: dict[str, tuple[float | None, str]] = {
        f"test {metric.spoken}": (run.of("test"), form),
        **{f"test {other.spoken}": (found.get(other.key("test")), _form(other)) for other in beside},
        f"teacher's test {metric.spoken}": (found.get(f"teacher_{metric.name}"), form),
        "agreement with the teacher": (found.get("val_agreement"), "{:.2f} %"),
        f"validation {metric.spoken}": (run.of("validation"), form),
    }
    rows: dict[str, tuple[float | str | None, str]] = {
        "preparing the teacher": (costs.teacher_seconds, "{:.1f} s"),
        "training time": (costs.train_seconds, "{:.1f} s"),
        "cost, in reference steps": (costs.reference_steps, "{:,.0f}"),
        "of it, synthesis": (costs.synthesis_seconds, "{:.1f} s"),
        "synthetic images": (found.get("pool_images"), "{:,.0f}"),
        "evaluation": (costs.eval_seconds, "{:.1f} s"),
        "warm-up": (costs.warmup_seconds, "{:.1f} s"),
        "samples shown": (costs.samples_shown, "{:,.0f}"),
        "sample passes saved": (run.passes_saved, "{:.1%}"),
        "bytes read to train": (None if costs.bytes_read is None else costs.bytes_read / 1e6, "{:,.1f} MB"),
        "training FLOPs": (costs.train_flops, "{:.3g}"),
        "peak memory": (memory, "{:.2f} GiB"),
        "samples skipped": (run.samples_skipped, "{:.0f}"),
        "hardware": (run.hardware, "{}"),
    }
    told = {label: row for label, row in found_out.items() if row[0] is not None}  # an mAP of 0 is an answer
    for label, (value, text) in (told | {label: row for label, row in rows.items() if row[0]}).items():
        table.add_row(label, text.format(value))
    return table


def _form(metric: Metric) -> str:
    """How a value of it is written."""
    return f"{{:.{2 if metric.unit else 4}f}} {metric.unit}".rstrip()


def preflight_table(preflight: Preflight, experiment: Experiment) -> Group:
    """What a preflight found, stage by stage, what would mend those that wait, and what it comes to."""
    title = f"{experiment.name}, stage by stage"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in ("until", "size", "batch", "m", "replay", "device/s", "loader/s", "memory", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for check in preflight.checks:
        table.add_row(
            f"{check.stage.ends_at:.0%}",
            str(check.size),
            str(check.batch),
            _span(check.magnitudes),
            str(check.stage.replay),
            f"{check.device_rate:,.0f}",
            f"[yellow]{check.loader_rate:,.0f}[/]" if check.decode_bound else f"{check.loader_rate:,.0f}",
            f"{check.memory / 2**30:.1f} GiB",
            duration(check.seconds),
        )
    waiting = [
        f"[yellow]until {check.stage.ends_at:.0%} the device waits for images[/]: {check.remedy}"
        for check in preflight.checks
        if check.decode_bound
    ]
    workers = experiment.scaling.most_workers
    lines = [
        f"about {duration(preflight.seconds)} on {workers} worker{'s' if workers > 1 else ''} like this one, "
        f"{preflight.speedup:.2f}x faster than as many samples at full size",
    ]
    if experiment.pruning.method != "none":
        lines.append(f"what {experiment.pruning.method} saves comes on top of that")
    note = "[dim]samples/s of the device and of the loader; m: RandAugment magnitude[/dim]"
    return Group(table, note, *waiting, *lines)


def outlook_table(outlooks: Sequence[Outlook], experiment: Experiment, *, price: float | None) -> Group:
    """What a run would take on other numbers of workers, and what holds it up.

    Args:
        price: of an hour of a worker.
    """
    first = outlooks[0]
    table = Table(
        title=f"{experiment.name}, {first.preflight.gradient_bytes / 1e6:,.1f} MB of gradients",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    heads = ("workers", "batch", "time", "exchange", "efficiency", "read", "limit")
    for name in (*heads, *(["cost"] if price is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for one in outlooks:
        hours = one.workers * one.seconds / 3600
        reads = "" if one.input_rate is None else f"{one.input_rate / 1e6:,.1f} MB/s"
        table.add_row(
            f"{one.workers:,}",
            str(one.preflight.checks[-1].batch),
            duration(one.seconds),
            f"{one.exchange_seconds / one.seconds:.0%}",
            f"{first.seconds * first.workers / (one.seconds * one.workers):.0%}",
            reads,
            one.limit,
            *([f"{hours * price:,.2f}"] if price is not None else []),
        )
    note = (
        f"[dim]batch: of each worker, whose step was timed here; exchange: of gradients, computed for "
        f"{first.link / 1e9:g} GB/s (--link); limit: what holds the run up; efficiency against "
        f"{first.workers} worker{'s' if first.workers > 1 else ''}[/dim]"
    )
    return Group(table, note)


def _span(magnitudes: tuple[float | None, float | None]) -> str:
    """One magnitude, or the first and the last of several."""
    first, last = ("" if value is None else f"{value:g}" for value in magnitudes)
    return first if first == last else f"{first}-{last}"


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
