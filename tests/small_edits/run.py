"""Small wrong edits, one by one: which test notices each?

    python tests/small_edits/run.py                    # all of them
    python tests/small_edits/run.py pruning loader     # two rooms
    python tests/small_edits/run.py -k "half magnitude"
    python tests/small_edits/run.py --fit              # seconds: does each edit still fit the code and its tests?
    python tests/small_edits/run.py --sound pruning    # a test that fails anyway would notice everything

A test that cannot fail proves nothing. Each `[[edit]]` of the TOML files beside this script is a mistake that a
person could make: a sign, a weight ignored, a split swapped, a seed dropped. The tree is copied, the edit is
made in the copy, the tests it names are run there, and the table says which of them failed. The exit status is
the number of edits that nobody noticed (or that no longer fit the code: they have to follow it). Not part of
the timed tests.

    [[edit]]
    name = "weights ignored in the loss"
    file = "raytrain_speedup/engine/learner.py"
    old = '''(loss * weight[piece]).sum()'''    # stands in the file exactly once
    new = '''loss.sum()'''
    tests = ["tests/engine/test_plain_loop.py"]  # arguments of pytest; the first failure counts

Most of a quick test is the import of torch and its like. So this process imports what does not change, and forks
for every edit: the fork sees the copy first on its path, and imports the package and its tests from there. Tests
that start Ray get a process of their own, for Ray's threads survive no fork. The garbage collector leaves alone
what was imported before the fork: pytest's own collections were half of the processor time of an edit.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import gc
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COPIED = ("raytrain_speedup", "tests", "search_spaces", "docs", "README.md", "cluster.yaml", "pyproject.toml")
PRELOADED = (
    *("hypothesis", "matplotlib.pyplot", "mlflow", "mlflow.pytorch", "numpy", "optuna", "PIL.Image"),
    *(
        "pyarrow.dataset",
        "pyarrow.parquet",
        "pydantic",
        "pytest",
        "ray.train.torch",
        "ray.tune",
        "rich.console",
    ),
    *("scipy.stats", "simplejpeg", "sklearn.datasets", "timm", "timm.data", "torch", "torchvision", "yaml"),
)
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?::.+?)(?: - .*)?$", re.MULTILINE)
TIMED_OUT = "from pytest-timeout"
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Edit:
    """A wrong edit, and the tests that should see it."""

    room: str
    name: str
    file: str
    old: str
    new: str
    tests: list[str]

    def misfit(self, tree: Path) -> str:
        """What keeps the edit from being made; empty if nothing does."""
        path = tree / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.exists() else 0
        return "" if count == 1 else f"DOES NOT FIT: the old text stands {count} times in {self.file}"


class Trial:
    """An edit made in a copy of the tree, while its tests run there."""

    def __init__(self, edit: Edit, tree: Path) -> None:
        self.edit, self.tree = edit, tree
        self._path = tree / edit.file
        self._text = self._path.read_text(encoding="utf-8")
        self._times = self._path.stat().st_atime_ns, self._path.stat().st_mtime_ns
        self._path.write_text(self._text.replace(edit.old, edit.new), encoding="utf-8")
        self._start = time.monotonic()
        self._output, self.process = start_pytest(["-x", *edit.tests], tree)

    def finish(self) -> tuple[str, float]:
        """Undo the edit. Who noticed: the id of a failing test, or in capitals what is wrong; and the seconds."""
        end(self.process)
        self._path.write_text(self._text, encoding="utf-8")
        os.utime(self._path, ns=self._times)  # so that its bytecode holds again
        seconds = time.monotonic() - self._start
        if (code := self.process.exitcode) == 0:
            return "NOBODY", seconds
        said = self._output.read_text(encoding="utf-8", errors="replace")
        found = FAILED.search(said)
        if found and TIMED_OUT in said:
            return f"TIMED OUT: {found[1]}", seconds
        return found[1] if found and code in (1, 2) else f"BROKEN: pytest says {said[-300:]}", seconds


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


def start_pytest(arguments: list[str], tree: Path) -> tuple[Path, multiprocessing.Process]:
    """Run pytest in a fork of this process, on a copy of the tree. Returns the file of its output, and the fork."""
    output = tree.with_suffix(".txt")
    process = FORK.Process(target=_pytest, args=(arguments, tree, output))
    process.start()
    return output, process


def end(process: multiprocessing.Process) -> None:
    """Wait for a fork, and end what it left behind: processes that a failed test does not wait for any more."""
    process.join()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _pytest(arguments: list[str], tree: Path, output: Path) -> None:
    os.setsid()
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.setdefault("SPEEDUP_DATA", str(ROOT.parent / "shared" / "data"))
    arguments = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "pytest_timeout", *arguments]
    if any(starts_ray(test, tree) for test in arguments if test.startswith("tests")):
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])
    sys.path[:0] = [str(tree)]
    sys.dont_write_bytecode = True
    code = importlib.import_module("pytest").main(arguments)
    sys.stdout.flush()
    os._exit(code)  # without joining processes that may wait for ever


def starts_ray(test: str, tree: Path) -> bool:
    """Whether a test, or one of a file, starts Ray; the other tests of the file may do so."""
    file, _, name = test.partition("::")
    parts = ast.parse((tree / file).read_text(encoding="utf-8")).body
    tests = {part for part in parts if getattr(part, "name", "").startswith("test_")}
    named = {part for part in tests if not name or part.name == name.split("[")[0]}
    return any("ray_session" in ast.unparse(part) for part in parts if part in named or part not in tests)


def try_all(tried: list[Edit], trees: list[Path]) -> int:
    """Try edits, in as many copies at a time as there are, and print who notices each. Returns the survivors."""
    waiting, running = list(tried), {}
    told: list[tuple[str, bool, float]] = []

    def tell(edit: Edit, caught: str, seconds: float = 0.0) -> None:
        print(f"{edit.room:<13} {edit.name:<64} {caught}  ({seconds:.0f} s)", flush=True)
        told.append((edit.room, not caught.split(":")[0].isupper(), seconds))

    try:
        while waiting or running:
            while waiting and trees:
                edit = waiting.pop(0)
                if misfit := edit.misfit(trees[-1]):
                    tell(edit, misfit)
                else:
                    trial = Trial(edit, trees.pop())
                    running[trial.process.sentinel] = trial
            for sentinel in wait(list(running)) if running else ():
                trial = running.pop(sentinel)
                tell(trial.edit, *trial.finish())
                trees.append(trial.tree)
    finally:  # after a Ctrl-C, which reaches this process alone
        for trial in running.values():
            trial.process.kill()
            end(trial.process)
    print("\n| room | edits | noticed | minutes |\n|---|--:|--:|--:|")
    for room in dict.fromkeys(room for room, *_ in told):
        noticed, seconds = zip(*(rest for one, *rest in told if one == room), strict=True)
        print(f"| {room} | {len(noticed)} | {sum(noticed)} | {sum(seconds) / 60:.1f} |")
    return sum(not noticed for _, noticed, _ in told)


def fit(tried: list[Edit], tree: Path) -> int:
    """Print which edits no longer fit the code, or name tests that are not there. Returns how many."""
    output, process = start_pytest(["--collect-only"], tree)
    end(process)
    collected = output.read_text(encoding="utf-8").splitlines()
    unfit = 0
    for edit in tried:
        named = [test for test in edit.tests if not test.startswith("-")]
        gone = [t for t in named if not any(f"{i}[".startswith((f"{t}[", f"{t}::")) for i in collected)]
        if found := edit.misfit(tree) or (f"NO SUCH TEST: {', '.join(gone)}" if gone else ""):
            unfit += 1
            print(f"{edit.room:<13} {edit.name:<64} {found}", flush=True)
    return unfit


def sound(tried: list[Edit], tree: Path) -> int:
    """Run the tests of the edits on the code as it is. Returns how many fail."""
    failed = 0
    for test in dict.fromkeys(test for edit in tried for test in edit.tests if not test.startswith("-")):
        output, process = start_pytest([test], tree)
        end(process)
        if process.exitcode:
            failed += 1
            print(f"{test} fails\n{output.read_text(encoding='utf-8')[-600:]}", flush=True)
    return failed


def main() -> int:
    """Try the edits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rooms", nargs="*", help="TOML files beside this script, without the ending")
    parser.add_argument("-k", default="", metavar="WORDS", help="only edits whose name holds these words")
    parser.add_argument("--fit", action="store_true", help="only say whether each edit still fits")
    parser.add_argument(
        "--sound", action="store_true", help="only say whether the tests pass without any edit"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="edits that are tried at a time")
    chosen = parser.parse_args()
    tried = edits(chosen.rooms, chosen.k)
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / f"tree{number}" for number in range(chosen.jobs)]
        for tree in trees:
            tree.mkdir()
            for name in COPIED:
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copy(ROOT / name, tree / name)
            compileall.compile_dir(tree / "raytrain_speedup", quiet=1)
        if chosen.sound:
            return min(sound(tried, trees[0]), 100)
        wrong = fit(tried, trees[0]) if chosen.fit else try_all(tried, trees)
    print(f"\n{len(tried)} edits, {len(tried) - wrong} {'fit' if chosen.fit else 'noticed'}, {wrong} not")
    return min(wrong, 100)


if __name__ == "__main__":
    sys.exit(main())
