"""Folders of images: each with its prompt, and what lacks one of the two is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from safety.errors import ArtifactFormatError
from safety.prompts.sources.coprov2 import CoProV2Config, CoProV2Source
from safety.prompts.sources.folder import FolderConfig, FolderSource
from safety.prompts.sources.source import SourceContent
from tests.support.picture_sets import picture


def read(config: FolderConfig | CoProV2Config) -> SourceContent:
    content = (FolderSource if isinstance(config, FolderConfig) else CoProV2Source).read(config)  # type: ignore[arg-type]
    assert content.lines == len(content.rows) + content.merged + content.refused.total()
    return content


def fill(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def test_each_image_has_the_text_beside_it(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "below/b.JPG", "c.webp", "d.png")
    (tmp_path / "a.txt").write_text("a house\nby a lake\n")
    (tmp_path / "below" / "b.txt").write_bytes("un café".encode("cp1252"))
    (tmp_path / "d.txt").write_text(" \n")
    content = read(FolderConfig(path=tmp_path))
    assert [(row.prompt, row.safe, row.labels) for row in content.rows] == [
        ("a house by a lake", None, ()),
        ("un café", None, ()),
    ]
    assert [row.pictures[0].read() for row in content.rows] == [picture(0), picture(1)]
    assert content.refused == {"no_caption": 1, "empty_prompt": 1}


def test_a_table_names_images_of_prompts_and_of_pairs(tmp_path: Path) -> None:
    fill(tmp_path, "u/1.png", "s/1.png", "u/2.png")
    (tmp_path / "metadata.csv").write_text(
        "file_name,text,safe_file,safe,kind\nu/1.png,one,s\\1.png,uno,hate\nu/2.png,two,s/2.png,due,hate\n"
        "../metadata.csv,three,s/1.png,tre,hate\nu/2.png,four,s/1.png,,hate\n"
    )
    pairs = FolderConfig(path=tmp_path, metadata="metadata.csv", safe_file="safe_file", safe="safe", category="kind")
    content = read(pairs)
    assert [(row.prompt, row.safe, row.labels) for row in content.rows] == [("one", "uno", ("hate",))]
    assert [each.read() for each in content.rows[0].pictures] == [picture(0), picture(1)]
    assert content.refused == {"missing_picture": 2, "no_safe_prompt": 1}
    alone = read(FolderConfig(path=tmp_path, metadata="metadata.csv"))
    assert [row.prompt for row in alone.rows] == ["one", "two", "four"]
    assert alone.refused == {"missing_picture": 1}


def test_what_is_no_such_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactFormatError, match="no file that ends in .png"):
        read(FolderConfig(path=tmp_path))
    fill(tmp_path, "a.png")
    with pytest.raises(ArtifactFormatError, match="metadata.csv cannot be read"):
        read(FolderConfig(path=tmp_path, metadata="metadata.csv"))
    for settings in ({"safe": "safe"}, {"category": "kind"}):
        with pytest.raises(ValidationError, match="name"):
            FolderConfig.model_validate({"path": tmp_path, **settings})


def test_the_authors_csv_with_their_images(tmp_path: Path) -> None:
    table, images = tmp_path / "train.csv", tmp_path / "images"
    lines = [f"{side} {n},{side}_idx_{n:07d}_0.jpg,{kind}" for n, kind in ((3, "Hate"), (5, "sexual")) for side in "us"]
    table.write_text("\n".join(["prompt,image,category", *lines, lines[0].replace("Hate", "Violence")]))
    fill(images, "u_idx_0000003_0.jpg", "s_idx_0000003_0.jpg", "u_idx_0000005_0.jpg")
    content = read(CoProV2Config(path=table, images=images))
    assert [(row.number, row.labels) for row in content.rows] == [(3, ("Hate", "Violence"))]
    assert [each.read() for each in content.rows[0].pictures] == [picture(0), picture(1)]
    assert content.refused == {"missing_picture": 2}
    without = read(CoProV2Config(path=table))
    assert [row.pictures for row in without.rows] == [(), ()]
    assert CoProV2Config(path=table).recipe() != CoProV2Config(path=table, images=images).recipe()


def test_texts_are_read_in_the_encoding_that_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes("воздушный змей".encode("cp1251"))
    (tmp_path / "metadata.csv").write_bytes("file_name,text\na.png,воздушный змей\n".encode("cp1251"))
    for config in (FolderConfig(path=tmp_path), FolderConfig(path=tmp_path, metadata="metadata.csv")):
        with pytest.raises(ArtifactFormatError, match="name its encoding"):
            read(config)
        assert read(config.model_copy(update={"encoding": "cp1251"})).rows[0].prompt == "воздушный змей"
