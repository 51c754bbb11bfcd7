"""Generation that is killed at any write, or runs twice, ends with the same files and nothing else; without Ray."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from benchmarks import stub_generation as stub
from cluster.store.artifacts import ArtifactStore
from cluster.store.folder import FolderObjects
from jobs.generate import stage as generate
from jobs.generate.actors import JudgeActor
from jobs.generate.config import GenerateConfig
from jobs.generate.groups import GroupStore
from jobs.run.artifacts import StageContext
from jobs.run.config import RunConfig
from safety.dataset.plan import Group
from safety.dataset.record import dump_group
from safety.families import ModelConfig
from safety.taxonomy import Taxonomy

pytestmark = pytest.mark.slow
RENDERED = {"train": 3, "validation": 1, "benign_train": 2, "benign_validation": 1}
COUNTS = RENDERED | dict.fromkeys(("test", "heldout", "benign_test", "benign_text_only"), 0)


class Killed(BaseException):
    """The end of a process."""


def in_this_process(
    groups: Sequence[Group], model: ModelConfig, taxonomy: Taxonomy, config: GenerateConfig, store: GroupStore
) -> Iterator[dict[str, Any]]:
    """Take the place of ``stream_groups``, with stand-ins for model and judge."""
    renderer, judge = stub.StubDiffusionActor(model, config, store), JudgeActor(model.path, taxonomy, config, store)
    for group in groups:
        yield judge(renderer({"index": group.index, "records": dump_group(group.records)}))


@pytest.fixture
def context(
    store: ArtifactStore, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StageContext:
    """A run of eight groups."""
    monkeypatch.setattr(generate, "stream_groups", in_this_process)
    monkeypatch.setattr(generate, "_count", lambda *_: None)
    taxonomy = tmp_path / "taxonomy.yaml"
    taxonomy.write_text(yaml.safe_dump(stub.TAXONOMY.model_dump(mode="json")), encoding="utf-8")
    document = {
        "run": {"name": "killed", "output": str(tmp_path / "out")},
        "model": {"path": str(tiny_model_dir)},
        "taxonomy": str(taxonomy),
        "generate": {
            "writer": stub.WRITER,
            "counts": COUNTS,
            "judge": {"name": "benchmarks.stub_generation:load_stub_judge"},
        },
    }
    return StageContext(RunConfig.model_validate(document), store, tmp_path / "work", Console(file=io.StringIO()))


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, work: Callable[[], object]) -> bool:
    """Work until the process is killed before the write, upload or deletion of a number; return whether it was."""
    left = number
    with monkeypatch.context() as patched:
        for name in ("write", "upload", "delete"):
            real = getattr(FolderObjects, name)

            def call(self: FolderObjects, *given: Any, _real: Any = real, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return _real(self, *given, **named)

            patched.setattr(FolderObjects, name, call)
        try:
            work()
        except Killed:
            return True
    return False


def content(store: ArtifactStore) -> dict[str, Any]:
    """Return the sizes of all objects but the manifest's, which holds the time, and the manifests' files."""
    sizes = {key: size for key, size in store.sizes("").items() if not key.endswith("manifest.json")}
    return {**sizes, **{name: store.verify("dataset", name).files for name in store.ids("dataset")}}


def test_a_run_that_is_killed_at_any_write_goes_on_to_the_same_files(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = generate.run(context)
    whole = content(context.store)
    number = 0
    context.store.discard(*ref)
    while killed_at(monkeypatch, number, lambda: generate.run(context)):
        assert generate.run(context) == ref
        assert content(context.store) == whole, number
        context.store.discard(*ref)
        number += 1
    assert number > 50


@pytest.mark.parametrize(
    "lost", ["data/train-000001.parquet", "latents/empty.safetensors", "groups.jsonl", "README.md"]
)
def test_a_dataset_whose_lost_file_is_made_again_may_be_killed_there_too(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    ref = generate.run(context)
    whole = content(context.store)
    [key] = [key for key in whole if key.endswith(f"/{lost}")]
    number, killed = 0, True
    while killed:
        context.store.delete(key)
        killed = killed_at(monkeypatch, number, lambda: generate.run(context))
        assert generate.run(context) == ref
        assert content(context.store) == whole, number
        number += 5
    assert number > 20


def test_of_two_runs_that_make_one_dataset_the_second_takes_over_what_the_first_has_published(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    render, refs = generate.render_missing, []

    def first_publishes(*given: Any) -> Any:
        figures = render(*given)
        monkeypatch.setattr(generate, "render_missing", render)
        refs.append(generate.run(context))
        return figures

    monkeypatch.setattr(generate, "render_missing", first_publishes)
    assert [generate.run(context)] == refs
    assert context.store.verify(*refs[0])
    assert context.store.keys("work/") == []
