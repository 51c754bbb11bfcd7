"""Resumption: what is finished is found again, and what is corrupt, foreign or missing is rebuilt."""

from __future__ import annotations

import io
import logging
import pickle
import random
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from rich.console import Console

from cluster.errors import CorruptArtifact
from cluster.store.artifacts import ArtifactStore
from cluster.store.checksummed import write_checksummed_once
from jobs.evaluate.actors import FinishedGroups
from jobs.generate.groups import GroupStore
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.config import RunConfig
from jobs.run.work_area import NumberedGroups, Records, WorkArea
from jobs.stages import Stages
from safety.dataset.filter import RejectionReason
from safety.dataset.record import Record
from safety.errors import ArtifactFormatError, SchemaError
from safety.evaluation.records import RecordTable
from safety.prompts.rows import BenignPrompt
from tests.support.traps import as_parquet, pickled

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


@pytest.mark.parametrize(
    "name",
    [
        "000012-0a1b2c.parquet",
        "README.txt",
        "12.parquet",
        "000001.parquet.partial",
        "0000001.parquet",
        "000000/a.parquet",
    ],
)
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


@pytest.mark.parametrize("name", ["README.txt", "0.json", f"{'0' * 24}.json.partial", f"{'A' * 24}.json"])
def test_an_unknown_record_stops_nothing_and_is_named(
    store: ArtifactStore, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    records = Records(store, REF)
    records.write("trials", {"x": 1}, Score(value=1.0))
    records.area.write(f"trials/{name}", b'{"value": 2.0}')
    with caplog.at_level(logging.WARNING):
        assert records.all("trials", Score) == [Score(value=1.0)]
    assert f"trials/{name} is not a record and is ignored" in caplog.text


def test_a_finished_piece_is_never_replaced_by_another_writer(
    groups: NumberedGroups[str], store: ArtifactStore
) -> None:
    NumberedGroups(store, REF, dump, load).write(0, "of another writer")
    assert groups.read(0) == "group 0"
    records = Records(store, REF)
    for value in (1.0, 2.0):
        records.write("trials", {"x": 1}, Score(value=value))
    assert records.all("trials", Score) == [Score(value=1.0)]


@pytest.mark.parametrize("damage", [b"half a fi", b""])
def test_a_corrupt_piece_is_rebuilt_only_in_the_version_that_was_corrupt(store: ArtifactStore, damage: bytes) -> None:
    class Overtaken(ArtifactStore):
        """A store in which another writer rebuilds the piece just before ours would be written."""

        def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
            if if_match is not None:
                NumberedGroups(store, REF, dump, load).write(0, "rebuilt by another")
            super().write(key, data, if_absent=if_absent, if_match=if_match)

    store.write("work/dataset/dataset-1/groups/000000.parquet", damage)
    groups = NumberedGroups(Overtaken(store.config), REF, dump, load)
    groups.write(0, "rebuilt by us")
    assert groups.read(0) == "rebuilt by another"


def test_a_piece_that_never_stays_whole_ends_the_run(store: ArtifactStore) -> None:
    class Spoiled(ArtifactStore):
        """A store whose other writer damages the piece at every try."""

        def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
            store.write(key, random.randbytes(8))
            super().write(key, data, if_absent=if_absent, if_match=if_match)

    with pytest.raises(CorruptArtifact, match="groups/1: another writer keeps replacing it"):
        write_checksummed_once(Spoiled(store.config), "groups/1", b"rows", bool)


ROW = BenignPrompt(prompt_id="b", prompt="a house", split="train", writer="w")
REJECTED = Record(row=ROW, seed=1, reason=RejectionReason.BENIGN_FLAGGED)


def test_a_planted_group_is_refused_by_its_name_and_stays(store: ArtifactStore, tmp_path: Path) -> None:
    marker = tmp_path / "code ran"
    groups = FinishedGroups(store, REF)
    groups.area.write("groups/000000.parquet", as_parquet({"row": pickled(marker)}))
    key = "work/dataset/dataset-1/groups/000000.parquet"
    for use in (groups.verified, lambda: groups.read(0), lambda: groups.write(0, RecordTable(records=()))):
        with pytest.raises(SchemaError, match=rf"{key}: .*column 'row' is of the extension type.*delete the object"):
            use()
    assert not marker.exists()
    assert store.keys("") == [key]


def test_planted_figures_of_a_group_are_text_and_never_revived(store: ArtifactStore, tmp_path: Path) -> None:
    marker = tmp_path / "code ran"
    groups = GroupStore(store, REF)
    groups.write_empty({"states": torch.ones(1, 3)})
    for data in (as_parquet({"row": pickled(marker)}), b'{"category": "x"}', b"[" * 10_000):
        groups.area.write("groups/000000.json", data)
        assert groups.finished() == {}
    groups.store_group(0, [REJECTED], "m")
    assert groups.verified() == {0}
    assert not marker.exists()


def test_malformed_text_states_count_as_missing(store: ArtifactStore) -> None:
    groups = GroupStore(store, REF)
    groups.store_group(0, [REJECTED], "m")
    groups.area.write("empty.safetensors", b"another version's")
    assert groups.verified() == set()
    with pytest.raises(CorruptArtifact, match="missing or corrupt"):
        groups.read_empty()
    groups.write_empty({"states": torch.ones(1, 3)})
    assert groups.verified() == {0}
    assert groups.read_empty()["states"].tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("data", [b"soon", b"null", b'"1e999"', b"NaN", b"-1", b""])
def test_malformed_seconds_of_a_stage_count_as_missing(store: ArtifactStore, tmp_path: Path, data: bytes) -> None:
    run = RunConfig.model_validate({"run": {"name": "r", "output": str(tmp_path)}})
    stages = Stages(StageContext(run, store, tmp_path, Console(file=io.StringIO())))
    assert stages._made("generate", lambda: REF) == REF
    [key] = store.keys("work/seconds/")
    area = WorkArea(store, ArtifactRef("seconds", "generate"))
    area.write(key.removeprefix(area.place), data)
    assert stages._made("generate", lambda: REF) == REF
    assert stages.seconds["generate"] < 60
