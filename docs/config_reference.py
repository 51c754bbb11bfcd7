"""Writes ``docs/config.md``, the reference of a run's YAML, from the config's pydantic models: ``make docs``."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from jobs.run.config import RunConfig

TARGET = Path(__file__).parent / "config.md"
HEAD = """# Every key of a run's YAML

Written by `make docs` from the config's models, and held to them by a test: do not edit it by hand.

A run's YAML names only what differs from these defaults; `jobs/configs/emoji.yaml` is the demo's. An unknown key or a
wrong value is refused before anything starts, with the field and a fix, and the filled-in config is written beside the
results as `run.yaml`. Beside these keys, `extends: NAME` or `extends: PATH` takes over the keys of a
[preset](presets.md) or of another YAML.
"""
PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", Any: "any"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Section(NamedTuple):
    """The keys below one path of the YAML."""

    path: str
    """Dotted, such as "train.expert"; for one of several choices with its name behind it."""
    model: type[BaseModel]
    defaults: BaseModel | None
    """The instance that holds the defaults; None where the section is absent by default."""


def reference() -> str:
    """Return the whole document."""
    parts, seen = [HEAD], dict[str, str]()
    for section in sections(RunConfig, None, ""):
        if section.path:
            parts.append(f"## {section.path}\n")
        parts.append(f"{_summary(section.model)}\n")
        table = "\n".join(_table(section))
        if section.path and table in seen:
            parts.append(f"The keys and defaults of [{seen[table]}](#{_anchor(seen[table])}).\n")
        elif table:
            parts.append(table.replace("](#./", f"](#{_anchor(section.path)}") + "\n")
            seen[table] = section.path
        else:
            parts.append("It has no keys.\n")
    return "\n".join(parts)


def sections(model: type[BaseModel], defaults: BaseModel | None, path: str) -> Iterator[Section]:
    """Yield a model and, below it, every model that its fields hold, depth first."""
    yield Section(path, model, defaults)
    for name, field in model.model_fields.items():
        value = _default(field, name, defaults)
        below = f"{path}.{name}" if path else name
        found = choices(field.annotation)
        for choice in found:
            held = value if type(value) is choice else None
            yield from sections(choice, held, below if len(found) == 1 else f"{below} {_name(choice)}")


def choices(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a field may hold; a model with named subclasses stands for those."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [kind for kind in _subclasses(annotation) if _name(kind)] or [annotation]
    found = [model for part in get_args(annotation) for model in choices(part)]
    return list(dict.fromkeys(found))


def _subclasses(model: type[BaseModel]) -> list[type[BaseModel]]:
    below = [kind for child in model.__subclasses__() for kind in _subclasses(child)]
    return sorted([*model.__subclasses__(), *below], key=lambda kind: _name(kind) or "")


def _name(model: type[BaseModel]) -> str | None:
    """Return the literal that selects a model by its ``name``, None for a model without one."""
    field = model.model_fields.get("name")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").strip().split("\n\n")[0].split())


def _default(field: FieldInfo, name: str, defaults: BaseModel | None) -> Any:
    return field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)


def _table(section: Section) -> list[str]:
    rows = [_row(name, field, section) for name, field in section.model.model_fields.items()]
    return ["| key | type | default | description |", "|---|---|---|---|", *rows] if rows else []


def _row(name: str, field: FieldInfo, section: Section) -> str:
    value = _default(field, name, section.defaults)
    found = choices(field.annotation)
    links = [
        f"[{_name(choice) if len(found) > 1 else 'below'}](#./{_anchor(name + (_suffix(choice, found)))})"
        for choice in found
    ]
    kind = " or ".join(links) if found else _type(field.annotation, field.metadata)
    if found and get_origin(field.annotation) is tuple:
        kind = f"list of {kind}"
    if found and type(None) in get_args(field.annotation):
        kind += ", or null"
    cells = (f"`{name}`", kind, _shown(value), field.description or "")
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _suffix(choice: type[BaseModel], found: list[type[BaseModel]]) -> str:
    return f" {_name(choice)}" if len(found) > 1 else ""


def _anchor(heading: str) -> str:
    """Return a heading's anchor as GitHub makes it."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _shown(value: Any) -> str:
    """Return a default as YAML would have it on one line; a nested model's defaults stand in its own section."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return f"`{_name(type(value))}`" if _name(type(value)) else ""
    if isinstance(value, tuple) and value and all(isinstance(part, BaseModel) for part in value):
        return f"`{json.dumps([_name(type(part)) for part in value])}`"
    return f"`{json.dumps(to_jsonable_python(value), ensure_ascii=False)}`"


def _type(annotation: Any, metadata: list[Any]) -> str:
    """Return a type in words, with the bounds that a field sets."""
    bounds = " and ".join(
        f"{sign} {limit:g}"
        for entry in metadata
        for key, sign in BOUNDS.items()
        if (limit := getattr(entry, key, None)) is not None
    )
    return f"{_words(annotation)} {bounds}".strip()


def _words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(parts[0])
    if origin is Literal:
        return " or ".join(f"`{json.dumps(part)}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _words(part) for part in parts)
    if origin is tuple and parts[-1] is not Ellipsis:
        return f"list of {len(parts)}: {', '.join(map(_words, parts))}"
    if origin in (tuple, list, set, frozenset):
        return f"list of {_words(parts[0])}"
    if origin is dict:
        return f"mapping of {_words(parts[0])} to {_words(parts[1])}"
    return PLAIN.get(annotation, getattr(annotation, "__name__", str(annotation)))


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
