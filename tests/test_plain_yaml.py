"""Files of plain values: written out in full, read in a moment or refused in a line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_speedup import plain_yaml
from raytrain_speedup.settings import UserError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def bomb(width: int = 9, depth: int = 9) -> str:
    """Under a kilobyte that stands for width ** depth values."""
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, depth)]
    return "\n".join(lines)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_values_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    file = tmp_path_factory.mktemp("plain") / "x.yaml"
    file.write_text(plain_yaml.dump(content), encoding="utf-8")
    assert plain_yaml.load(file) == content


def test_a_value_that_stands_twice_is_written_twice(tmp_path: Path) -> None:
    twice = [0.5, 0.25]
    text = plain_yaml.dump({"mean": twice, "std": twice})
    assert "&" not in text and "*" not in text
    (tmp_path / "x.yaml").write_text(text)
    assert plain_yaml.load(tmp_path / "x.yaml") == {"mean": twice, "std": twice}


def test_nested_aliases_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(bomb())
    assert file.stat().st_size < 1000
    begin = time.process_time()
    with pytest.raises(
        UserError, match=r"x\.yaml: not YAML: aliases \(\*a0\) are not allowed; expected every .* line 2"
    ):
        plain_yaml.load(file)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &x {b: *x}", "aliases"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: &x {c: 1}\nb: {<<: *x}", "aliases"),
        ("[" * 20_000, "nested too deeply"),
        ("a: " * 300 + "1", "not YAML"),
        ("a: 2026-99-99", "not YAML: month must be in"),
        ("a: 2026-01-01", "date is not JSON serializable"),
        ("a: !!set {b, c}", "set is not JSON serializable"),
        ("a: !!binary aGk=", "bytes is not JSON serializable"),
        ("a: {1: x, b: y}", "not supported between"),
        ("a: " + "9" * 5000, "not YAML: Exceeds the limit"),
        ("a: 1" + ":59" * 21_000, "not YAML: Exceeds the limit"),  # to base 60
        ("? [a]\n: 1", "not YAML: while constructing a mapping"),
        ("#" * (1 << 16) + "#", "is larger than 65536 bytes"),
    ],
)
def test_what_is_not_plain_is_refused_in_a_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        plain_yaml.load(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
