"""A chat model of transformers: well-formed answers, drawn as the model's own probabilities say, each by its own seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from safety.errors import ConfigError
from safety.prompts.llm.engines.engine import ChatRequest, Message
from safety.prompts.llm.engines.transformers_chat import (
    END,
    TransformersConfig,
    TransformersEngine,
    _closed,
    _SeededDraw,
    nucleus,
)
from tests.support.tiny_chat import NO_SYSTEM, write_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("chat"))


def config(folder: Path, **settings: object) -> TransformersConfig:
    return TransformersConfig.model_validate(
        {"engine": "transformers", "model": str(folder), "max_new_tokens": 24, **settings}
    )


def request(text: str, seed: int) -> ChatRequest:
    return ChatRequest(
        (Message(role="system", content="Be brief."), Message(role="user", content=text)), "prompt", seed
    )


def test_an_answer_is_what_a_plain_loop_over_the_model_draws(folder: Path) -> None:
    asked = request("a kite", 7)
    engine = TransformersEngine(config(folder, temperature=0.7, top_p=0.8, max_new_tokens=12))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    start = '{"prompt": "'
    ids = tokenizer(engine.chat(asked.messages) + start, return_tensors="pt", add_special_tokens=False).input_ids
    generator, drawn = torch.Generator().manual_seed(7), []
    for _ in range(12):
        with torch.no_grad():
            chances = (model(ids).logits[0, -1].float() / 0.7).softmax(-1)
        order = chances.argsort(descending=True)
        kept = order[: int((chances[order].cumsum(0) < 0.8).sum()) + 1]
        noise = -torch.log(-torch.log(torch.rand(len(chances), generator=generator).clamp_min(1e-20)))
        scores = chances.log() + noise
        drawn.append(int(kept[scores[kept].argmax()]))
        ids = torch.cat([ids, torch.tensor([[drawn[-1]]])], 1)
        if drawn[-1] == tokenizer.eos_token_id or END.search(tokenizer.decode(drawn)):
            break
    text = tokenizer.decode(drawn, skip_special_tokens=True)
    assert engine.answer([asked])[0].text == _closed(start, text)


def test_a_draw_depends_on_its_seed_and_not_on_its_neighbours(folder: Path) -> None:
    engine = TransformersEngine(config(folder, batch=3))
    requests = [request("a kite", 1), request("a much longer text about a ball", 2), request("a kite", 3)]
    together = [answer.text for answer in engine.answer(requests)]
    assert together == [engine.answer([one])[0].text for one in requests]
    assert together[0] != together[2], "another seed draws another answer"


def test_draws_have_the_models_own_probabilities() -> None:
    logits, draws = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 4000
    seen = Counter(int(_SeededDraw([seed], 1.5, 1.0)(torch.empty(0), logits).argmax()) for seed in range(draws))
    expected = (logits[0] / 1.5).softmax(-1).tolist()
    for token, chance in enumerate(expected):
        deviation = (draws * chance * (1 - chance)) ** 0.5
        assert abs(seen[token] - draws * chance) < 4 * deviation


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
def test_the_nucleus_is_the_shortest_list_of_the_likeliest_with_that_share(top_p: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 40)
    for row, kept in zip(logits, nucleus(logits, top_p).isfinite(), strict=True):
        chances, total, wanted = row.softmax(-1), 0.0, set()
        for token in chances.argsort(descending=True).tolist():
            if total >= top_p:
                break
            wanted.add(token)
            total += float(chances[token])
        assert set(kept.nonzero()[:, 0].tolist()) == wanted


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a kite" and more', "a kite"),
        ("a kite\nNext line", "a kite"),
        ('a \\"red\\" kite"', 'a "red" kite'),
        ('a back\\\\"', "a back\\"),
        ('a tab\there"', "a tab\there"),
        ('a lone \\x"', "a lone \\x"),
    ],
)
def test_what_comes_to_an_end_is_well_formed(text: str, expected: str) -> None:
    assert json.loads(_closed('{"prompt": "', text)) == {"prompt": expected}


def test_what_comes_to_no_end_stays_open() -> None:
    assert _closed('{"prompt": "', "a kite and") == '{"prompt": "a kite and'


def test_a_template_without_a_systems_turn_gets_it_in_the_users(tmp_path: Path) -> None:
    engine = TransformersEngine(config(write_chat_model(tmp_path, NO_SYSTEM)))
    assert engine.chat(request("a kite", 0).messages) == "<user>Be brief.\n\na kite</s><assistant>"


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        TransformersEngine(config(write_chat_model(tmp_path, None)))


@pytest.mark.parametrize("name", ["no/such folder", "/nowhere/at/all"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match="neither a folder here nor an id of a hub") as caught:
        TransformersEngine(config(Path(name)))
    assert caught.value.field == "prompts.writer.engine.model"


def test_a_hub_that_cannot_be_reached_says_what_to_put_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="neither a folder here nor in the hub's cache") as caught:
        config(Path("someone/chat-1")).identity()
    assert caught.value.field == "prompts.writer.engine.model"


def test_the_identity_is_the_content_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    elsewhere = write_chat_model(tmp_path)
    assert config(folder).recipe() == config(elsewhere).recipe()
    (elsewhere / "generation_config.json").write_text("{}")
    assert config(folder).identity() != config(elsewhere).identity()
