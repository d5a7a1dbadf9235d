"""The command line. Every command is a few lines around a function of the package; imports wait until a
command needs them, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

app = typer.Typer(
    name="speedup",
    help="How much faster can this model train without losing accuracy, and with which settings?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

console = Console()
errors = Console(stderr=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="settings to change, such as train.epochs=5"),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow server or database; MLFLOW_TRACKING_URI, else SQLite in this folder"),
]


class WithKeys(typer.core.TyperCommand):
    """A command whose help lists every key of an experiment."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from raytrain_speedup.explain import keys_table

        super().format_help(ctx, formatter)
        console.print("\n[bold]Keys of an experiment[/bold] [dim](default)[/dim]", keys_table(), sep="\n")


@app.command(cls=WithKeys)
def train(
    experiment: Annotated[str, typer.Argument(help="a recipe (see `speedup recipes`) or a YAML file")],
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(help="folder or URI of an earlier run to go on with, such as runs/digits-1a2b3c"),
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Train one model, with or without an acceleration, and measure it.

    speedup train digits
    speedup train digits pruning.method=infobatch pruning.prune_ratio=0.4
    speedup train mine.yaml scaling.workers=2
    """
    from raytrain_speedup.scaling.launch import launch
    from raytrain_speedup.script import load_any
    from raytrain_speedup.terminal import TrainProgress, summary
    from raytrain_speedup.tracking.mlflow_log import log_run

    loaded = load_any(experiment, overrides or ())
    folder = _run_folder(loaded.scaling.storage, loaded.name, resume)
    console.print(f"[bold]{loaded.name}[/bold] in {folder}")
    with log_run(loaded, tracking_uri=tracking_uri) as log, TrainProgress(console, loaded.name) as progress:

        def listen(kind: str, metrics: Any) -> None:
            progress(kind, metrics)
            log(kind, metrics)

        metrics = launch(loaded, folder, listen)
    console.print(summary(metrics))


@app.command()
def preflight(
    experiment: Annotated[str, typer.Argument(help="a recipe (see `speedup recipes`) or a YAML file")],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="timed steps of every stage")] = 4,
) -> None:
    """Try a few steps of every stage of a curriculum before paying for any.

    Shows what each stage needs and which of them wait for images, and estimates
    time and speedup. What would stop the run in its last stage stops the preflight.

    speedup preflight digits curriculum.method=efficienttrain++
    """
    from raytrain_speedup.config import load_experiment
    from raytrain_speedup.engine.preflight import preflight as check
    from raytrain_speedup.terminal import preflight_table

    loaded = load_experiment(experiment, overrides or ())
    with console.status("[bold]preparing") as status:
        checked = check(
            loaded,
            steps=steps,
            on_check=lambda done: status.update(
                f"[bold]checked until {done.stage.ends_at:.0%}[/]: {done.size} pixels, "
                f"{done.device_rate:,.0f} samples/s"
            ),
        )
    console.print(preflight_table(checked, loaded))


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="show this recipe in full, every default written out")
    ] = None,
) -> None:
    """List the ready experiments, or show one.

    speedup recipes
    speedup recipes digits > mine.yaml
    """
    from raytrain_speedup.config import load_experiment
    from raytrain_speedup.config import recipes as ready

    if name is not None:
        text = load_experiment(name).to_yaml()
        if console.is_terminal:
            console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
        else:
            print(text, end="")  # to be a file
        return
    table = Table("recipe", "about")
    for recipe in ready():
        table.add_row(recipe, load_experiment(recipe).about)
    console.print(table)
    console.print(
        "[dim]speedup train RECIPE KEY=VALUE ...   trains one\n"
        "speedup recipes RECIPE               shows one in full\n"
        "speedup train --help                 explains every key[/dim]"
    )


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="a search space, such as search_spaces/quickstart.yaml")],
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(min=1, help="number of trials, instead of the file's")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of the search, instead of the file's")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="trials at a time, instead of the file's")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the plot and the schedule")] = Path(),
    resume: Annotated[
        bool, typer.Option(help="go on with the last sweep of this file; it may ask for more trials or seeds")
    ] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Search for the settings that train fastest without losing accuracy.

    A baseline runs first, then the trials. The best of them are confirmed
    against the baseline, seed by seed, until there is a verdict. Ends with a
    leaderboard, a plot of speedup against accuracy and, where a setting is
    proven lossless, its schedule.

    speedup sweep search_spaces/quickstart.yaml
    speedup sweep search_spaces/quickstart.yaml --trials 20 train.epochs=10
    speedup sweep search_spaces/quickstart.yaml --resume
    """
    from raytrain_speedup.tuning.sweep import sweep as run_sweep

    run_sweep(
        file,
        overrides=overrides or (),
        trials=trials,
        seed=seed,
        concurrency=concurrency,
        tracking_uri=tracking_uri,
        out=out,
        resume=resume,
        console=console,
    )


@app.command()
def confirm(
    target: Annotated[
        str, typer.Argument(help="a sweep's name (its last one), or the beginning of a run's id")
    ],
    max_seeds: Annotated[
        int | None, typer.Option(min=3, help="give up after so many seeds; more than planned extend the plan")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="points that count as no loss (single runs only)")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the plot and the schedule")] = Path(),
    tracking_uri: TrackingUri = None,
) -> None:
    """Run seeds until there is a verdict: lossless, lossy, or not to be known at this effort.

    Of a sweep, its winners go on where its plan ended. Of a single run or trial,
    its setting and its baseline run back to back, seed by seed.

    speedup confirm quickstart --max-seeds 20
    speedup confirm 1a2b3c4d
    """
    from raytrain_speedup.tuning.sweep import confirm as run_confirmation

    run_confirmation(
        target,
        max_seeds=max_seeds,
        margin=margin,
        tracking_uri=tracking_uri,
        out=out,
        console=console,
    )


@app.command()
def leaderboard(
    experiment: Annotated[str | None, typer.Option(help="MLflow experiment; all of them by default")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable rows")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """What is faster, by how much, at what accuracy, and how sure that is.

    speedup leaderboard --experiment quickstart
    speedup leaderboard --json
    """
    from raytrain_speedup.tracking.leaderboard import leaderboard as rows_of
    from raytrain_speedup.tracking.leaderboard import show

    rows = rows_of(experiment, tracking_uri=tracking_uri)
    if as_json:
        print(json.dumps([row.to_dict() for row in rows], indent=2))
    else:
        show(rows, console)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="run id (or its beginning), as the leaderboard shows it")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the schedule file to write")] = Path(
        "schedule.yaml"
    ),
    unproven: Annotated[
        bool, typer.Option("--unproven", help="also where no verdict says that it is lossless")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="also over another file")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the tuned schedule of a run, with its evidence, for `load_schedule` in any training loop.

    speedup export 1a2b3c4d -o schedule.yaml
    """
    from raytrain_speedup.tracking.export import export as export_run

    schedule = export_run(run, out, tracking_uri=tracking_uri, unproven=unproven, force=force)
    if not schedule.proven:
        console.print("[bold]not proven[/bold] lossless:", schedule.headline(), highlight=False)
    console.print(f"wrote {out}: {schedule.headline()}", highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point: a user's mistake is one message on stderr and exit code 2, never a traceback."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        code = _run_command()
    except KeyboardInterrupt:  # during the first imports
        code = INTERRUPTED
        errors.print("interrupted")
    sys.exit(code)


def _run_command() -> int:
    """Run the command; gives its exit code."""
    from raytrain_speedup.settings import UserError

    try:
        app()
    except UserError as error:
        errors.print(f"[bold red]error[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return error.exit_code
    except SystemExit as end:  # how typer ends, also after Ctrl-C
        if end.code == INTERRUPTED:
            errors.print("interrupted")
        return int(end.code or 0)
    return 0


def _run_folder(storage: str | None, name: str, resume: str | None) -> str:
    from raytrain_speedup.scaling.storage import exists, inside, may_hold_checkpoint
    from raytrain_speedup.settings import UserError

    if resume is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return inside(storage or "runs", f"{name}-{stamp}-{uuid.uuid4().hex[:4]}")
    if not exists(resume):
        raise UserError(f"--resume: {resume} is not a folder; expected the folder of an earlier run")
    if not may_hold_checkpoint(resume):
        raise UserError(f"--resume: {resume} holds no checkpoint; expected the folder of an earlier run")
    return resume


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
