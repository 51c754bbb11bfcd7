"""Every reader of parquet reads by a declared schema: nothing in a file runs code, and other columns are named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safety.dataset.record import Record, dump_group, load_group
from safety.errors import ArtifactFormatError, SchemaError
from safety.evaluation.records import EvaluationSplit, ImageRecord, RecordTable
from safety.parquet import read_parquet
from safety.prompts.files import read_prompt_file, write_prompt_file
from safety.prompts.rows import BenignPrompt, PromptSet
from tests.support.traps import as_parquet, in_a_list, pickled, trapped

BENIGN = BenignPrompt(prompt_id="b", prompt="a house", split="test", writer="w")
IMAGE = ImageRecord(
    model="base",
    part=EvaluationSplit.TEST,
    prompt_id="p",
    prompt="a knife",
    category="hate",
    concept=None,
    objects=(),
    background=None,
    seed=1,
    shown=False,
    flagged=False,
    scores=(0.5,),
    present=None,
    seen_background=None,
    clip_score=0.0,
    features=(),
    image=None,
)
Reader = Callable[[bytes, Path], Any]


def read_prompts(data: bytes, folder: Path) -> PromptSet:
    path = folder / "prompts.parquet"
    path.write_bytes(data)
    return read_prompt_file(path)


def some_prompts(folder: Path) -> bytes:
    path = folder / "made.parquet"
    write_prompt_file(PromptSet(pairs=(), benign=(BENIGN,)), path)
    return path.read_bytes()


READERS: dict[str, tuple[Callable[[Path], bytes], Reader, str]] = {
    "group": (lambda _: dump_group([Record(row=BENIGN, seed=1)]), lambda data, _: load_group(data), "row"),
    "report": (
        lambda _: RecordTable(records=(IMAGE,), seconds=1.0).to_parquet(),
        lambda data, _: RecordTable.from_parquet(data),
        "prompt",
    ),
    "prompts": (some_prompts, read_prompts, "prompt"),
}
"""How a reader's file is made, the reader, and one of the columns."""
each_reader = pytest.mark.parametrize("reader", READERS)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code ran"


def test_the_trap_works(marker: Path) -> None:
    """Otherwise the tests below would prove nothing."""
    assert pq.read_table(pa.BufferReader(as_parquet({"a": pickled(marker)}))).to_pylist()
    assert marker.exists()


@each_reader
@pytest.mark.parametrize("make", [pickled, in_a_list])
@pytest.mark.parametrize("place", ["declared", "another"])
def test_no_reader_runs_what_a_file_holds(
    reader: str, make: Callable[[Path], Any], place: str, tmp_path: Path, marker: Path
) -> None:
    made, read, column = READERS[reader]
    name = column if place == "declared" else "extra"
    with pytest.raises(SchemaError, match=rf"column '{name}' is of the extension type 'ray.data.arrow_pickled_object'"):
        read(trapped(made(tmp_path), name, make(marker)), tmp_path)
    assert not marker.exists()


@each_reader
def test_every_reader_reads_its_own_file(reader: str, tmp_path: Path) -> None:
    made, read, _ = READERS[reader]
    assert read(made(tmp_path), tmp_path)


@each_reader
def test_missing_undeclared_and_retyped_columns_are_named(reader: str, tmp_path: Path) -> None:
    made, read, column = READERS[reader]
    table = pq.read_table(pa.BufferReader(made(tmp_path)))
    columns = {name: table.column(name) for name in table.column_names}
    for changed, message in (
        ({name: value for name, value in columns.items() if name != column}, f"column '{column}' is missing"),
        ({**columns, "extra": pa.array([1])}, "column 'extra' is not declared"),
        ({**columns, column: pa.array([1])}, f"column '{column}' is of the type int64 instead of string"),
    ):
        with pytest.raises(SchemaError, match=message):
            read(as_parquet(changed), tmp_path)


def test_canonical_extension_types_are_refused_too() -> None:
    data = as_parquet({"a": pa.array(["1"]).cast(pa.json_())})
    with pytest.raises(SchemaError, match=r"column 'a' is of the extension type 'arrow.json'"):
        read_parquet(data, pa.schema([("a", pa.string())]), misfit="no file", field="f", fix="none")


def test_a_type_that_unpickles_its_own_description_is_not_revived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's tensor types did from 2.49 to 2.54, and still do by a switch of the environment."""

    class Loud(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.int64(), "tests.loud")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Loud:
            raise AssertionError("revived")

    pa.register_extension_type(Loud())
    try:
        data = as_parquet({"a": pa.ExtensionArray.from_storage(Loud(), pa.array([1]))})
        with pytest.raises(SchemaError, match=r"tests\.loud"):
            read_parquet(data, pa.schema([("a", pa.int64())]), misfit="no file", field="f", fix="none")
    finally:
        pa.unregister_extension_type("tests.loud")


@each_reader
@pytest.mark.parametrize("cut", [0, 4, 8, 12, 100, -1, -4, -8, -20])
def test_a_file_that_is_cut_is_no_crash(reader: str, cut: int, tmp_path: Path) -> None:
    made, read, _ = READERS[reader]
    with pytest.raises(ArtifactFormatError):
        read(made(tmp_path)[:cut], tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "import pyarrow.parquet as pq; pq.read_table('x')",
        "from pyarrow.parquet import ParquetFile; ParquetFile('x')",
        "from pyarrow import parquet; parquet.ParquetDataset('x')",
        "import pyarrow.dataset as ds; ds.dataset('x')",
        "import pandas as pd; pd.read_parquet('x')",
        "import ray; ray.data.read_parquet('x')",
        "from ray.data import read_parquet; read_parquet('x')",
        "import torch; torch.load('x')",
        "import numpy as np; np.load('x')",
        "import pickle; pickle.loads(b'')",
        "import yaml; yaml.load('', yaml.Loader)",
    ],
)
@pytest.mark.parametrize("room", ["safety", "jobs"])
def test_the_linter_refuses_readers_without_a_schema(line: str, room: str) -> None:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--select", "TID251,S", "--stdin-filename"]
    found = subprocess.run(
        [*command, f"{room}/new.py", "-"], input=line + "\n", cwd=root, capture_output=True, text=True, check=False
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert "TID251" in found.stdout or "S301" in found.stdout or "S506" in found.stdout
