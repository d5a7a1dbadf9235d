"""`speedup cluster`: before and beside trainings on many nodes. As in `cli.py`, commands are a few lines each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console()
errors = Console(stderr=True)

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Look after a cluster.")


@commands.callback()
def _several() -> None:
    """Look after a cluster."""


DatabaseUri = Annotated[
    str | None, typer.Option(help="sqlite:///FILE; MLFLOW_TRACKING_URI, else SQLite in this folder")
]


@commands.command("check")
def check_cluster(
    storage: Annotated[
        str | None, typer.Option(help="folder or URI of the runs; written and read on every node")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=2, help="workers whose all-reduce is timed; default: it is not")
    ] = None,
    gpus_per_worker: Annotated[int, typer.Option(min=0, help="of these workers")] = 0,
) -> None:
    """Ask every node whether it is fit to train, before money is spent.

    Versions, GPUs, clock, free disk, the storage of the runs (is it shared, how
    fast is it), and how fast gradients are exchanged. Exits with 1 where anything
    is wrong. On a cluster, as a job:

    ray job submit --address http://127.0.0.1:8265 -- \\
        speedup cluster check --storage s3://bucket/runs --workers 8 --gpus-per-worker 1
    """
    from raytrain_speedup.config import ScalingSettings
    from raytrain_speedup.scaling.check import all_reduce, check_nodes
    from raytrain_speedup.scaling.cluster import connect

    scaling = ScalingSettings(workers=workers or 1, gpus_per_worker=gpus_per_worker)
    connect(scaling)
    with errors.status("asking every node"):
        checks = check_nodes(storage)
    table = Table("node", "CPUs", "GPUs", "Python, Ray, torch", "clock", "free", "storage MB/s", "")
    for check in checks:
        known = check.versions or {}
        gpus = f"{len(check.gpus)} x {check.gpus[0]}" if check.gpus else "-"
        known_speed = check.write is not None and check.read is not None
        speed = f"{check.write:.0f} write, {check.read:.0f} read" if known_speed else "-"
        table.add_row(
            check.name,
            f"{check.cpus:g}",
            gpus,
            ", ".join(known.get(name, "") for name in ("python", "ray", "torch")),
            f"{check.clock:+.2f} s",
            f"{check.free_gb:.0f} GB",
            speed,
            escape("; ".join(check.faults)) or "good",
        )
    console.print(table)
    if workers is not None:
        with errors.status(f"an all-reduce among {workers} workers"):
            speed = f"{all_reduce(scaling):.2f}"
        console.print(f"all-reduce of 64 MiB among {workers} workers: {speed} GB/s", highlight=False)
    faulty = sum(bool(check.faults) for check in checks)
    if faulty:
        errors.print(
            f"{faulty} of {len(checks)} nodes are not fit to train; see the last column", highlight=False
        )
        raise typer.Exit(1)


@commands.command("watch")
def watch_for_notice(
    every: Annotated[float, typer.Option(min=0.1, help="seconds between questions")] = 2.0,
    address: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the cluster; RAY_ADDRESS, else the one this machine is part of"),
    ] = None,
    node: Annotated[
        str | None, typer.Option(help="Ray's id of the node; default: all of this machine")
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(help="address of the metadata service; default: that of AWS and Google Cloud"),
    ] = None,
) -> None:
    """Pass the cloud's notice of a spot machine on to Ray; runs on every GPU node.

    Asks the machine's own metadata service, on AWS (two minutes' notice) and on
    Google Cloud (half a minute's); no credentials are needed. Then Ray starts
    nothing more on the node, and workers there save and go on elsewhere. Ends when
    that is told, or at once where there is no such service or another watcher.
    cluster.yaml starts it on every GPU node:

    setsid -f speedup cluster watch >> ~/watch.log 2>&1 < /dev/null
    """
    from raytrain_speedup.scaling.spot_notice import METADATA, drain, metadata_service, only_one, watch

    with only_one() as alone:
        if not alone:
            console.print("another watcher runs on this machine")
            return
        where = metadata or METADATA
        service = metadata_service(where)
        if service is None:
            console.print(
                f"{where}: no metadata service of AWS or Google Cloud; nothing to watch", soft_wrap=True
            )
            return
        console.print(f"watching for the notice of {service.cloud}", highlight=False)
        deadline, nodes = watch(service, lambda due: drain(due, address=address, node=node), every=every)
    left = max(deadline - time.time(), 0)
    console.print(
        f"taken back by {service.cloud} in {left:.0f} s: {', '.join(nodes)} drained",
        highlight=False,
        soft_wrap=True,
    )


@commands.command("kuberay")
def as_kuberay(
    file: Annotated[Path, typer.Argument(help="of Ray's launcher")] = Path("cluster.yaml"),
    image: Annotated[
        str, typer.Option(help="container with this package and its versions of Ray and torch")
    ] = "raytrain-speedup:latest",
    memory_per_cpu: Annotated[int, typer.Option(min=1, help="GiB that a pod asks for each CPU")] = 4,
) -> None:
    """Print the cluster of a cluster.yaml as a RayCluster of Kubernetes.

    Its pods mount two volume claims that you make: speedup-shared (of many nodes) at
    /mnt/shared, for checkpoints, and speedup-head at /mnt/head, for MLflow's database.

    speedup cluster kuberay --image registry/speedup:1 | kubectl apply -f -
    """
    from raytrain_speedup.scaling.manifests import as_yaml, kuberay, read_cluster

    sys.stdout.write(as_yaml(kuberay(read_cluster(file), image=image, memory_per_cpu=memory_per_cpu)))


@commands.command("gcp")
def as_google(
    project: Annotated[str, typer.Option(help="id of your project")],
    file: Annotated[Path, typer.Argument(help="of Ray's launcher, on AWS")] = Path("cluster.yaml"),
    zone: Annotated[str, typer.Option(help="of all nodes")] = "us-central1-a",
    machine: Annotated[
        str, typer.Option(help="of the GPU nodes; has the CPUs and GPUs that the file says")
    ] = "g2-standard-8",
    head_machine: Annotated[str, typer.Option(help="of the head")] = "e2-standard-4",
    bucket: Annotated[
        str, typer.Option(help="of Cloud Storage, where the head's database is kept")
    ] = "BUCKET-CHANGE-ME",
    share: Annotated[
        str | None, typer.Option(help="of Filestore, to be mounted at /mnt/shared: HOST:/NAME")
    ] = None,
) -> None:
    """Print the cluster of a cluster.yaml for Ray's launcher on Google Cloud.

    Its nodes are in the subnetwork "speedup", and GPU nodes have the service account
    speedup-worker; docs/cluster.md shows how to make both.

    speedup cluster gcp --project mine --bucket mine > gcp.yaml
    ray up gcp.yaml
    """
    from raytrain_speedup.scaling.google_cloud import on_google
    from raytrain_speedup.scaling.manifests import as_yaml, read_cluster

    cluster = on_google(
        read_cluster(file),
        project=project,
        zone=zone,
        machine=machine,
        head_machine=head_machine,
        bucket=bucket,
        share=share,
    )
    sys.stdout.write(as_yaml(cluster))


@commands.command("local")
def on_machines(
    head: Annotated[str, typer.Argument(help="address of the machine that steers, and trains nothing")],
    workers: Annotated[list[str], typer.Argument(help="addresses of those that train")],
    file: Annotated[Path, typer.Option("--cluster", help="of Ray's launcher, on AWS")] = Path("cluster.yaml"),
    user: Annotated[str, typer.Option(help="by whose name SSH is spoken; may use sudo")] = "ubuntu",
    key: Annotated[str, typer.Option(help="private key for that, where ray up runs")] = "~/.ssh/id_ed25519",
) -> None:
    """Print the cluster of a cluster.yaml for Ray's launcher on machines of your own.

    They need an SSH server, and a user with this key who may use sudo. The key
    is copied to the head, which starts Ray on the others. ray stop ends all of
    Ray on a machine, so let nobody else use Ray there.

    speedup cluster local 10.0.0.1 10.0.0.2 10.0.0.3 > local.yaml
    ray up local.yaml
    """
    from raytrain_speedup.scaling.manifests import as_yaml, read_cluster
    from raytrain_speedup.scaling.own_machines import on_own_machines

    cluster = on_own_machines(read_cluster(file), head=head, workers=workers, user=user, key=key)
    sys.stdout.write(as_yaml(cluster))


@commands.command("skypilot")
def as_skypilot(
    command: Annotated[str, typer.Argument(help="what runs on the first node")],
    file: Annotated[Path, typer.Option("--cluster", help="of Ray's launcher")] = Path("cluster.yaml"),
    accelerators: Annotated[str, typer.Option(help="of a node, as SkyPilot calls them")] = "L4:1",
    nodes: Annotated[int, typer.Option(min=1, help="how many")] = 1,
) -> None:
    """Print a command on a cluster as a task of SkyPilot, on whichever cloud is cheapest.

    speedup cluster skypilot --nodes 4 "speedup sweep search_spaces/combined.yaml" > sky.yaml
    sky launch sky.yaml
    """
    from raytrain_speedup.scaling.manifests import as_yaml, read_cluster, skypilot

    task = skypilot(read_cluster(file), accelerators=accelerators, nodes=nodes, command=command)
    sys.stdout.write(as_yaml(task))


@commands.command("backup")
def back_up_database(
    target: Annotated[str, typer.Argument(help="folder or URI, of this database alone: s3://bucket/head")],
    tracking_uri: DatabaseUri = None,
) -> None:
    """Keep MLflow's database, and what its runs wrote, where the head's disk is not.

    Runs may go on meanwhile; what was kept before is whole until this is. The head
    of cluster.yaml does it every ten minutes. Once more before the head goes:

    ray exec cluster.yaml 'speedup cluster backup s3://bucket/head'
    """
    from raytrain_speedup.tracking import uri_or_default
    from raytrain_speedup.tracking.mlflow_backup import back_up

    copied = back_up(uri_or_default(tracking_uri), target)
    said = f"{copied} files copied" if copied is not None else "there is no database yet"
    console.print(f"{target}: {said}", highlight=False, soft_wrap=True)


@commands.command("restore")
def restore_database(
    source: Annotated[str, typer.Argument(help="folder or URI of speedup cluster backup: s3://bucket/head")],
    tracking_uri: DatabaseUri = None,
) -> None:
    """Bring a kept database, and what its runs wrote, to this machine: a new head, or yours.

    A database that is there stays as it is.

    speedup cluster restore s3://bucket/head && speedup leaderboard
    """
    from raytrain_speedup.tracking import uri_or_default
    from raytrain_speedup.tracking.mlflow_backup import bring_back

    uri = uri_or_default(tracking_uri)
    copied = bring_back(source, uri)
    if copied is None:
        said = "is there already, and stays as it is"
    else:
        said = f"{copied} files copied" if copied else "nothing was kept yet"
    console.print(f"{uri}: {said}", highlight=False, soft_wrap=True)
