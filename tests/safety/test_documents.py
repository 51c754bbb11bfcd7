"""YAML as people write it: what cannot be read is a known error with its place and a fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.run.config import load_run
from safety.documents import read_yaml
from safety.errors import ConfigError
from safety.taxonomy import find_taxonomy
from serve.config import load_config

RUN = "run: {name: x, output: out}\n"
TAXONOMY = """
name: names
version: "1"
concepts: [{name: knife, category: violence, counterpart: spoon}]
benign: [{name: spoon}]
"""
READERS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "run": (load_run, RUN, "--config"),
    "endpoint": (load_config, RUN, "--config"),
    "taxonomy": (lambda path: find_taxonomy(str(path)), TAXONOMY, "taxonomy"),
}
BAD = {
    "UTF-16": (lambda text: text.encode("utf-16"), "UTF-16, not UTF-8", "save it as UTF-8"),
    "UTF-16 big": (lambda text: b"\xfe\xff" + text.encode("utf-16-be"), "UTF-16, not UTF-8", "save it as UTF-8"),
    "latin-1": (
        lambda text: text.encode() + "# é".encode("latin-1"),
        r"line \d+ has the byte 0xe9",
        "save it as UTF-8",
    ),
    "syntax": (lambda text: text.encode() + b"a: [1\n", r"line \d+, column \d+: not YAML", "correct the file's YAML"),
    "tab": (lambda text: text.encode() + b"a:\n\tb: 1\n", r"line \d+, column \d+: not YAML", "correct the file's YAML"),
    "NUL": (lambda text: text.encode() + b"a: \0\n", "not YAML", "correct the file's YAML"),
    "two keys": (lambda text: text.encode() + text.encode(), "stands twice", "correct the file's YAML"),
    "object": (lambda text: text.encode() + b"a: !!python/object/apply:os.getpid []\n", "not YAML", "correct"),
    "no date": (lambda text: text.encode() + b"a: 2026-02-30\n", "not YAML", "correct the file's YAML"),
    "deep": (lambda text: text.encode() + b"a: " + b"[" * 5000, "not YAML", "correct the file's YAML"),
    "two documents": (lambda text: text.encode() + b"---\na: 1\n", "not YAML", "correct the file's YAML"),
    "empty": (lambda text: b"", "holds nothing and no mapping", "name a"),
    "a list": (lambda text: b"[1]", "holds a list and no mapping", "name a"),
    "odd key": (lambda text: text.encode() + b"1: a\n", "the key 1 is no text", "in quotes"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_says_where_and_what_to_do(reader: str, kind: str, tmp_path: Path) -> None:
    read, text, field = READERS[reader]
    spoil, message, fix = BAD[kind]
    path = tmp_path / "file.yaml"
    path.write_bytes(spoil(text))
    with pytest.raises(ConfigError, match=message) as refused:
        read(path)
    assert refused.value.field == field
    assert fix in refused.value.fix
    assert str(path) in refused.value.message


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "message"), [("none.yaml", "no file"), (".", "is a folder"), ("a\0b", "cannot be")])
def test_what_is_no_file_is_a_known_error(reader: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        READERS[reader][0](tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_order_mark_does_no_harm(reader: str, tmp_path: Path) -> None:
    read, text, _ = READERS[reader]
    path = tmp_path / "file.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(path)


def test_a_key_may_stand_in_two_mappings_and_beside_a_merged_one(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: &x {k: 1}\nb: {c: &y {<<: *x, k: 2}}\nd: {<<: *y, k: 3}\n")
    assert read_yaml(path, field="f", what="w") == {"a": {"k": 1}, "b": {"c": {"k": 2}}, "d": {"k": 3}}
    path.write_text("a: {k: 1, b: 2, k: 3}\n")
    with pytest.raises(ConfigError, match=r"line 1, column 17: not YAML: the key 'k' stands twice"):
        read_yaml(path, field="f", what="w")
