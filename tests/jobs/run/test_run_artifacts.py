"""Artifacts as stages find and fetch them: what did not verify anywhere is made again, and a machine fetches once."""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from cluster.errors import CorruptArtifact, StoreRefused
from cluster.store import local_copy
from cluster.store.artifacts import ArtifactStore
from cluster.store.folder import FolderObjects
from cluster.store.local_copy import ABANDONED_S
from jobs.evaluate.actors import EvaluationActor, EvaluationInputs, FinishedGroups
from jobs.run.artifacts import ArtifactRef, StageContext, fetch_artifact, finished
from jobs.run.config import RunConfig
from safety.lora.files import LORA_FILE, save_lora
from safety.lora.weights import LoraLayer, LoraWeights

REF = ArtifactRef("expert", "expert-1")


@pytest.fixture
def context(store: ArtifactStore, tmp_path: Path) -> StageContext:
    """A run with one published expert."""
    run = RunConfig.model_validate({"run": {"name": "test", "output": str(tmp_path / "out")}})
    layer = LoraLayer(torch.ones(2, 8), torch.ones(8, 2))
    save_lora(LoraWeights({"mid.to_q": layer}), tmp_path / "source", metadata={})
    (tmp_path / "source" / "metrics.jsonl").write_text("{}\n")
    store.put(*REF, tmp_path / "source", config={}, seed=0)
    return StageContext(run, store, tmp_path / "work", Console(file=io.StringIO()))


def corrupt(store: ArtifactStore, name: str) -> None:
    """Change one byte of a file in the store, whose size stays."""
    [key] = [key for key in store.keys("artifacts/") if key.endswith(f"/{name}")]
    data = store.read(key) or b""
    store.write(key, data[:-1] + bytes([data[-1] ^ 1]))


def actor(context: StageContext) -> EvaluationActor:
    """Return an evaluation's actor, as one of several of a machine."""
    run, groups = context.run, FinishedGroups(context.store, ArtifactRef("report", "report-1"))
    inputs = EvaluationInputs(run.model, run.load_taxonomy(), run.evaluate, {"one": REF}, groups, context.work)
    return EvaluationActor(inputs)


USES: dict[str, Callable[[StageContext], Any]] = {
    "a stage": lambda context: fetch_artifact(context.store, context.work, REF),
    "an endpoint or an export": lambda context: context.store.fetch(*REF, context.work / "scratch"),
    "evaluation": lambda context: actor(context)._adapter("one"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_what_did_not_verify_where_it_was_used_is_made_again_at_the_next_start(
    context: StageContext, use: Callable[[StageContext], Any]
) -> None:
    corrupt(context.store, LORA_FILE)
    assert finished(context, REF), "nothing has read it"
    with pytest.raises(CorruptArtifact, match=LORA_FILE):
        use(context)
    assert not finished(context, REF)
    assert context.store.keys("") == []


def test_a_whole_file_that_was_noted_by_mistake_costs_one_reading(context: StageContext) -> None:
    corrupt(context.store, LORA_FILE)
    with pytest.raises(CorruptArtifact):
        context.store.fetch(*REF, context.work / "scratch")
    corrupt(context.store, LORA_FILE)
    assert finished(context, REF)
    assert context.store.keys("work/") == []


def test_who_may_not_write_to_the_store_still_learns_what_is_corrupt(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrupt(context.store, LORA_FILE)

    def refuse(*_: Any, **__: Any) -> None:
        raise StoreRefused("not this user", field="store", fix="ask")

    monkeypatch.setattr(FolderObjects, "write", refuse)
    with pytest.raises(CorruptArtifact, match=LORA_FILE):
        context.store.fetch(*REF, context.work / "scratch")


def test_the_actors_of_a_machine_fetch_an_adapter_once_and_nothing_else_of_it(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    download = FolderObjects.download

    def counted(self: FolderObjects, key: str, path: str, limit: int | None = None) -> bool:
        fetched.append(key.rpartition("/")[2])
        return download(self, key, path, limit)

    monkeypatch.setattr(FolderObjects, "download", counted)
    for _ in range(3):
        assert torch.equal(actor(context)._adapter("one")["mid.to_q"].down, torch.ones(2, 8))
    assert fetched == [LORA_FILE]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_no_half_of_a_file_and_keeps_what_is_whole(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = FolderObjects.download

    def full(self: FolderObjects, key: str, path: str, limit: int | None = None) -> bool:
        if key.endswith(LORA_FILE):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return download(self, key, path, limit)

    monkeypatch.setattr(FolderObjects, "download", full)
    with pytest.raises(OSError, match="No space left"):
        context.folder(REF)
    assert files(context.work / "expert" / REF.id) == {"metrics.jsonl"}


def test_a_record_that_cannot_be_written_hides_no_error_and_costs_a_reading(context: StageContext) -> None:
    verified = local_copy.VerifiedFiles(context.work / "expert" / REF.id)
    verified.path.mkdir(parents=True)
    folder = context.folder(REF)
    assert files(folder) >= {LORA_FILE, "metrics.jsonl"}
    assert not list(verified.path.parent.glob("*.partial"))


def test_what_a_killed_process_has_left_half_fetched_is_deleted_and_what_goes_on_is_not(context: StageContext) -> None:
    folder = context.folder(REF)
    old, new = folder / f"{LORA_FILE}.0123abcd.partial", folder / f"{LORA_FILE}.4567abcd.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = time.time() - ABANDONED_S - 60
    os.utime(old, (long_ago, long_ago))
    context.folder(REF)
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_fetched_to(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(local_copy.fcntl, "flock", refuse)
    assert LORA_FILE in files(fetch_artifact(ArtifactStore(context.store.config), context.work, REF))
