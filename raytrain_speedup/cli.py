"""The command line. Every command is a few lines around a function of the package; imports wait until a
command needs them, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from raytrain_speedup import cli_cluster, cli_data
from raytrain_speedup.environment import set_environment

app = typer.Typer(
    name="speedup",
    help="How much faster can this model train without losing accuracy, and with which settings?",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

WATCH_SECONDS = 5.0

console = Console()
errors = Console(stderr=True)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="settings to change, such as train.epochs=5"),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="MLflow server or database, or json:FOLDER; MLFLOW_TRACKING_URI, else SQLite in this folder"
    ),
]


class WithKeys(typer.core.TyperCommand):
    """A command whose help lists every key of an experiment, those of its plugins among them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["said"] = [word for word in args if not word.startswith("-")]  # --help ends the parsing
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from raytrain_speedup.config import load_plugins
        from raytrain_speedup.explain import keys_table

        load_plugins(ctx.meta["said"])
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
    speedup train mine.yaml --help    # with the keys of its plugins
    """
    from raytrain_speedup.api import run, run_folder
    from raytrain_speedup.script import ScriptExperiment, load_any
    from raytrain_speedup.terminal import TrainProgress, summary

    loaded = load_any(experiment, overrides or ())
    folder = run_folder(loaded, resume)
    console.print(f"[bold]{loaded.name}[/bold] in {folder}")
    with TrainProgress(console, loaded.name) as progress:
        result = run(loaded, folder, tracking_uri=tracking_uri, listener=progress)
    console.print(
        summary(result.final, {} if isinstance(loaded, ScriptExperiment) else loaded.task.build().others)
    )


@app.command()
def preflight(
    experiment: Annotated[str, typer.Argument(help="a recipe (see `speedup recipes`) or a YAML file")],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="timed steps of every stage")] = 4,
    workers: Annotated[
        list[int] | None, typer.Option(min=1, help="what so many workers would take; may be given again")
    ] = None,
    link: Annotated[
        float, typer.Option(min=1e-3, help="GB/s between workers, as `speedup cluster check` measures it")
    ] = 10.0,
    price: Annotated[
        float | None, typer.Option(min=0, help="of an hour of a worker, in any currency")
    ] = None,
) -> None:
    """Try a few steps of every stage of a curriculum before paying for any.

    Shows what each stage needs and which of them wait for images, and estimates
    time and speedup. What would stop the run in its last stage stops the preflight.
    With --workers it says what others would take: each number's part of the batch is
    timed here, the exchange of gradients computed.

    speedup preflight digits curriculum.method=efficienttrain++
    speedup preflight imagenet1k-resnet50 --workers 1 --workers 8 --workers 32 --price 3.2
    """
    from raytrain_speedup.config import load_experiment
    from raytrain_speedup.engine.outlook import outlooks
    from raytrain_speedup.engine.preflight import StageCheck
    from raytrain_speedup.engine.preflight import preflight as check
    from raytrain_speedup.terminal import outlook_table, preflight_table

    loaded = load_experiment(experiment, overrides or ())
    with console.status("[bold]preparing") as status:

        def tell(done: StageCheck) -> None:
            status.update(
                f"[bold]checked until {done.stage.ends_at:.0%}[/]: {done.size} pixels, "
                f"{done.device_rate:,.0f} samples/s"
            )

        if not workers:
            shown = preflight_table(check(loaded, steps=steps, on_check=tell), loaded)
        else:
            counts = sorted(set(workers))
            found = list(outlooks(loaded, counts, link=link * 1e9, steps=steps, on_check=tell))
            shown = outlook_table(found, loaded, price=price)
    console.print(shown)


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
    from raytrain_speedup.experiment_file import recipes as ready

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
    fresh_baseline: Annotated[
        bool,
        typer.Option("--fresh-baseline", help="run every baseline, also those that an earlier sweep has run"),
    ] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Search for the settings that train fastest without losing accuracy.

    A baseline runs first, then the trials: the cheapest setting is searched for
    whose quality is at least that of the baseline less the file's margin
    (objective: cheapest-lossless), or all trades between the two (pareto). What
    will not reach the bound is stopped. The best are confirmed against the
    baseline, seed by seed, until there is a verdict; the safest first, and bolder
    ones as long as each is proven. Ends with a leaderboard, a plot of speedup
    against accuracy and, where a setting is proven lossless, its schedule. See
    docs/sweeps.md.

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
        fresh_baseline=fresh_baseline,
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
    experiment: Annotated[
        str | None, typer.Option(help="the tracker's experiment; all of them by default")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="rows to show; also !=, >= and <=, and patterns such as info*"
        ),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="as --where")] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="KEY", help="largest first; -KEY: smallest first")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable rows, every key")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="the same as CSV")] = False,
    every: Annotated[bool, typer.Option("--all", help="every trial, however many there are")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="show it again whenever it changes")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """What is faster, by how much, at what accuracy, and how sure that is.

    speedup leaderboard --experiment quickstart
    speedup leaderboard --where data=digits verdict=lossless --sort speedup
    speedup leaderboard --csv > runs.csv
    """
    from raytrain_speedup.tracking.leaderboard import leaderboard as rows_of
    from raytrain_speedup.tracking.query import sort as sorted_by
    from raytrain_speedup.tracking.query import where as chosen
    from raytrain_speedup.tracking.table import csv_table, show

    def draw() -> str:
        rows = chosen(rows_of(experiment, tracking_uri=tracking_uri), [*(where or ()), *(more or ())])
        rows = rows if sort is None else sorted_by(rows, sort)
        if as_json:
            return json.dumps([row.to_dict() for row in rows], indent=2) + "\n"
        if as_csv:
            return csv_table(rows)
        with console.capture() as drawn:
            show(rows, console, every=every)
        return drawn.get()

    _show_again(draw, watch=watch)


def _show_again(draw: Callable[[], str], *, watch: bool) -> None:
    """Print what is drawn; if it is watched, again whenever it is another, until Ctrl-C."""
    before, text = None, draw()
    while True:
        if text != before:
            if watch and console.is_terminal:
                console.clear()
            sys.stdout.write(text)
            sys.stdout.flush()
        if not watch:
            return
        try:
            time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:  # how one stops watching
            return
        before, text = text, draw()


@app.command()
def report(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[SWEEP]", help="a sweep's name (its last one), its run's id, or an experiment's name"
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="the HTML file to write")] = Path("report.html"),
    submit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the evidence as JSON too, to be scored again")
    ] = None,
    score: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="judge such a file by the runs in it; exit 1 if it claims otherwise"
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write one HTML file that answers: what is faster, by how much, how sure, at what cost, and how to use it.

    The last sweep by default. The file needs no network, and can be mailed or printed.

    speedup report quickstart -o report.html
    speedup report quickstart --submit row.json
    speedup report --score row.json
    """
    if score is not None:
        _score(score)
        return
    from raytrain_speedup.tuning.write_report import write_report

    written = write_report(target, out, submit=submit, tracking_uri=tracking_uri)
    console.print(written.sentence, highlight=False, soft_wrap=True)
    for file in filter(None, (out, submit)):
        console.print(f"wrote {file}", highlight=False, soft_wrap=True)


def _score(file: Path) -> None:
    """Say what a row file is worth.

    Raises:
        RunFailed: if it claims another result than its runs have.
    """
    from raytrain_speedup.settings import RunFailed
    from raytrain_speedup.tracking.outcome import verdict_sentence
    from raytrain_speedup.tracking.report.submission import score as scored

    row, wrong = scored(file)
    console.print(verdict_sentence([row]), highlight=False, soft_wrap=True)
    if wrong:
        raise RunFailed("\n".join(f"{file}: {line}" for line in wrong))


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


class Kind(StrEnum):
    """Of files that a user writes."""

    experiment = "experiment"
    sweep = "sweep"


@app.command()
def schema(
    kind: Annotated[Kind, typer.Argument(help="of which files")] = Kind.experiment,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="the JSON file to write, instead of printing it")
    ] = None,
) -> None:
    """Write the JSON schema of experiment or search-space files, for an editor.

    With it an editor completes keys, shows what they mean, and marks mistakes.
    In VS Code, with the YAML extension, a file's first line names its schema:

    speedup schema experiment -o experiment.schema.json
    # yaml-language-server: $schema=experiment.schema.json
    """
    from raytrain_speedup.schema import experiment_schema, sweep_schema

    if kind is Kind.experiment:
        found = experiment_schema()
    else:
        from raytrain_speedup.tuning.sweep_settings import SweepSettings

        found = sweep_schema(SweepSettings)
    text = json.dumps(found, indent=2) + "\n"
    if out is None:
        sys.stdout.write(text)
        return
    out.write_text(text, encoding="utf-8")
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


study = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(study, name="study")


@study.callback()
def _study() -> None:
    """A sweep for Optuna's own tools.

    speedup study export quickstart -o study.db
    """


@study.command("export")
def export_study(
    sweep_name: Annotated[
        str, typer.Argument(metavar="SWEEP", help="a sweep's name (its last one), or its run's id")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="the SQLite file to write")] = Path("study.db"),
    tracking_uri: TrackingUri = None,
) -> None:
    """Write the trials of a sweep as an Optuna study: values, states, curves, and what else is known of each.

    speedup study export quickstart -o study.db
    optuna-dashboard sqlite:///study.db        # pip install optuna-dashboard
    """
    from raytrain_speedup.tracking import open_tracker
    from raytrain_speedup.tuning.study import export_study as export_it

    written = export_it(open_tracker(tracking_uri), sweep_name, out)
    console.print(
        f"wrote {out}: study {written.study_name!r}, {len(written.trials)} trials",
        highlight=False,
        soft_wrap=True,
    )


schedules = typer.Typer(no_args_is_help=False, rich_markup_mode="rich")
app.add_typer(schedules, name="schedules")


@schedules.callback(invoke_without_command=True)
def list_schedules(
    context: typer.Context,
    name: Annotated[str | None, typer.Option(help="of this name only")] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """List the exported schedules by name; compare two; let an alias point at one.

    speedup schedules
    speedup schedules compare quickstart-schedule/1 quickstart-schedule@proven
    speedup schedules promote quickstart-schedule/2 production
    """
    from raytrain_speedup.tracking import open_tracker
    from raytrain_speedup.tracking.schedules import list_table

    if context.invoked_subcommand is None:
        console.print(list_table(open_tracker(tracking_uri), name))


@schedules.command("compare")
def compare_schedules(
    one: Annotated[str, typer.Argument(help="NAME@ALIAS, NAME/VERSION, or NAME for its newest")],
    other: Annotated[str, typer.Argument(help="likewise")],
    tracking_uri: TrackingUri = None,
) -> None:
    """Show every key in which two schedules differ, evidence included.

    speedup schedules compare quickstart-schedule/1 quickstart-schedule@proven
    """
    from raytrain_speedup.tracking import open_tracker
    from raytrain_speedup.tracking.schedules import compare_table

    console.print(compare_table(open_tracker(tracking_uri), (one, other)))


@schedules.command("promote")
def promote_schedule(
    name: Annotated[str, typer.Argument(help="NAME/VERSION, NAME@ALIAS, or NAME for its newest")],
    alias: Annotated[str, typer.Argument(help="such as production")],
    unproven: Annotated[
        bool, typer.Option("--unproven", help="also where no verdict says that it is lossless")
    ] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Let an alias point at a version: load_schedule("models:/NAME@ALIAS") finds it from now on.

    speedup schedules promote quickstart-schedule/2 production
    """
    from raytrain_speedup.tracking import open_tracker
    from raytrain_speedup.tracking.schedules import promote

    version = promote(open_tracker(tracking_uri), name, alias, unproven=unproven)
    console.print(f"{version.name}@{alias} is version {version.version} now", highlight=False)


app.add_typer(cli_data.commands, name="data")
app.add_typer(cli_cluster.commands, name="cluster")


def main() -> None:
    """Entry point: a user's mistake is one message on stderr and exit code 2, never a traceback."""
    set_environment()
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


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
