"""The report answers its reader's questions with the leaderboard's numbers; the row file can be judged again."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from written_sweep import NASTY, RATIOS, Written

from raytrain_speedup import cli
from raytrain_speedup.settings import UserError
from raytrain_speedup.tracking import store
from raytrain_speedup.tracking.leaderboard import leaderboard
from raytrain_speedup.tracking.report.chart import Point, axis, chart
from raytrain_speedup.tracking.report.content import Report, gather
from raytrain_speedup.tracking.report.html import element
from raytrain_speedup.tracking.report.page import html_page
from raytrain_speedup.tracking.report.submission import score
from raytrain_speedup.tuning.write_report import find_source, write_report

MOST_BYTES = 1_000_000
VOID = {"meta", "line", "path", "circle", "polyline"}


class Page(HTMLParser):
    """Texts by section heading, the table's cells, and whether every element was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.points: list[str] = []
        self.names: set[str] = set()
        self._heading = "top"
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self._heading = ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        kind = dict(attributes).get("class") or ""
        if tag == "g" and kind.startswith("point"):
            self.points.append(kind)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "h2" in self.open:
            self._heading += data
        elif not {"style", "script"} & set(self.open):
            self.sections[self._heading] = self.sections.get(self._heading, "") + data + " "


@pytest.fixture(scope="module")
def made(written: Written, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, str, Path]:
    """The report, its page, and the folder of both files."""
    folder = tmp_path_factory.mktemp("report")
    files = {"out": folder / "report.html", "submit": folder / "row.json"}
    report = write_report("written", tracking_uri=written.tracker.uri, **files)
    return report, files["out"].read_text(), folder


def test_the_page_answers_what_its_reader_asks(made: tuple[Report, str, Path], written: Written) -> None:
    _, text, _ = made
    page = Page(text)
    row = next(
        row
        for row in leaderboard("written", written.tracker.uri, parent=written.parent)
        if row.role == "winner"
    )
    assert row.verdict == "lossless" and row.interval is not None and row.speedup_interval is not None
    top = page.sections["top"]
    assert "trains 2.00 times as fast, -0.10 points" in top, "one sentence"
    low, high = row.interval
    assert f"between {low:+.2f} and {high:+.2f} (95 %)" in top, "at what accuracy"
    low, high = row.speedup_interval
    assert f"between {low:.2f} and {high:.2f} (90 %)" in top, "how much faster"
    assert "lossless over 3 seeds, margin 1 point, error 5%" in top, "how sure"
    assert f"speedup export {row.run_id[:8]}" in top, "how to use it"
    assert "load_schedule(" in page.sections["How to use it"]
    assert "models:/written-schedule@proven" in page.sections["How to use it"]


def test_what_it_cost_and_when_that_is_paid_back(made: tuple[Report, str, Path]) -> None:
    report, text, _ = made
    trials = sum(10 * (1 - ratio) + 1 for ratio in RATIOS)
    seconds = 5 * 11 + trials + 3 * 6 + 3 * 8 + 2.5
    assert report.cost.seconds == pytest.approx(seconds), "the stopped trial's too, up to its last epoch"
    assert (report.cost.runs, report.cost.unknown) == (18, 1), "the failed one was never heard of"
    assert report.cost.saved == pytest.approx(5.0)
    assert report.cost.pays_after == math.ceil(seconds / 5.0)
    assert (
        f"paid back after {report.cost.pays_after} such runs" in Page(text).sections["What the search cost"]
    )


def test_the_table_ranks_every_setting(made: tuple[Report, str, Path]) -> None:
    page = Page(made[1])
    head = next(row for row in page.rows if row and row[0] == "setting" and "speedup" in row)
    table = {row[0]: dict(zip(head, row, strict=True)) for row in page.rows if len(row) == len(head)}
    winner = table["infobatch anneal_from=0.55 prune_ratio=0.5"]
    assert winner["verdict"] == "lossless" and winner["seeds"] == "3"
    assert winner["saved"] == "50%" and winner["cost s"] == "5.0" and winner["speedup"].startswith("2.00 x")
    assert table["random saving=0.3"]["verdict"] == "lossy"
    assert sum(line["verdict"] == "trial" for line in table.values()) == len(RATIOS) - 1, "one was confirmed"
    below = page.sections["Every setting, best first"]
    assert "hardware: a desk" in below, "said once where all agree"
    assert "Nothing disturbed the runs" in below


def test_what_did_not_help_and_what_was_left_out(made: tuple[Report, str, Path]) -> None:
    report, text, _ = made
    sections = Page(text).sections
    assert "control: random saving=0.3: lossy, -3.92 points" in sections["Controls and negative results"]
    assert (
        "2 of 4 trials of the search ended more than the margin of 1 point"
        in (sections["Controls and negative results"])
    )
    assert {(one.state, one.reason) for one in report.left_out} == {
        ("stopped", "behind the others at 25%"),
        ("failed", NASTY),
    }
    assert "behind the others at 25%" in sections["Left out, and why"]
    assert "every confirmed setting has its verdict" in sections["Still missing for a verdict"]
    assert "pruning.prune_ratio" in sections["Which settings matter"]
    assert "training FLOPs" in sections["Quality against compute and against time"]


def test_it_is_one_small_file_and_text_stays_text(made: tuple[Report, str, Path]) -> None:
    text = made[1]
    page = Page(text)
    assert len(text.encode()) < MOST_BYTES
    assert not re.search(r"https?://|src=|@import|url\(", text), "nothing is asked for from elsewhere"
    assert "<script>alert" not in text and text.count("<script>") == 1
    assert NASTY in page.sections["top"] and NASTY in page.sections["Left out, and why"]
    assert element("p", NASTY, title=NASTY).count("<") == 2, "in an attribute too"
    assert sorted(page.points) == sorted(
        [*["point trial"] * 4, "point winner", "point control", "point baseline"]
    )


def test_seeds_and_time_that_a_verdict_lacks(written: Written) -> None:
    """Without the last seed of the winner there is no look; one more seed of both is asked for."""
    records = store.records(written.tracker, "written", parent=written.parent)
    fewer = [record for record in records if record.name != "trial-03-seed2"]
    report = gather(fewer, target="written")
    (lacking,) = [one for one in report.missing if one.row.role == "winner"]
    assert lacking.seeds == 1 and lacking.seconds == pytest.approx(6.0 + 11.0)
    sections = Page(html_page(report)).sections
    assert "speedup confirm written" in sections["Still missing for a verdict"]
    assert "not paid back yet" in sections["What the search cost"], "nothing is proven"
    assert "Too few trials" in sections["Which settings matter"]
    assert "No run was evaluated" in sections["Quality against compute and against time"]


def test_an_experiment_without_runs_is_a_page_too() -> None:
    sections = Page(html_page(gather([], target="empty"))).sections
    assert "No run has finished" in sections["Every setting, best first"]
    assert "nothing to use yet" in sections["How to use it"]


def test_the_row_file_is_judged_again(made: tuple[Report, str, Path], tmp_path: Path) -> None:
    report, _, folder = made
    row, wrong = score(folder / "row.json")
    assert wrong == [] and report.answer is not None
    assert row.to_dict() == report.answer.to_dict(), "from the runs in the file alone"
    content = json.loads((folder / "row.json").read_text())
    roles = {run["tags"]["speedup.role"] for run in content["runs"]}
    assert roles == {"baseline", "winner", "random"} and "user" not in json.dumps(content["runs"])
    found, content["claim"]["speedup"] = content["claim"]["speedup"], 3.0
    (tmp_path / "claim.json").write_text(json.dumps(content))
    assert score(tmp_path / "claim.json")[1] == [f"speedup: 3.0 is claimed, the runs say {found}"]
    content["claim"]["speedup"] = found
    winner = next(run for run in content["runs"] if run["name"] == "trial-03-seed1")
    winner["metrics"]["accuracy"] -= 5.0
    (tmp_path / "run.json").write_text(json.dumps(content))
    worse, wrong = score(tmp_path / "run.json")
    assert worse.verdict != "lossless"
    assert {"accuracy", "difference", "interval", "verdict"} == {line.partition(":")[0] for line in wrong}


@pytest.mark.parametrize("content", ["", "{}", '{"version": 2}', '{"version": 1, "claim": {}, "runs": [{}]}'])
def test_what_is_no_row_file_is_a_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text(content)
    with pytest.raises(UserError, match="row.json: "):
        score(tmp_path / "row.json")


def test_the_command(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["speedup", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    page, row, where = tmp_path / "r.html", tmp_path / "row.json", ("--tracking-uri", written.tracker.uri)
    assert command(written.parent[:8], "-o", page, "--submit", row, *where) == 0
    assert "trains 2.00 times as fast" in capsys.readouterr().out and page.exists()
    assert command("--score", row) == 0
    assert "lossless (margin 1)" in capsys.readouterr().out
    row.write_text(row.read_text().replace('"verdict": "lossless"', '"verdict": "lossy"'))
    assert command("--score", row) == 1
    assert "verdict: 'lossy' is claimed, the runs say 'lossless'" in capsys.readouterr().err
    assert command("no-such", *where) == 2
    assert "no-such: no such sweep or experiment" in capsys.readouterr().err
    assert find_source(written.tracker, "written").target == "written"


def test_points_stand_at_their_places() -> None:
    x, y = axis("x", "{:g}".format, [1.0, 2.0], margin=0.0), axis("y", "{:g}".format, [0.0, 4.0], margin=0.0)
    points = [Point(1.5, 1.0, "a", "t", x_interval=(1.25, 1.75)), Point(1.0, -9.0, "b", "t", label="low")]
    svg = ElementTree.fromstring(chart(x, y, points=points, name="n"))
    circle, bar = svg.find(".//circle"), svg.find(".//g/line[@class='bar']")
    assert circle is not None and bar is not None
    lines = [line for line in svg.findall("line") if line.get("class") == "grid"]
    heights = [float(line.get("y1", 0)) for line in lines if line.get("y1") == line.get("y2")]
    left, right = float(lines[0].get("x1", 0)), float(lines[0].get("x2", 0))
    assert heights == sorted(heights, reverse=True), "more is higher"
    expected = heights[0] + (heights[-1] - heights[0]) * (1.0 - y.ticks[0]) / (y.ticks[-1] - y.ticks[0])
    assert float(circle.get("cy", 0)) == pytest.approx(expected, abs=0.1), "between the grid lines around it"
    assert float(circle.get("cx", 0)) == pytest.approx((left + right) / 2)
    assert float(bar.get("x2", 0)) - float(bar.get("x1", 0)) == pytest.approx((right - left) / 2)
    assert svg.find(".//g/path") is not None, "below the frame: an arrow at its edge"
    assert "low -9" in "".join(svg.itertext())
