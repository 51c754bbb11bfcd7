"""Preference sets in pickapic form: each pair once, with the pictures that its rows have, whoever says which side is which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from safety.errors import ArtifactFormatError, ConfigError
from safety.prompts.pictures import Picture
from safety.prompts.sources.pickapic import PickapicConfig, PickapicSource
from safety.prompts.sources.source import SourceContent
from tests.support.picture_sets import picture, preference_rows, write_shards
from tests.support.traps import pickled, trapped

PAIRS = [
    (f"a broken thing {n}", f"a whole thing, number {n}", "violence" if n % 2 else "shocking, hate") for n in range(7)
]
COLUMNS = {"unsafe": "unsafe_prompt", "safe": "safe_prompt"}
CAPTIONS = "prompt,image,category\n" + "".join(
    f'{unsafe},u_idx_{n:07d}_0.jpg,Violence\n"{safe}",s_idx_{n:07d}_0.jpg,Violence\n'
    for n, (unsafe, safe, _) in enumerate(PAIRS)
)


def read(path: Path, **settings: Any) -> SourceContent:
    content = PickapicSource.read(PickapicConfig(path=path, **settings))
    assert content.lines == len(content.rows) + content.merged + content.refused.total()
    return content


def pictures(content: SourceContent) -> list[tuple[bytes, ...]]:
    return [tuple(each.read() for each in row.pictures) for row in content.rows]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.csv"
    path.write_text(CAPTIONS)
    return path


@pytest.mark.parametrize("structs", [False, True])
@pytest.mark.parametrize("winner_first", [False, True])
@pytest.mark.parametrize("way", ["columns", "side", "captions"])
def test_each_pair_is_read_once_with_its_pictures(
    way: str, winner_first: bool, structs: bool, tmp_path: Path, captions: Path
) -> None:
    rows = preference_rows(PAIRS, winner_first=winner_first)
    if way == "captions":
        # Only what the form itself has; a pair's rows stand in either order.
        rows = [{name: row[name] for name in ("caption", "jpg_0", "jpg_1", "label_0")} for row in rows]
        rows[2:4] = rows[3], rows[2]
    folder = write_shards(tmp_path / "set", rows, 3, structs=structs)
    ways: dict[str, dict[str, Any]] = {
        "columns": {**COLUMNS, "category": "category"},
        "side": {"side": "conditioned_on", "category": "category"},
        "captions": {"captions": captions},
    }
    content = read(folder, **ways[way])
    assert [(row.prompt, row.safe) for row in content.rows] == [(unsafe, safe) for unsafe, safe, _ in PAIRS]
    assert pictures(content) == [(picture(2 * n), picture(2 * n + 1)) for n in range(len(PAIRS))]
    assert (content.lines, content.merged) == (14, 7)
    named = [("Violence",) if way == "captions" else tuple(label.split(", ")) for _, _, label in PAIRS]
    assert [row.labels for row in content.rows] == named


def test_what_has_no_preference_caption_or_picture_is_counted(tmp_path: Path) -> None:
    rows = preference_rows(PAIRS)
    rows[0]["label_0"] = rows[1]["label_0"] = None
    rows[2]["caption"] = " "
    rows[4]["jpg_1"] = rows[5]["jpg_1"] = None
    for row in rows[6:8]:
        row["conditioned_on"] = "both"
    content = read(write_shards(tmp_path / "set", rows), side="conditioned_on")
    assert content.refused == {"no_preference": 2, "empty_prompt": 1, "one_caption": 3, "missing_picture": 2}
    assert [row.prompt for row in content.rows] == [unsafe for unsafe, _, _ in PAIRS[4:]]
    ties = preference_rows(PAIRS[:1])
    for row in ties:
        row["label_0"] = 0.5
    assert read(write_shards(tmp_path / "ties", ties, 1), **COLUMNS).refused == {"no_preference": 2}


def test_one_caption_names_its_pair_where_no_other_has_it(tmp_path: Path, captions: Path) -> None:
    captions.write_text(CAPTIONS + "a broken thing 3,u_idx_0000099_0.jpg,Hate\nanother,s_idx_0000099_0.jpg,Hate\n")
    rows = preference_rows(PAIRS)
    safe_only, twice, unknown = rows[5], rows[6], {**rows[8], "caption": "nobody wrote this"}
    content = read(write_shards(tmp_path / "set", [safe_only, twice, unknown], 1), captions=captions)
    assert [(row.prompt, row.safe) for row in content.rows] == [PAIRS[2][:2]]
    assert content.refused == {"unknown_caption": 2}


def test_what_does_not_say_which_caption_is_unsafe_is_refused(tmp_path: Path) -> None:
    for settings in ({}, {"unsafe": "unsafe_prompt"}, {**COLUMNS, "side": "conditioned_on"}):
        with pytest.raises(ValidationError, match="'unsafe'"):
            PickapicConfig.model_validate({"path": tmp_path, **settings})


def test_what_is_no_such_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactFormatError, match="no such folder"):
        read(tmp_path / "none", **COLUMNS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactFormatError, match="no file that ends in .parquet"):
        read(tmp_path / "empty", **COLUMNS)
    folder = write_shards(tmp_path / "set", preference_rows(PAIRS), 1)
    with pytest.raises(ArtifactFormatError, match="no column 'side', 'kind' among 'caption', 'jpg_0'"):
        read(folder, side="side", category="kind")
    (shard,) = folder.iterdir()
    data = shard.read_bytes()
    for broken in (b"", b"PAR1", data[:-9], data[: len(data) // 2], b"\0" * 64, data[:-8] + b"\xff\xff\xff\x7fPAR1"):
        shard.write_bytes(broken)
        with pytest.raises(ArtifactFormatError, match="is no parquet file"):
            read(folder, **COLUMNS)


def test_a_shard_with_damaged_rows_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "set", preference_rows(PAIRS), 1)
    (shard,) = folder.iterdir()
    data = bytearray(shard.read_bytes())
    data[4:400] = b"\xff" * 396
    shard.write_bytes(data)
    with pytest.raises(ArtifactFormatError, match="is damaged in row group 0"):
        read(folder, **COLUMNS)


@pytest.mark.parametrize("column", ["category", "jpg_0", "caption", "another"])
def test_no_value_of_a_foreign_file_runs_code(column: str, tmp_path: Path) -> None:
    marker, folder = tmp_path / "ran", tmp_path / "set"
    (shard,) = write_shards(folder, preference_rows(PAIRS[:1])[:1], 1).iterdir()
    shard.write_bytes(trapped(shard.read_bytes(), column, pickled(marker)))
    content = read(folder, side="conditioned_on", category="category")
    assert content.lines == 1
    assert not marker.exists()


def test_a_picture_that_this_machine_lacks_is_named(tmp_path: Path) -> None:
    for column in (None, "jpg_0"):
        with pytest.raises(ConfigError, match="cannot be read where rows are made") as refused:
            Picture(file=str(tmp_path / "gone"), column=column).read()
        assert refused.value.fix == "put the sources' pictures under a path that all nodes see"


def test_the_dataset_depends_on_what_shards_hold_and_not_on_where(tmp_path: Path) -> None:
    rows = preference_rows(PAIRS)
    first = PickapicConfig(path=write_shards(tmp_path / "a", rows), **COLUMNS)
    moved = PickapicConfig(path=write_shards(tmp_path / "b" / "c", rows), **COLUMNS)
    assert first.recipe() == moved.recipe()
    rows[0]["jpg_1"] = picture(99)
    other = PickapicConfig(path=write_shards(tmp_path / "d", rows), **COLUMNS)
    assert first.recipe() != other.recipe()
