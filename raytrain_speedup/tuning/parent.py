"""The MLflow run that holds a sweep: made, found again, and read back."""

from __future__ import annotations

from dataclasses import replace

import mlflow
import yaml
from mlflow.tracking import MlflowClient

from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.export import experiment_of
from raytrain_speedup.tracking.patience import PatientClient
from raytrain_speedup.tuning.space import MAY_DIFFER_ON_RESUME, Sweep, SweepSettings


def new_parent(client: PatientClient, sweep: Sweep, into: str) -> str:
    """A new MLflow run that holds the sweep."""
    tags = {store.SWEEP: sweep.key, "mlflow.runName": sweep.settings.name}
    return str(client.create_run(into, tags=tags).info.run_id)


def last_of(client: PatientClient, sweep: Sweep, into: str) -> str:
    """The MLflow run of the last sweep of the same question."""
    wanted = f"tags.`{store.SWEEP}` = '{sweep.key}'"
    found = client.search_runs([into], wanted, order_by=["attributes.start_time DESC"], max_results=1)
    if not found:
        raise UserError(
            f"--resume: MLflow experiment {sweep.tracked_as!r} holds no sweep of these settings; expected the file "
            "and overrides of the sweep that was interrupted (only "
            f"{', '.join(MAY_DIFFER_ON_RESUME)} may differ)"
        )
    return str(found[0].info.run_id)


def find_sweep(client: PatientClient, target: str) -> str | None:
    """The last sweep of a name, or the one whose MLflow run's id begins so."""
    experiments = [found.experiment_id for found in client.search_experiments()]
    newest = ["attributes.start_time DESC"]
    for run in client.search_runs(experiments, f"tags.`{store.SWEEP}` != ''", order_by=newest):
        if run.info.run_name == target or (len(target) >= 6 and run.info.run_id.startswith(target)):
            return str(run.info.run_id)
    return None


def read_sweep(client: PatientClient, parent: str) -> Sweep:
    """A sweep as its MLflow run has it."""
    settings = yaml.safe_load(mlflow.artifacts.load_text(f"runs:/{parent}/search_space.yaml"))
    return Sweep(SweepSettings.model_validate(settings), experiment_of(parent))


def past_runs(client: PatientClient, experiment: str, parent: str) -> list[store.Record]:
    """The runs of earlier runs of the sweep, none of them running: this driver holds the sweep."""
    client.update_run(parent, status="RUNNING")
    return [_settled(client, run) for run in store.records(client, experiment, parent=parent)]


def _settled(client: MlflowClient, run: store.Record) -> store.Record:
    """A run that its driver could not end, since it was killed, was interrupted."""
    if run.state != "running":
        return run
    client.set_tag(run.run_id, store.STATE, "interrupted")
    client.set_terminated(run.run_id, "KILLED")
    return replace(run, state="interrupted")
