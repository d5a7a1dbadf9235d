"""Every node is asked, really; what is wrong is told by node, in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raytrain_speedup.cli import app
from raytrain_speedup.scaling.check import NodeCheck, _compared, _try_storage, bus_bandwidth, check_nodes
from raytrain_speedup.settings import UserError

SOUND = NodeCheck(
    "a", 8, ("H100",), {"python": "3.11.7", "ray": "2.50", "torch": "2.12"}, clock_doubt=0.01, free_gb=100
)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"versions": SOUND.versions | {"torch": "2.11"}}, "torch 2.11, and 2.12 on the driver's node"),
        ({"clock": 1.5}, r"its clock is \+1\.5 s off"),
        ({"clock": -2.0}, r"its clock is -2\.0 s off"),
        ({"free_gb": 3.0}, r"3\.0 GB are free; expected 10"),
        ({"gpus": ("A10",)}, "1 x A10, and 1 x H100 on others"),
        ({"gpus": ("H100", "H100")}, "2 x H100, and 1 x H100 on others"),
    ],
)
def test_what_differs_from_the_drivers_node_is_a_fault(changes: dict, said: str) -> None:
    first, odd, third = _compared([SOUND, replace(SOUND, name="b", **changes), replace(SOUND, name="c")])
    assert first.faults == third.faults == ()
    (fault,) = odd.faults
    assert re.fullmatch(said, fault), fault


def test_what_is_no_fault() -> None:
    """A head without GPUs; a clock that nobody could ask fast enough; a fault that a node told itself stays."""
    checks = [
        replace(SOUND, gpus=()),
        SOUND,
        replace(SOUND, clock=3.0, clock_doubt=2.5),
        NodeCheck("gone", 8, faults=("it does not answer",)),
    ]
    assert [check.faults for check in _compared(checks)] == [(), (), (), ("it does not answer",)]


def test_storage_that_is_not_shared(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    with pytest.raises(OSError, match="what another node wrote is not there: it is not shared"):
        _try_storage(probe, "token")
    probe.mkdir()
    (probe / "token").write_text("another's")
    with pytest.raises(OSError, match="it is not shared"):
        _try_storage(probe, "token")
    (probe / "token").write_text("token")
    assert min(_try_storage(probe, "token")) > 0
    assert [path.name for path in probe.iterdir()] == ["token"]


def test_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert bus_bandwidth(2, 10**9, 0.5) == pytest.approx(2.0)
    assert bus_bandwidth(8, 10**9, 0.5) == pytest.approx(3.5)


def test_a_node_that_does_not_answer(ray_session: None) -> None:
    (check,) = check_nodes(seconds=0.01)
    assert check.faults == ("it does not answer",) and check.cpus == 2


def test_the_command_asks_the_node_and_two_workers(ray_session: None, tmp_path: Path) -> None:
    arguments = ["cluster", "check", "--storage", str(tmp_path / "runs"), "--workers", "2"]
    found = CliRunner().invoke(app, arguments)
    written = " ".join(found.output.split())
    assert found.exit_code == 0, written
    assert "all-reduce of 64 MiB among 2 workers:" in written
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left there"
    (check,) = check_nodes(tmp_path / "runs")
    assert check.faults == () and check.write is not None and check.read is not None
    assert abs(check.clock) <= check.clock_doubt + 0.01, "it is the driver's own clock"
    assert check.versions is not None and "missing" not in check.versions.values()


def test_storage_that_cannot_be_written_is_a_line(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"--storage: .*file.*cannot be written"):
        check_nodes(tmp_path / "file")
