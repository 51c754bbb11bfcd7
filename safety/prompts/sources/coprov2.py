"""The authors' CoProV2 prompts: CSVs with the columns ``prompt,image,category``.

In the training file ``u_idx_N_0.jpg`` names the unsafe and ``s_idx_N_0.jpg`` the safe member of pair N; in the test file
``N_0.jpg`` names an unsafe prompt without a safe side. What has several categories is repeated once per category.
Categories are spelled in several ways, and concepts are not named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from safety.errors import ArtifactFormatError
from safety.prompts.pictures import Picture
from safety.prompts.sources.content import files_in
from safety.prompts.sources.source import FIELD, NO_PICTURE, SourceConfig, SourceContent, SourceRow, sources
from safety.prompts.sources.text import Line, read_csv

IMAGES = (".jpg", ".jpeg", ".png")
COLUMNS = ("prompt", "image", "category")
IMAGE = re.compile(r"(?:(?P<member>[us])_idx_)?(?P<number>\d+)_\d+\.(?:jpg|jpeg|png)", re.IGNORECASE)
MEMBERS = {"u": "unsafe", "s": "safe"}
ALONE = "alone"
"""The member of a row without a safe side."""


class CoProV2Config(SourceConfig):
    """The training CSV, or the test CSV."""

    source: Literal["coprov2"] = "coprov2"
    images: Path | None = Field(
        None, description="folder of the images that the CSV names, which all nodes see; none: they are rendered"
    )

    def files(self) -> tuple[Path, ...]:
        """Return the CSV, and the images."""
        return (self.path,) if self.images is None else (self.path, *files_in(self.images, IMAGES, FIELD))


@dataclass
class _Found:
    """One pair's prompts and labels, gathered from the file's lines."""

    prompts: dict[str, str] = field(default_factory=dict)
    labels: dict[str, None] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)
    lines: int = 0


@sources.register("coprov2")
class CoProV2Source:
    """Reads the pairs in the order of their numbers, each once."""

    config_type = CoProV2Config

    @staticmethod
    def read(config: CoProV2Config) -> SourceContent:
        """Return the pairs.

        Raises:
            ArtifactFormatError: A column is missing, an image's name is of no known spelling, a pair lacks a member, or a
                member has two prompts; the message names the line or the pair.
        """
        lines, encoding = read_csv(config.path, COLUMNS, FIELD, config.encoding)
        found: dict[int, _Found] = {}
        content = SourceContent([], 0, encoding=encoding)
        for line in lines:
            content.lines += 1
            _gather(config.path.name, line, found)
        pairs = {number: _row(config.path.name, number, found[number]) for number in sorted(found)}
        if config.images is not None:
            pairs = {number: _with_pictures(row, found[number], config.images) for number, row in pairs.items()}
        whole = [
            number
            for number, row in pairs.items()
            if config.images is None or len(row.pictures) == len(found[number].images)
        ]
        content.rows = [pairs[number] for number in whole]
        lost = sum(found[number].lines for number in pairs.keys() - set(whole))
        content.refused.update({NO_PICTURE: lost} if lost else {})
        content.merged = content.lines - len(content.rows) - lost
        return content


def _gather(name: str, line: Line, found: dict[int, _Found]) -> None:
    prompt, image, label = (line.fields[column] for column in COLUMNS)
    named = IMAGE.fullmatch(image)
    if named is None:
        raise _wrong(
            f"{name}, line {line.number}: the image {image!r}",
            "name a pair's images u_idx_N_0.jpg and s_idx_N_0.jpg, a test prompt's N_0.jpg",
        )
    if not prompt:
        raise _wrong(f"{name}, line {line.number}: the prompt is empty", "give a prompt")
    pair = found.setdefault(int(named["number"]), _Found())
    member = (named["member"] or ALONE).lower()
    if pair.prompts.setdefault(member, prompt) != prompt:
        raise _wrong(f"{name}, line {line.number}: {image} has another prompt above", "keep one prompt per image")
    pair.images.setdefault(member, image)
    pair.lines += 1
    pair.labels[label] = None


def _row(name: str, number: int, found: _Found) -> SourceRow:
    if found.prompts.keys() == {ALONE}:
        return SourceRow(number, found.prompts[ALONE], labels=tuple(found.labels))
    for member, word in MEMBERS.items():
        if member not in found.prompts:
            raise _wrong(f"{name}, pair {number} has no {word} prompt", "give both members of each pair")
    return SourceRow(number, found.prompts["u"], found.prompts["s"], tuple(found.labels))


def _with_pictures(row: SourceRow, found: _Found, folder: Path) -> SourceRow:
    """Return the row with those of its pictures that are in the folder."""
    files = [folder / name for _, name in sorted(found.images.items(), reverse=True)]
    return replace(row, pictures=tuple(Picture(file=str(path.resolve())) for path in files if path.is_file()))


def _wrong(message: str, fix: str) -> ArtifactFormatError:
    return ArtifactFormatError(message, field=FIELD, fix=fix)
