"""A folder of images with their prompts: in the image-folder form's ``metadata.csv``, or in a text file beside each."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from safety.prompts.pictures import Picture
from safety.prompts.sources.content import files_in
from safety.prompts.sources.source import (
    EMPTY,
    FIELD,
    NO_PICTURE,
    NO_SAFE,
    SourceConfig,
    SourceContent,
    SourceRow,
    sources,
    split_labels,
)
from safety.prompts.sources.text import Line, read_csv, read_text

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = ".txt"
NO_CAPTION = "no_caption"


class FolderConfig(SourceConfig):
    """The folder, and where its prompts stand."""

    source: Literal["folder"] = "folder"
    path: Path = Field(description="the folder, which all nodes see")
    metadata: str | None = Field(
        None,
        description="CSV in the folder that names the images, such as metadata.csv; none: NAME.txt beside each image has its prompt",
    )
    file: str = Field("file_name", description="column of the image; of a pair, the unsafe prompt's")
    prompt: str = Field("text", description="column of the prompt; of a pair, the unsafe one")
    safe_file: str | None = Field(None, description="column of the safe prompt's image, together with 'safe'")
    safe: str | None = Field(None, description="column of the safe prompt, together with 'safe_file'")
    category: str | None = Field(None, description="column of the category, or of several")
    all_category: str | None = Field(None, description="the category of every row, where no column says it")
    separator: str = Field(",", min_length=1, description="between several categories of one field")

    @model_validator(mode="after")
    def _is_whole(self) -> FolderConfig:
        if (self.safe is None) != (self.safe_file is None):
            raise ValueError("name both columns, 'safe' and 'safe_file', or neither")
        if self.metadata is None and (self.safe is not None or self.category is not None):
            raise ValueError("'safe', 'safe_file' and 'category' are columns of 'metadata'; name that file")
        return self

    def files(self) -> tuple[Path, ...]:
        """Return the images and the files of their prompts."""
        images = files_in(self.path, IMAGES, FIELD)
        if self.metadata is not None:
            return (*images, self.path / self.metadata)
        return (*images, *(path for path in map(_caption_file, images) if path.is_file()))


@sources.register("folder")
class FolderSource:
    """Reads the folder's prompts with their images."""

    config_type = FolderConfig

    @staticmethod
    def read(config: FolderConfig) -> SourceContent:
        """Return the rows; one whose image or prompt is missing is refused.

        Raises:
            ArtifactFormatError: There is no such folder, no image in it, or its CSV is not of that form.
        """
        images = files_in(config.path, IMAGES, FIELD)
        return _beside(config, images) if config.metadata is None else _by_metadata(config, images)


def _caption_file(image: Path) -> Path:
    return image.with_suffix(CAPTIONS)


def _beside(config: FolderConfig, images: tuple[Path, ...]) -> SourceContent:
    content = SourceContent([], 0)
    labels = () if config.all_category is None else (config.all_category,)
    for number, path in enumerate(images, 1):
        content.lines += 1
        if not _caption_file(path).is_file():
            content.refused[NO_CAPTION] += 1
            continue
        text, content.encoding = read_text(_caption_file(path), FIELD, config.encoding)
        prompt = " ".join(text.split())
        if prompt:
            content.rows.append(SourceRow(number, prompt, labels=labels, pictures=(_picture(path),)))
        else:
            content.refused[EMPTY] += 1
    return content


def _by_metadata(config: FolderConfig, images: tuple[Path, ...]) -> SourceContent:
    named = (config.file, config.prompt, config.safe_file, config.safe, config.category)
    columns = [name for name in named if name is not None]
    lines, encoding = read_csv(config.path / str(config.metadata), columns, FIELD, config.encoding)
    content = SourceContent([], 0, encoding=encoding)
    known = {path.relative_to(config.path).as_posix(): path for path in images}
    for line in lines:
        content.lines += 1
        row = _row(config, line, known)
        if not row.prompt:
            content.refused[EMPTY] += 1
        elif config.safe is not None and not row.safe:
            content.refused[NO_SAFE] += 1
        elif len(row.pictures) != (1 if config.safe is None else 2):
            content.refused[NO_PICTURE] += 1
        else:
            content.rows.append(row)
    return content


def _row(config: FolderConfig, line: Line, known: dict[str, Path]) -> SourceRow:
    """Return the row with those of its pictures that are in the folder."""
    files = [line.fields[name].replace("\\", "/") for name in (config.file, config.safe_file) if name is not None]
    labels = () if config.category is None else split_labels(line.fields[config.category], config.separator)
    return SourceRow(
        number=line.number,
        prompt=line.fields[config.prompt],
        safe=None if config.safe is None else line.fields[config.safe],
        labels=labels if config.all_category is None else (config.all_category,),
        pictures=tuple(_picture(known[name]) for name in files if name in known),
    )


def _picture(path: Path) -> Picture:
    return Picture(file=str(path.resolve()))
