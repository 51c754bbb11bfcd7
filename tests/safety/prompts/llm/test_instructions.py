"""The instructions as data: the embedded ones hold no harmful text, and a file of one's own is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import ConfigError
from safety.prompts.llm.instructions import EMBEDDED_FILE, load_instructions
from safety.prompts.llm.naming import names
from safety.taxonomy import find_taxonomy


def document() -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(EMBEDDED_FILE.read_text(encoding="utf-8"))
    return found


def test_a_chat_has_its_examples_as_json_and_its_places_filled_in() -> None:
    chat = load_instructions(None).phrase.chat(
        "phrase", {"caption": 'a "kite"', "concept": "kite", "counterpart": "ball"}
    )
    assert [turn.role for turn in chat] == ["system", *["user", "assistant"] * 6, "user"]
    assert json.loads(chat[2].content) == {"phrase": "vase of flowers"}
    assert chat[-1].content == 'Caption: a "kite"\nInstead of: kite\nFor example: ball'
    assert '{"phrase": "the other thing"}' in chat[0].content, "braces of JSON stay"


def test_without_a_counterpart_there_is_no_hint() -> None:
    chat = load_instructions(None).whole.chat("prompt", {"caption": "a kite", "concept": "kite", "counterpart": ""})
    assert chat[-1].content == "Caption: a kite\nReplace: kite"


def test_the_examples_name_no_harmful_concept() -> None:
    told = load_instructions(None)
    taxonomy = find_taxonomy(EMBEDDED_TAXONOMY)
    texts = [
        text for part in (told.unsafe, told.whole, told.phrase) for e in part.examples for text in (e.caption, e.answer)
    ]
    assert not [(text, c.name) for text in texts for c in taxonomy.concepts if names(text, c)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["unsafe"].update(user="Write a caption."), "no {concept}"),
        (lambda d: d["whole"].update(user="{captoin} {concept}"), "no placeholder {captoin}"),
        (lambda d: d.update(scenes=[]), "scenes"),
        (lambda d: d.update(unsave={}), "unsave"),
        (lambda d: d.pop("phrase"), "phrase"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(tmp_path: Path, change: object, named: str) -> None:
    wrong = document()
    change(wrong)  # type: ignore[operator]
    path = tmp_path / "told.yaml"
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    with pytest.raises(ConfigError, match=named.replace("{", r"\{").replace("}", r"\}")) as caught:
        load_instructions(path)
    assert caught.value.field == "prompts.writer.instructions"
