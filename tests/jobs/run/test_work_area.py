"""Resumption: what is finished is found again, and what is corrupt, foreign or missing is rebuilt."""

from __future__ import annotations

import logging
import pickle

import pytest
from pydantic import BaseModel

from cluster.errors import CorruptArtifact
from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import ArtifactRef
from jobs.run.work_area import NumberedGroups, Records, WorkArea
from safety.errors import ArtifactFormatError

REF, OTHER = ArtifactRef("dataset", "dataset-1"), ArtifactRef("dataset", "dataset-2")


def dump(text: str) -> bytes:
    return text.encode()


def load(data: bytes) -> str:
    if data.startswith(b"\xff"):
        raise ArtifactFormatError("not text", field="group", fix="write text")
    return data.decode()


class Score(BaseModel):
    value: float


@pytest.fixture
def area(store: ArtifactStore) -> WorkArea:
    return WorkArea(store, REF)


@pytest.fixture
def groups(store: ArtifactStore) -> NumberedGroups[str]:
    found = NumberedGroups(store, REF, dump, load)
    for number in (0, 12):
        found.write(number, f"group {number}")
    return found


def test_pieces_are_read_back_where_the_area_travels(area: WorkArea, store: ArtifactStore) -> None:
    area.write("a/1", b"one\nline")
    area.write("b", b"")
    there = pickle.loads(pickle.dumps(area))
    assert (there.read("a/1"), there.read("b"), there.read("c")) == (b"one\nline", b"", None)
    assert there.names() == ["a/1", "b"]
    assert there.names("a/") == ["a/1"]
    assert store.keys("") == ["work/dataset/dataset-1/a/1", "work/dataset/dataset-1/b"]
    there.delete("b")
    there.delete("never written")
    assert area.names() == ["a/1"]


def test_a_corrupt_piece_counts_as_missing_and_is_named(area: WorkArea, caplog: pytest.LogCaptureFixture) -> None:
    area.write("one", b"1")
    area.write("two", b"2")
    key = area.place + "one"
    whole = area.store.read(key) or b""
    mixed_up = area.store.read(area.place + "two") or b""
    for data in (b"", whole[:-1], whole + b"\n", whole[:3] + b"?" + whole[4:], mixed_up):
        area.store.write(key, data)
        with caplog.at_level(logging.WARNING):
            assert area.read("one") is None
        assert f"{key} is corrupt" in caplog.text
        caplog.clear()
    area.write("one", b"1")
    assert area.read("one") == b"1"


def test_another_artifacts_area_is_left_alone(area: WorkArea, store: ArtifactStore) -> None:
    other = WorkArea(store, OTHER)
    for each in (area, other):
        each.write("groups/000000.parquet", b"rows")
    store.write(f"{area.place}notes.txt", b"not ours")
    area.clear()
    assert area.names() == []
    assert other.read("groups/000000.parquet") == b"rows"


def test_finished_groups_are_found_by_number(groups: NumberedGroups[str]) -> None:
    assert groups.area.names() == ["groups/000000.parquet", "groups/000012.parquet"]
    there = pickle.loads(pickle.dumps(groups))
    assert there.numbers() == [0, 12]
    assert dict(there.all()) == {0: "group 0", 12: "group 12"}
    assert there.read(12) == "group 12"
    there.clear()
    assert groups.numbers() == []


def test_a_group_that_is_corrupt_or_unreadable_is_rebuilt(groups: NumberedGroups[str]) -> None:
    groups.area.store.write(f"{groups.area.place}groups/000000.parquet", b"half a fi")
    groups.area.write("groups/000003.parquet", b"\xff of another version")
    assert groups.numbers() == [0, 3, 12]
    assert dict(groups.all()) == {12: "group 12"}
    assert groups.verified() == {12}
    for number in (0, 3, 7):
        with pytest.raises(CorruptArtifact, match=rf"00000{number}\.parquet.*missing or corrupt.*run the job again"):
            groups.read(number)
    groups.write(0, "again")
    assert groups.read(0) == "again"


@pytest.mark.parametrize("name", ["000012-0a1b2c.parquet", "notes.txt", "12.parquet", "000001.parquet.partial"])
def test_an_unknown_key_stops_nothing_and_is_named(
    groups: NumberedGroups[str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    groups.area.store.write(f"{groups.area.place}groups/{name}", b"not ours")
    with caplog.at_level(logging.WARNING):
        assert dict(groups.all()) == {0: "group 0", 12: "group 12"}
    assert f"groups/{name} is not a group and is ignored" in caplog.text


def test_records_are_found_by_their_parameters(store: ArtifactStore) -> None:
    records = Records(store, REF)
    records.write("trials", {"x": 1, "y": "a"}, Score(value=0.5))
    records.write("scores", {"x": 1, "y": "a"}, Score(value=2.0))
    assert records.read("trials", {"y": "a", "x": 1}, Score) == Score(value=0.5)
    assert records.read("trials", {"x": 2}, Score) is None
    assert records.all("scores", Score) == [Score(value=2.0)]


def test_a_record_that_cannot_be_read_counts_as_missing(store: ArtifactStore) -> None:
    records = Records(store, REF)
    for number in range(3):
        records.write("trials", {"x": number}, Score(value=number))
    [first, second, _] = records.area.names("trials/")
    store.write(records.area.place + first, b"rubbish")
    records.area.write(second, b'{"of": "another version"}')
    assert len(records.all("trials", Score)) == 1
    assert [records.read("trials", {"x": number}, Score) for number in range(3)].count(None) == 2
