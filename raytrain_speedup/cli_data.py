"""`speedup data`: prepare large data sets. As in `cli.py`, every command is a few lines around a function."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.progress import Progress

console = Console()
errors = Console(stderr=True)

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Prepare large data sets.")


ImageColumn = Annotated[str, typer.Option(help="Parquet's column of image files")]
Shared = Annotated[
    bool,
    typer.Option("--shared", help="in a job of a Ray cluster: all nodes see these paths, and read too"),
]
LabelColumn = Annotated[str, typer.Option(help="Parquet's column of classes")]


class Fault(StrEnum):
    """What may be wrong with a sample, for --quarantine."""

    unreadable = "unreadable"
    misplaced = "misplaced"
    leaked = "leaked"
    duplicate = "duplicate"


class Layout(StrEnum):
    """How a made-up set lies on the disk."""

    tar = "tar"
    folder = "folder"


@commands.command("index")
def index_data(
    source: Annotated[
        str,
        typer.Argument(
            help="a tar or Parquet file, a folder of them, some of a folder ('data/train-*.parquet'), or a folder "
            "with one folder a class; or its URI (s3://...)"
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the index to write")],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="where neither folder nor .cls says the class: text file of lines NAME CLASS, or ILSVRC2012's "
            "development kit as downloaded"
        ),
    ] = None,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="files read at a time here; default: one for each core, 16 for a URI"),
    ] = None,
    shared: Shared = False,
) -> None:
    """Index samples in tar files, Parquet files or folders, to read each by its own bytes.

    Nothing is unpacked: ImageNet is read from its tar files as downloaded, the
    inner ones included, or from Hugging Face's Parquet files; what is pruned is never
    read. For data.source=index. In a job of a Ray cluster tasks on all nodes index a URI.

    speedup data index ILSVRC2012_img_train.tar -o train.index
    speedup data index ILSVRC2012_img_val.tar --labels ILSVRC2012_devkit_t12.tar.gz -o val.index
    speedup data index 'hf/data/train-*.parquet' -o train.index
    speedup data index s3://mine/shards -o train.index
    speedup train mine.yaml data.source=index data.train=train.index data.test=val.index
    """
    from raytrain_speedup.data.index.indexing import make_index

    pool = _nodes_for([source], shared=shared) if processes is None else None
    began = time.perf_counter()
    with _progress() as progress:
        index = make_index(
            source,
            out,
            labels=labels,
            image_column=image_column,
            label_column=label_column,
            processes=processes,
            pool=pool,
            progress=progress,
        )
    seconds = time.perf_counter() - began
    console.print(
        f"{out}: {len(index.rows):,} samples of {len(index.class_names):,} classes in {len(index.shards):,} files, "
        f"{len(index.rows) / max(seconds, 1e-9):,.0f} a second",
        highlight=False,
        soft_wrap=True,
    )


def _nodes_for(sources: list[str], *, shared: bool) -> Executor | None:
    """A cluster's nodes, where this is a job of one and all of them may read the sources."""
    from raytrain_speedup.data.index.object_store import is_remote, read_here

    if not shared and not all(map(is_remote, sources)):
        return None
    from raytrain_speedup.config import ScalingSettings
    from raytrain_speedup.scaling.cluster import connect, on_cluster
    from raytrain_speedup.scaling.ray_tasks import RayTasks
    from raytrain_speedup.settings import UserError

    if not on_cluster():
        if shared:
            raise UserError(
                "--shared: this is no job of a Ray cluster, whose nodes read; expected ray job submit"
            )
        return None
    connect(ScalingSettings())
    return RayTasks(read_here)


@commands.command("check")
def check_data(
    index: Annotated[Path, typer.Argument(help="index of the training data")],
    evaluated: Annotated[
        list[Path] | None, typer.Argument(help="indexes of validation and test data, whose images are leaked")
    ] = None,
    quarantine: Annotated[
        list[Fault] | None,
        typer.Option(
            "-q", "--quarantine", help="what to leave out; default: unreadable, misplaced and leaked"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tell, and write no list")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="on this machine; default: one for each core")
    ] = None,
    shared: Shared = False,
) -> None:
    """Read every sample of an index once, and put into quarantine what should not be trained on.

    Unreadable: no decoder takes it. Misplaced: the same file in several classes.
    Leaked: the same file in an index of validation or test data. Duplicate: the
    same file again in its class. The list is INDEX/quarantine.csv, for you to read
    and edit; trainings leave its rows out. In a job of a Ray cluster the samples of
    indexes of a URI are read and decoded by tasks on all of its nodes.

    speedup data check train.index val.index
    speedup data check train.index -q unreadable -q duplicate
    """
    from raytrain_speedup.data.index.checking import KINDS, check_samples, write_quarantine
    from raytrain_speedup.data.index.shards import QUARANTINE, open_index

    checked = open_index(index, "data check")
    others = [open_index(path, "data check") for path in evaluated or []]
    kinds = [kind.value for kind in quarantine] if quarantine else ["unreadable", "misplaced", "leaked"]
    roots = [one.root for one in (checked, *others)]
    pool = _nodes_for(roots, shared=shared) if processes is None else None
    with _progress() as progress:
        faults = check_samples(checked, others, processes=processes, pool=pool, progress=progress)
    table = Table("fault", "samples", "in quarantine", "the first")
    for kind in KINDS:
        found = [fault for fault in faults if fault.kind == kind]
        first = f"{found[0].where}: {found[0].why}" if found else ""
        table.add_row(kind, f"{len(found):,}", "yes" if found and kind in kinds else "", escape(first))
    console.print(table)
    count = sum(fault.kind in kinds for fault in faults)
    if not dry_run:
        write_quarantine(checked, faults, kinds)  # type: ignore[arg-type]
    listed = f" ({index / QUARANTINE})" if count and not dry_run else ""
    console.print(
        f"{count:,} of {len(checked.rows):,} samples {'would be' if dry_run else 'are'} left out{listed}",
        highlight=False,
        soft_wrap=True,
    )


@commands.command("synth")
def synth_data(
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the set to write")],
    images: Annotated[int, typer.Option(min=2, help="number of images")] = 10_000,
    classes: Annotated[int, typer.Option(min=2, help="number of classes")] = 100,
    size: Annotated[int, typer.Option(min=8, max=2048, help="image size in pixels")] = 224,
    layout: Annotated[
        Layout,
        typer.Option(help="tar: WebDataset shards, for `speedup data index`; folder: one for each class"),
    ] = Layout.tar,
    per_shard: Annotated[int, typer.Option(min=1, help="images of a tar file")] = 1000,
    seed: Annotated[int, typer.Option(help="another seed is another set of the same classes")] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="default: one for each core")] = None,
) -> None:
    """Make up a labelled set of images of any size, to try a set-up before its data are there.

    Half of what tells the classes apart is in low frequencies, half in high ones, so
    that a curriculum has something to learn early and something late.

    speedup data synth -o train --images 1000000 --classes 1000
    speedup data synth -o val --images 50000 --classes 1000 --seed 1
    speedup data index train -o train.index
    """
    from raytrain_speedup.data.synthetic import make_images

    began = time.perf_counter()
    with _progress() as progress:
        options = {
            "layout": layout.value,
            "per_shard": per_shard,
            "processes": processes,
            "progress": progress,
        }
        made = make_images(out, images=images, classes=classes, size=size, seed=seed, **options)  # type: ignore[arg-type]
    rate = images / max(time.perf_counter() - began, 1e-9)
    what = "tar files" if layout is Layout.tar else "folders"
    console.print(
        f"{out}: {images:,} images of {classes:,} classes in {len(made):,} {what}, {rate:,.0f} a second",
        highlight=False,
        soft_wrap=True,
    )


@commands.command("pack")
def pack_data(
    source: Annotated[
        str, typer.Argument(help="Parquet files; or an index, or anything that `speedup data index` takes")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the tar files to write")],
    labels: Annotated[Path | None, typer.Option(help="as of `speedup data index`")] = None,
    image_column: ImageColumn = "image",
    label_column: LabelColumn = "label",
    per_shard: Annotated[int, typer.Option(min=1, help="images of a tar file")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the order; Parquet files keep theirs")] = 0,
    processes: Annotated[int | None, typer.Option(min=1, help="default: one for each core")] = None,
) -> None:
    """Pack images into tar files: Parquet, loose files, or tar files sorted by class.

    For Parquet whose pages are only decompressed as a whole (zstd, gzip), for files that
    are slow to list, and to shuffle what is sorted by class. Files are copied as they
    are; what an index has in quarantine, and what is no image, is left out.

    speedup data pack hf/train -o shards && speedup data index shards -o train.index
    """
    from raytrain_speedup.data.index.packing import pack_images

    began = time.perf_counter()
    with _progress() as progress:
        count = pack_images(
            source,
            out,
            labels=labels,
            image_column=image_column,
            label_column=label_column,
            per_shard=per_shard,
            seed=seed,
            processes=processes,
            progress=progress,
        )
    rate = count / max(time.perf_counter() - began, 1e-9)
    console.print(f"{out}: {count:,} images, {rate:,.0f} a second", highlight=False, soft_wrap=True)


def _progress() -> Progress:
    from raytrain_speedup.terminal import LongProgress

    return LongProgress(errors)
