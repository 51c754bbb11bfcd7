"""The trial of a language model: what a few draws say, and stand-ins for the run's pairs with the drawn ones among them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.generate.prompts import run_prompts
from jobs.run.config import RunConfig
from jobs.run.pilot import pilot_of
from jobs.trial.writing import TriedWriter, try_writing
from safety.taxonomy import Taxonomy
from tests.support.chat_stub import ChatStub, serve_chat

TAXONOMY = Taxonomy.model_validate(
    {
        "name": "two",
        "version": "1",
        "concepts": [
            {"name": name, "category": kind} for name, kind in (("saw", "tools"), ("axe", "tools"), ("kite", "toys"))
        ],
    }
)


def speak(body: dict[str, Any]) -> Any:
    said = body["messages"][-1]["content"]
    if "kite" in said:
        return "I cannot write that."
    return {"prompt": f"a saw, number {body['seed']}" if said.startswith("Write") else said[9:].replace("saw", "cup")}


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with serve_chat(speak) as server:
        yield server


def run(stub: ChatStub, folder: Path) -> RunConfig:
    captions = folder / "captions.txt"
    captions.write_text("".join(f"a house {n}\n" for n in range(40)))
    engine = {"engine": "openai", "endpoint": {"url": stub.url, "model": "chat-1", "timeout_s": 10}}
    return RunConfig.model_validate(
        {
            "run": {"name": "tried", "output": str(folder / "out")},
            "prompts": {
                "writer": {"engine": engine, "per_concept": 30, "candidates": 1, "actors": 3},
                "benign": [{"source": "lines", "path": str(captions)}],
            },
            "generate": {
                "counts": {"benign_train": 4, "benign_validation": 2, "benign_test": 2, "benign_text_only": 2}
            },
        }
    )


def test_a_few_draws_say_how_many_become_pairs_and_why_the_others_do_not(stub: ChatStub, tmp_path: Path) -> None:
    given = run(stub, tmp_path)
    tried, written = try_writing(given, TAXONOMY)
    assert tried is not None
    assert written is not None
    assert (tried.model, tried.draws, tried.pairs, tried.reasons) == ("chat-1", 4, 2, "refused 2")
    assert (tried.wanted, tried.actors) == (90, 3)
    assert tried.hours == pytest.approx(90 * 4 / 2 * tried.draw_s / 3 / 3600)
    firsts = [(row.concept, row.number, row.safe) for row in written.content.rows[:2]]
    assert [(concept, number) for concept, number, _ in firsts] == [("saw", 0), ("saw", 1)]
    assert all(safe is not None and safe.startswith("a cup, number") for _, _, safe in firsts)
    prompts = run_prompts(given, TAXONOMY, written=written).prompts
    assert len(prompts.pairs) == 90


def test_no_pair_yet_tells_no_hours() -> None:
    tried = TriedWriter(model="chat-1", draws=4, pairs=0, reasons="refused 4", draw_s=1.0, wanted=10, actors=1)
    assert tried.hours is None


def test_a_run_without_a_language_model_tries_none(tmp_path: Path) -> None:
    given = RunConfig.model_validate({"run": {"name": "none", "output": str(tmp_path)}})
    assert try_writing(given, TAXONOMY) == (None, None)


def test_the_pilot_writes_as_many_as_it_needs(stub: ChatStub, tmp_path: Path) -> None:
    given = run(stub, tmp_path)
    path = tmp_path / "taxonomy.yaml"
    path.write_text(TAXONOMY.model_dump_json(exclude_none=True), encoding="utf-8")
    large = given.prompts.writer.model_copy(update={"per_concept": 500})  # type: ignore[union-attr]
    prompts = given.prompts.model_copy(update={"writer": large})  # type: ignore[union-attr]
    pilot = pilot_of(given.model_copy(update={"taxonomy": str(path), "prompts": prompts}))
    assert pilot.prompts is not None
    assert pilot.prompts.writer is not None
    assert pilot.prompts.writer.per_concept == 20 + 12 + 8, (
        "toys have one concept, which gives all of the category's pairs"
    )
