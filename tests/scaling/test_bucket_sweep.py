"""A sweep whose checkpoints are in a bucket, by the command line: interrupted, resumed, and read to its end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loopback_s3 import LoopbackS3
from outside_ray import plain_environment

SPEEDUP = (sys.executable, "-m", "raytrain_speedup.cli")
EPOCHS = 8
SPACE = f"""
name: bucket
experiment: digits
overrides: {{data.image_size: 8, data.augment: none, train.epochs: {EPOCHS}}}
trial: {{pruning.method: infobatch}}
search:
  pruning.prune_ratio: {{type: float, low: 0.2, high: 0.6}}
trials: 1
baselines: 1
seeds: [0]
concurrency: 1
confirm: {{winners: 1, until: seeds}}
"""


def checkpoints(s3: LoopbackS3) -> dict[str, list[str]]:
    """The numbers of the checkpoints that were written whole, by run."""
    found: dict[str, list[str]] = {}
    for method, path, _ in list(s3.requests):
        place = re.fullmatch(r"/data/runs/bucket-\w+/(.*)-\w+/checkpoint-(\d+)/manifest.json", path)
        if method == "PUT" and place:
            found.setdefault(place[1], []).append(place[2])
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_in_a_bucket_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    here = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def run(*command: str) -> str:
        done = subprocess.run([*SPEEDUP, *command], env=environment, timeout=600, **here)
        assert done.returncode == 0, done.stdout
        return done.stdout

    with LoopbackS3().running() as s3:
        s3.put("runs/there", b"")
        environment = plain_environment() | {"COLUMNS": "160", "MLFLOW_DISABLE_TELEMETRY": "true"}
        sweep = ("sweep", "space.yaml", f"scaling.storage={s3.uri}/runs")
        begun = subprocess.Popen([*SPEEDUP, *sweep], env=environment, **here)
        until = time.monotonic() + 200
        while not checkpoints(s3) and begun.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        begun.send_signal(signal.SIGINT)
        said, _ = begun.communicate(timeout=120)
        assert begun.returncode == 130 and "with --resume goes on from here" in said, said
        assert run(*sweep, "--resume").count("  finished") == 4
        written = checkpoints(s3)
        assert len(written) == 4
        for name, numbers in written.items():  # one for each epoch and one at the end, none twice
            assert numbers == [f"{number:06d}" for number in range(EPOCHS + 1)], name
        found = re.search(r"infobatch prune_ratio=.*not yet known +(\w{8})", run("leaderboard"))
        assert found is not None
        run("export", found[1], "--unproven", "-o", "schedule.yaml")
        assert "method: infobatch" in (tmp_path / "schedule.yaml").read_text()
        run("report", "bucket", "-o", "report.html")
        assert "infobatch" in (tmp_path / "report.html").read_text()
        before = len(s3.requests)
        assert "finished" not in run(*sweep, "--resume")
        assert checkpoints(s3) == written and len(s3.requests) > before, "nothing is trained again"
