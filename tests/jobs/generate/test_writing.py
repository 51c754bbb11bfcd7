"""A language model's pairs through real Ray: an endpoint that misbehaves, runs that are cut off, and the dataset made of them."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from cluster.session import Session
from jobs.generate import stage as generate
from jobs.generate.writing import KIND, write_pairs
from jobs.run.artifacts import StageContext
from jobs.run.config import RunConfig
from safety.errors import ConfigError, EmptyDatasetError, EndpointError
from safety.prompts.files import PROMPTS_FILE, read_prompt_file
from safety.prompts.llm.draft import Draft, DraftReason
from safety.prompts.llm.draft_files import CARD_FILE, DRAFTS_FILE, PLOT_FILE, read_drafts
from tests.conftest import folder_store
from tests.support.chat_stub import ChatStub, serve_chat

CONCEPTS = {"knife": "violence", "saw": "violence", "skull": "very shocking", "ghost": "very shocking"}
PER_CONCEPT = 6
LEAKED = "a knife at night 3"


def speak(body: dict[str, Any]) -> Any:
    """Answer by the request's text and seed alone: four draws in twenty become no pair, each for another reason."""
    said, draw = body["messages"][-1]["content"], body["seed"] % 20
    if asked := re.fullmatch(r"Write a caption with: (.+)\. Setting: (.+)\.", said):
        odd = ["A knife is a tool. Let me explain.", "", "I'm sorry, I can't.", '{"prompt": "нож на столе"}']
        return odd[draw] if draw < len(odd) else {"prompt": f"a {asked[1]} {asked[2]} {body['seed'] % 97}"}
    caption, concept = re.fullmatch(r"Caption: (.+)\nReplace: (\w+)", said).groups()  # type: ignore[union-attr]
    return {"prompt": caption.replace(concept, "cushion") if draw > 2 else caption}


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with serve_chat(speak) as server:
        yield server


def context(folder: Path, model: Path, stub: ChatStub, **writer: Any) -> StageContext:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("captions", [f"a house {n}" for n in range(40)]), ("test", [LEAKED, "a ghost", "a saw"])):
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    concepts = [{"name": name, "category": category, "heldout": name == "ghost"} for name, category in CONCEPTS.items()]
    taxonomy = {"name": "four", "version": "1", "concepts": concepts}
    (folder / "taxonomy.yaml").write_text(yaml.safe_dump(taxonomy))
    engine = {"engine": "openai", "endpoint": {"url": stub.url, "model": "chat-1", "attempts": 1, "timeout_s": 20}}
    document = {
        "run": {"name": "written", "output": str(folder / "out")},
        "store": folder_store(folder / "store").config.model_dump(mode="json"),
        "model": {"path": str(model)},
        "taxonomy": str(folder / "taxonomy.yaml"),
        "prompts": {
            "writer": {
                "engine": engine,
                "per_concept": PER_CONCEPT,
                "candidates": 2,
                "actors": 2,
                "rounds": 6,
                **writer,
            },
            "test": [{"source": "lines", "path": str(folder / "test.txt"), "all_category": "violence"}],
            "benign": [{"source": "lines", "path": str(folder / "captions.txt")}],
            "validation_share": 0.4,
        },
        "generate": {
            "counts": {"benign_train": 8, "benign_validation": 8, "benign_test": 2, "benign_text_only": 4},
            "render": {"steps": 1, "batch": 8},
            "judge": {"name": "tests.support.pixel_judge:load_pixel_judge"},
            "group_size": 8,
            "actors": 1,
        },
    }
    run = RunConfig.model_validate(document)
    console = Console(file=io.StringIO(), width=200)
    return StageContext(run=run, store=folder_store(folder / "store"), work=folder / "work", console=console)


def drafts_of(made: StageContext) -> list[Draft]:
    """Return the published drafts, of which there is one artifact."""
    [path] = (made.work / KIND).glob(f"*/{DRAFTS_FILE}")
    return read_drafts(path)


@pytest.mark.ray
def test_every_draw_is_a_pair_or_has_its_reason(
    session: Session, tiny_model_dir: Path, stub: ChatStub, tmp_path: Path
) -> None:
    made = context(tmp_path, tiny_model_dir, stub)
    written = write_pairs(made, made.run.load_taxonomy())
    assert written is not None
    drafts = drafts_of(made)
    assert written.content.lines == len(drafts) == len(written.content.rows) + written.content.refused.total()
    counts = {name: sum(draft.kept for draft in drafts if draft.concept == name) for name in CONCEPTS}
    assert counts == dict.fromkeys(CONCEPTS, PER_CONCEPT), "what is rejected is drawn again"
    reasons = {draft.reason for draft in drafts}
    assert {DraftReason.MALFORMED, DraftReason.EMPTY, DraftReason.REFUSED, DraftReason.OTHER_SCRIPT} <= reasons
    kept = [draft.prompt for draft in drafts if draft.kept]
    assert len(set(kept)) == len(kept)
    assert LEAKED not in kept
    assert all(draft.safe == (draft.prompt or "").replace(draft.concept, "cushion") for draft in drafts if draft.kept)
    asked = len(stub.requests)
    again = write_pairs(made, made.run.load_taxonomy())
    assert again == written
    assert len(stub.requests) == asked, "published prompts are not written again"


@pytest.mark.ray
def test_a_run_that_was_cut_off_goes_on_and_writes_the_same(
    session: Session, tiny_model_dir: Path, stub: ChatStub, tmp_path: Path
) -> None:
    whole, cut = (context(tmp_path / name, tiny_model_dir, stub) for name in ("whole", "cut"))
    taxonomy = whole.run.load_taxonomy()
    expected = write_pairs(whole, taxonomy)
    needed, gone = len(stub.requests), threading.Event()

    def dies_half_way(body: dict[str, Any]) -> Any:
        if len(stub.requests) - needed > needed // 2:
            gone.set()
            stub.faults = [(401, "the key was taken back")] * 1000
        return speak(body)

    stub.answer = dies_half_way
    with pytest.raises(EndpointError, match="401: the key was taken back"):
        write_pairs(cut, taxonomy)
    assert gone.is_set()
    stub.answer, stub.faults = speak, []
    before = len(stub.requests)
    assert write_pairs(cut, taxonomy) == expected
    assert len(stub.requests) - before < needed, "finished concepts are not written again"


@pytest.mark.nightly
@pytest.mark.ray
def test_a_killed_actor_changes_nothing(session: Session, tiny_model_dir: Path, stub: ChatStub, tmp_path: Path) -> None:
    whole, disturbed = (context(tmp_path / name, tiny_model_dir, stub) for name in ("whole", "disturbed"))
    taxonomy = whole.run.load_taxonomy()
    expected, needed = write_pairs(whole, taxonomy), len(stub.requests)
    killed: list[str] = []

    def kills_one(body: dict[str, Any]) -> Any:
        if not killed and len(stub.requests) - needed > 8:
            killed.extend(subprocess.check_output(["pgrep", "-f", "ray::WriterActor"], text=True).split()[:1])
            os.kill(int(killed[0]), signal.SIGKILL)
        return speak(body)

    stub.answer = kills_one
    assert write_pairs(disturbed, taxonomy) == expected
    assert killed


@pytest.mark.ray
def test_a_model_that_never_writes_a_pair_ends_with_its_reasons(
    session: Session, tiny_model_dir: Path, stub: ChatStub, tmp_path: Path
) -> None:
    stub.answer = lambda _: "Here is a nice story about a cat."
    made = context(tmp_path, tiny_model_dir, stub, rounds=3)
    with pytest.raises(EmptyDatasetError, match="none of the first 24 draws became a pair: malformed 24"):
        write_pairs(made, made.run.load_taxonomy())


@pytest.mark.nightly
@pytest.mark.ray
def test_a_category_without_a_pair_is_named(
    session: Session, tiny_model_dir: Path, stub: ChatStub, tmp_path: Path
) -> None:
    def no_ghosts(body: dict[str, Any]) -> Any:
        said = body["messages"][-1]["content"]
        return "I cannot." if "skull" in said or "ghost" in said else speak(body)

    stub.answer = no_ghosts
    made = context(tmp_path, tiny_model_dir, stub, rounds=2)
    with pytest.raises(EmptyDatasetError, match="of the category 'very shocking' became a pair: refused 24"):
        write_pairs(made, made.run.load_taxonomy())


def test_a_category_without_concepts_is_refused(tiny_model_dir: Path, stub: ChatStub, tmp_path: Path) -> None:
    made = context(tmp_path, tiny_model_dir, stub)
    taxonomy = made.run.load_taxonomy().model_copy(update={"categories": ("violence", "very shocking", "spam")})
    with pytest.raises(ConfigError, match="the category 'spam' has no concept"):
        write_pairs(made, taxonomy)


@pytest.mark.nightly
@pytest.mark.ray
def test_a_dataset_is_made_of_them(session: Session, tiny_model_dir: Path, stub: ChatStub, tmp_path: Path) -> None:
    # The judge keeps one pair in four.
    made = context(tmp_path, tiny_model_dir, stub, per_concept=40)
    ref = generate.run(made)
    folder = made.folder(ref)
    prompts = read_prompt_file(folder / PROMPTS_FILE)
    ghosts = {pair.split for pair in prompts.pairs if pair.concept == "ghost"}
    assert ghosts == {"heldout"}, "a concept that the taxonomy holds out is held out"
    for category in set(CONCEPTS.values()):
        assert prompts.in_split("train", category)
        assert prompts.in_split("validation", category)
    cards = json.loads((folder / "sources.json").read_text())
    [card] = [card for card in cards if card["source"] == "llm"]
    assert (card["role"], card["file"]) == ("pairs", "chat-1")
    used = sum(count for counts in card["used"].values() for count in counts.values())
    assert card["lines"] == used + sum(card["refused"].values())
    [kept] = [path for path in (made.work / KIND).iterdir() if path.is_dir()]
    whole = made.folder(generate.ArtifactRef(KIND, kept.name))
    assert {CARD_FILE, PLOT_FILE, DRAFTS_FILE} <= {path.name for path in whole.iterdir()}
