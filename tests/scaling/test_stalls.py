"""A worker that the others wait for in vain ends the run, by its rank."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import ray
import ray.train
import ray.train.collective
import torch
import torch.distributed as dist

from raytrain_speedup.config import ScalingSettings
from raytrain_speedup.scaling.board import EndAtMistake, TellFailures, new_board
from raytrain_speedup.scaling.group import fit_group, trainer_of
from raytrain_speedup.settings import RunFailed, Stalled, UserError

SECONDS = 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["gradients", pytest.param("report", marks=pytest.mark.slow)])
def test_who_is_waited_for_is_named(where: str, ray_session: None) -> None:
    def function() -> None:
        dist.all_reduce(torch.ones(1))
        if ray.train.get_context().get_world_rank() == 1:
            time.sleep(120)
        if where == "gradients":
            dist.all_reduce(torch.ones(1))
        else:
            ray.train.collective.barrier()

    scaling = ScalingSettings(workers=2, timeout=SECONDS, max_failures=0, start_timeout=200)
    board = new_board()
    with pytest.raises(RunFailed) as error:
        fit_group(trainer_of(function, scaling, name="stalled", callbacks=(TellFailures(board),)))
    cause = f"worker 0 waited {SECONDS} s for the others (scaling.timeout); not heard of meanwhile: worker 1"
    assert str(error.value) == f"{cause}; and again after every restart (scaling.max_failures)"
    assert ray.get(board.take.remote()) == [("failure", {"cause": cause})], "and so at a restart"


def test_what_did_not_come_may_come_after_a_restart(tmp_path: Path) -> None:
    """A mistake does not go away."""
    EndAtMistake().after_exception(None, {1: Stalled("data.timeout: no batch came")})
    with pytest.raises(UserError, match="a mistake"):
        EndAtMistake().after_exception(None, {1: UserError("a mistake")})
