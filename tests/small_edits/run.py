"""Small wrong edits, one by one: which test notices each?

    python tests/small_edits/run.py                    # all of them
    python tests/small_edits/run.py pruning data       # two rooms
    python tests/small_edits/run.py -k "half magnitude"

A test that cannot fail proves nothing. Each `[[edit]]` of the TOML files beside this script is a mistake that a
person could make: a sign, a weight ignored, a split swapped, a seed dropped. The tree is copied, the edit is
made in the copy, the tests it names are run there, and the table says which of them failed. The exit status is
the number of edits that nobody noticed (or that no longer fit the code: they have to follow it). Not part of
the timed tests; an hour on two cores.

    [[edit]]
    name = "weights ignored in the loss"
    file = "raytrain_speedup/engine/learner.py"
    old = '''(loss * weight[piece]).sum()'''    # stands in the file exactly once
    new = '''loss.sum()'''
    tests = ["tests/engine/test_plain_loop.py"]  # arguments of pytest; the first failure counts
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COPIED = ("raytrain_speedup", "tests", "search_spaces", "docs", "README.md", "cluster.yaml", "pyproject.toml")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Edit:
    """A wrong edit, and the tests that should see it."""

    room: str
    name: str
    file: str
    old: str
    new: str
    tests: list[str]


def edits(rooms: list[str], words: str) -> list[Edit]:
    """The edits of some rooms (of all, if none is named) whose name holds `words`."""
    known = sorted(path.stem for path in HERE.glob("*.toml"))
    if unknown := set(rooms) - set(known):
        sys.exit(f"no such room: {', '.join(sorted(unknown))}; expected some of: {', '.join(known)}")
    read = [
        Edit(room, **entry)
        for room in rooms or known
        for entry in tomllib.loads((HERE / f"{room}.toml").read_text(encoding="utf-8"))["edit"]
    ]
    return [edit for edit in read if words in edit.name]


def try_edit(edit: Edit, tree: Path) -> str:
    """Who notices: the id of a failing test, or what is wrong with the edit or the tests, in capitals."""
    path = tree / edit.file
    text = path.read_text(encoding="utf-8")
    if (count := text.count(edit.old)) != 1:
        return f"DOES NOT FIT: the old text stands {count} times in {edit.file}"
    path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    try:
        return _first_failure(edit.tests, tree) or "NOBODY"
    finally:
        path.write_text(text, encoding="utf-8")


def _first_failure(tests: list[str], tree: Path) -> str | None:
    """The first test that fails, or None. Runs in the copy: its package comes before an installed one."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("SPEEDUP_DATA", str(ROOT.parent / "shared" / "data"))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    found = FAILED.search(done.stdout)
    return found[1] if found and done.returncode in (1, 2) else f"BROKEN: pytest says {done.stdout[-300:]}"


def main() -> int:
    """Try the edits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rooms", nargs="*", help="TOML files beside this script, without the ending")
    parser.add_argument("-k", default="", metavar="WORDS", help="only edits whose name holds these words")
    chosen = parser.parse_args()
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tree / name)
        tried = edits(chosen.rooms, chosen.k)
        for edit in tried:
            start = time.monotonic()
            caught = try_edit(edit, tree)
            survivors += caught.split(":")[0].isupper()
            print(f"{edit.room:<13} {edit.name:<64} {caught}  ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"\n{len(tried)} edits, {len(tried) - survivors} noticed, {survivors} not")
    return min(survivors, 100)


if __name__ == "__main__":
    sys.exit(main())
