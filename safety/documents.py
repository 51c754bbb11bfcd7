"""YAML files as people write them: every way in which one cannot be read is a known error that says what to do."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import yaml

from safety.errors import ConfigError

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
SYNTAX = "correct the file's YAML"
KINDS = {
    "tuple_type": "it must be a list",
    "list_type": "it must be a list",
    "dict_type": "it must be a mapping of keys",
    "model_type": "it must be a mapping of keys",
}
"""Messages of pydantic's that name a type of Python, in the words of YAML."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses a key that stands twice: YAML's own rule, where PyYAML keeps the last."""

    # Where the document is composed, and not where mappings are made: there "<<" has already added other keys.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping's node; raise ComposerError for a key that stands twice."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node


def read_yaml(path: Path, *, field: str, what: str) -> Any:
    """Return the document in a YAML file of UTF-8, with or without a byte order mark; None when it is empty.

    Args:
        path: The file.
        field: The error's field.
        what: What the file should be, for the fix, such as "a run's YAML".

    Raises:
        ConfigError: There is no such file, it cannot be read, is not UTF-8, is not YAML, or has a key twice.
    """
    return _parsed(_text(path, field, what), path, field)


def read_mapping(path: Path, *, field: str, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; raises as ``read_yaml`` does, and for any other document."""
    document = read_yaml(path, field=field, what=what)
    if not isinstance(document, dict):
        found = "nothing" if document is None else f"a {type(document).__name__}"
        raise ConfigError(f"{path} holds {found} and no mapping of keys", field=field, fix=f"name {what}")
    odd = next((key for key in document if not isinstance(key, str)), None)
    if odd is not None:
        raise ConfigError(f"{path}: the key {odd!r} is no text", field=field, fix="put it in quotes, or remove it")
    return document


def _text(path: Path, field: str, what: str) -> str:
    try:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder", field=field, fix=f"name {what} in it")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"no file {path}", field=field, fix=f"name {what}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read: {reason}", field=field, fix=f"name {what}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith(UTF_16):
            kind = "UTF-16"
        else:
            line = data.count(b"\n", 0, error.start) + 1
            kind = f"another encoding (line {line} has the byte 0x{data[error.start]:02x})"
        raise ConfigError(f"{path} is in {kind}, not UTF-8", field=field, fix="save it as UTF-8") from None


def _parsed(text: str, path: Path, field: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader's subclass)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{path}{where}: not YAML: {error.problem}", field=field, fix=SYNTAX) from None
    # A date or number that cannot be, such as 2026-02-30, is a ValueError; unknown characters are a ReaderError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}", field=field, fix=SYNTAX) from None


def explain(problem: Any) -> tuple[str, str, str]:
    """Return the dotted field, the message and a fix of one of pydantic's problems with a document."""
    field = ".".join(map(str, problem["loc"])) or "the file"
    message = KINDS.get(problem["type"], str(problem["msg"]).removeprefix("Value error, "))
    given = problem.get("input")
    if problem["type"] in ("union_tag_not_found", "union_tag_invalid"):
        key, tags = problem["ctx"]["discriminator"].strip("'"), problem["ctx"].get("expected_tags")
        tag = problem["ctx"].get("tag")
        message = f"it has no {key!r}" if tag is None else f"there is no {key} {tag!r}"
        return field, message, f"set {field}.{key}" + (f" to one of: {tags}" if tags else "")
    if problem["type"] == "string_type" and isinstance(given, int | float | date) and not isinstance(given, bool):
        name = problem["loc"][-1]
        quoted = f'"{given}"' if isinstance(name, int) else f'{name}: "{given}"'
        kind = "date" if isinstance(given, date) else "number"
        return field, f"{given} is a {kind} and must be text", f"put it in quotes: {quoted}"
    return field, message, f"correct {field}"
