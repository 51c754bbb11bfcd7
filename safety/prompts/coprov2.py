"""Reader of the authors' CoProV2 training prompts, for use as a library: no job reads them yet.

The file is a CSV with the columns ``prompt,image,category``.

``u_idx_N_0.jpg`` names the unsafe and ``s_idx_N_0.jpg`` the safe member of pair N. A pair of several categories is
repeated once per category. Categories are spelled in several ways, and concepts are not named.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from safety.errors import ArtifactFormatError
from safety.prompts.rows import PairSplit, PromptPair

WRITER = "coprov2"
COLUMNS = ("prompt", "image", "category")
IMAGE = re.compile(r"(?P<member>[us])_idx_(?P<number>\d+)_\d+\.(?:jpg|jpeg|png)", re.IGNORECASE)
CATEGORIES = {
    "hate": "hate",
    "harrasment": "harassment",
    "harassment": "harassment",
    "violence": "violence",
    "selfharm": "self-harm",
    "sexual": "sexual",
    "shocking": "shocking",
    "illegalactivity": "illegal activity",
}


class _Found:
    """One pair's prompts and categories, gathered from the file's lines."""

    def __init__(self) -> None:
        self.prompts: dict[str, str] = {}
        self.categories: dict[str, None] = {}


def read_coprov2(path: Path, split: PairSplit = "train") -> tuple[PromptPair, ...]:
    """Return the file's pairs in the order of their numbers, each once.

    A pair of several categories has the first as its category, the others in ``other_categories``.

    Raises:
        ArtifactFormatError: The file is missing, or is no CSV in UTF-8; a column is missing, a category or image name is of no known spelling, a pair lacks a
            member, or a member has two prompts; the message names the line or the pair.
    """
    found: dict[int, _Found] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            _read_rows(path, csv.DictReader(file), found)
    except OSError as error:
        raise _wrong(path, f"it cannot be read: {error.strerror}", "name a CSV file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise _wrong(path, f"it is no CSV in UTF-8: {error}", "save it as CSV in UTF-8") from None
    return tuple(_pair(path, number, found[number], split) for number in sorted(found))


def _read_rows(path: Path, reader: csv.DictReader[str], found: dict[int, _Found]) -> None:
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise _wrong(path, f"line 1: no column {', '.join(missing)}", f"give the columns {', '.join(COLUMNS)}")
    for row in reader:
        _read_row(path, reader.line_num, row, found)


def _read_row(path: Path, line: int, row: dict[str, str | None], found: dict[int, _Found]) -> None:
    prompt, image, label = ((row[name] or "").strip() for name in COLUMNS)
    named = IMAGE.fullmatch(image)
    if named is None:
        raise _wrong(path, f"line {line}: the image {image!r}", "name images u_idx_N_0.jpg and s_idx_N_0.jpg")
    category = CATEGORIES.get(re.sub(r"[^a-z]", "", label.lower()))
    if category is None:
        raise _wrong(
            path, f"line {line}: the category {label!r}", f"use {', '.join(dict.fromkeys(CATEGORIES.values()))}"
        )
    if not prompt:
        raise _wrong(path, f"line {line}: the prompt is empty", "give a prompt")
    pair = found.setdefault(int(named["number"]), _Found())
    if pair.prompts.setdefault(named["member"].lower(), prompt) != prompt:
        raise _wrong(path, f"line {line}: {image} has another prompt above", "keep one prompt per image")
    pair.categories[category] = None


def _pair(path: Path, number: int, found: _Found, split: PairSplit) -> PromptPair:
    for member, name in (("u", "unsafe"), ("s", "safe")):
        if member not in found.prompts:
            raise _wrong(path, f"pair {number} has no {name} prompt", "give both members of each pair")
    first, *others = found.categories
    return PromptPair(
        pair_id=f"coprov2-{number:07d}",
        category=first,
        other_categories=tuple(others),
        concept=None,
        split=split,
        unsafe_prompt=found.prompts["u"],
        safe_prompt=found.prompts["s"],
        writer=WRITER,
    )


def _wrong(path: Path, message: str, fix: str) -> ArtifactFormatError:
    return ArtifactFormatError(f"{path.name}, {message}", field="coprov2", fix=fix)
