"""Bodies as common clients send them, the names that diffusion servers share, and refusals that say what there is."""

from __future__ import annotations

from typing import Any

import pytest

from serve.access import Access
from tests.support.echo_endpoint import CONFIG, PATH, Ask, EchoBackend, Records, caller, failure

PROMPT = "a spoon"
OPENAI_SDK = {
    "prompt": PROMPT,
    "background": "auto",
    "model": "aligned",
    "moderation": "low",
    "n": 1,
    "output_compression": 100,
    "output_format": "png",
    "partial_images": 0,
    "quality": "high",
    "response_format": "b64_json",
    "size": "1024x1024",
    "stream": False,
    "style": "vivid",
    "user": "user-1234",
}
"""Every parameter of ``images.generate`` of openai-python 3."""
BODIES = {
    "openai-python, the least": {"prompt": PROMPT},
    "openai-python, every parameter": OPENAI_SDK,
    "openai-python, every parameter null": dict.fromkeys(OPENAI_SDK) | {"prompt": PROMPT},
    # libs/community/langchain_community/utilities/dalle_image_generator.py
    "LangChain, DallEAPIWrapper": {
        "prompt": PROMPT,
        "n": 1,
        "size": "1024x1024",
        "model": "aligned",
        "quality": "standard",
    },
    # libs/langchain-openai/src/tools/dalle.ts, with responseFormat b64_json
    "LangChain.js, DallEAPIWrapper": {
        "model": "aligned",
        "prompt": PROMPT,
        "n": 1,
        "size": "1024x1024",
        "response_format": "b64_json",
        "style": "vivid",
        "quality": "standard",
    },
    # api/app/clients/tools/structured/DALLE3.js
    "LibreChat, dalle": {
        "model": "aligned",
        "quality": "standard",
        "style": "natural",
        "size": "1792x1024",
        "prompt": PROMPT,
        "n": 1,
    },
    # api/app/clients/tools/structured/OpenAIImageTools.js
    "LibreChat, image_gen_oai": {
        "model": "aligned",
        "prompt": PROMPT,
        "n": 1,
        "background": "auto",
        "output_format": "png",
        "output_compression": 100,
        "quality": "auto",
        "size": "auto",
    },
    # backend/open_webui/routers/images.py
    "Open WebUI": {
        "model": "aligned",
        "prompt": PROMPT,
        "n": 1,
        "size": "512x512",
        "response_format": "b64_json",
    },
    "Open WebUI, with parameters of the admin's": {
        "model": "aligned",
        "prompt": PROMPT,
        "n": 1,
        "size": "auto",
        "quality": "hd",
        "moderation": "low",
        "background": "opaque",
    },
    # packages/@n8n/nodes-langchain/nodes/vendors/OpenAi/actions/image/generate.operation.ts
    "n8n": {
        "prompt": PROMPT,
        "model": "aligned",
        "response_format": "b64_json",
        "quality": "hd",
        "size": "1024x1792",
        "style": "natural",
    },
    "n8n, dall-e-2": {"prompt": PROMPT, "model": "aligned", "response_format": "b64_json", "n": 2, "size": "256x256"},
    # litellm.image_generation
    "litellm": {
        "model": "aligned",
        "prompt": PROMPT,
        "n": 1,
        "quality": "medium",
        "size": "1024x1024",
        "user": "a@example.org",
    },
    "vllm-omni, SGLang, diffusers servers": {
        "prompt": PROMPT,
        "negative_prompt": "a fork",
        "num_inference_steps": 7,
        "guidance_scale": 1.5,
        "seed": 3,
        "n": 1,
        "size": "1024x1024",
    },
}


@pytest.fixture
def backend() -> EchoBackend:
    return EchoBackend()


@pytest.fixture
def ask(backend: EchoBackend) -> Ask:
    return caller(CONFIG, backend, Access(None), Records())


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_of_common_clients_are_taken(ask: Ask, backend: EchoBackend, body: dict[str, Any]) -> None:
    response = ask(json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert len(answer["data"]) == (body.get("n") or 1)
    assert answer["data"][0]["b64_json"]
    assert answer["output_format"] == "png"
    assert [job.prompt for job in backend.jobs] == [PROMPT]


@pytest.mark.parametrize(
    ("name", "value"),
    [("quality", q) for q in ("auto", "standard", "hd", "low", "medium", "high")]
    + [("style", s) for s in ("vivid", "natural")]
    + [("background", b) for b in ("auto", "opaque")]
    + [("moderation", m) for m in ("auto", "low")]
    + [("output_compression", 0), ("partial_images", 0), ("stream", False), ("output_format", "png"), ("user", "u")],
)
def test_what_asks_for_nothing_else_changes_nothing(ask: Ask, backend: EchoBackend, name: str, value: object) -> None:
    for extra in ({}, {name: value}):
        assert ask(json={"prompt": PROMPT, "seed": 1, **extra}).status_code == 200
    assert backend.jobs[0] == backend.jobs[1]


@pytest.mark.parametrize("name", [*sorted(OPENAI_SDK.keys() - {"prompt"}), "negative_prompt", "seed", "steps"])
def test_null_is_as_good_as_absent(ask: Ask, backend: EchoBackend, name: str) -> None:
    assert ask(json={"prompt": PROMPT, name: None}).status_code == 200
    [job] = backend.jobs
    assert (job.n, job.model, job.negative, job.width, job.steps) == (1, "aligned", None, None, CONFIG.default_steps)


@pytest.mark.parametrize(
    ("name", "value", "offered"),
    [
        ("stream", True, "false"),
        ("partial_images", 2, "0"),
        ("output_format", "jpeg", '"png"'),
        ("output_format", "webp", '"png"'),
        ("background", "transparent", '"auto" or "opaque"'),
        ("response_format", "url", '"b64_json"'),
    ],
)
def test_what_cannot_be_met_is_refused_with_what_can(
    ask: Ask, backend: EchoBackend, name: str, value: object, offered: str
) -> None:
    response = ask(json={"prompt": PROMPT, name: value})
    error = failure(response)
    assert (response.status_code, error["param"], error["code"]) == (400, name, "invalid_value")
    assert error["message"].endswith(f"is not offered; use {offered}")
    assert backend.jobs == []


@pytest.mark.parametrize(
    ("asked", "found"),
    [({}, {"b64_json", "url"}), ({"response_format": "url"}, {"url"}), ({"response_format": "b64_json"}, {"b64_json"})],
)
def test_clients_that_read_a_url_alone_get_one_where_the_settings_say_so(
    backend: EchoBackend, asked: dict[str, str], found: set[str]
) -> None:
    ask = caller(CONFIG.model_copy(update={"data_urls": True}), backend, Access(None), Records())
    answer = ask(json={"prompt": PROMPT, "seed": 7, **asked})
    assert answer.status_code == 200
    [entry] = answer.json()["data"]
    assert entry.keys() - {"seed"} == found
    assert entry.get("url") in (None, "data:image/png;base64,Nw==")
    assert entry.get("b64_json") in (None, "Nw==")
    backend.flagged, backend.block = [False, True], True
    withheld = ask(json={"prompt": PROMPT, "n": 2, **asked}).json()["data"][1]
    assert withheld.keys() & {"b64_json", "url"} == set()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"quality": "SECRET"}, "quality"),
        ({"style": 3}, "style"),
        ({"moderation": "off"}, "moderation"),
        ({"output_compression": 101}, "output_compression"),
        ({"stream": "false"}, "stream"),
        ({"partial_images": -1}, "partial_images"),
        ({"negative_prompt": ["SECRET"]}, "negative_prompt"),
        ({"negative_prompt": "x" * 51}, "negative_prompt"),
        ({"num_inference_steps": 21}, "num_inference_steps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": 21}, "guidance_scale"),
        ({"guidance_scale": 2.0, "guidance": 3.0}, "guidance_scale"),
        ({"num_inference_steps": 2, "steps": 3}, "num_inference_steps"),
        ({"width": 64}, "width"),
        ({"cfg_scale": 2.0}, "cfg_scale"),
    ],
)
def test_a_wrong_value_or_an_unknown_field_is_named(
    ask: Ask, backend: EchoBackend, change: dict[str, Any], param: str
) -> None:
    response = ask(json={"prompt": PROMPT, **change})
    assert (response.status_code, failure(response)["param"]) == (400, param)
    assert "SECRET" not in response.text
    assert backend.jobs == []


def test_a_setting_with_two_names_is_taken_by_either_and_by_both_alike(ask: Ask, backend: EchoBackend) -> None:
    same = {"steps": 7, "guidance": 1.5}
    other = {"num_inference_steps": 7, "guidance_scale": 1.5}
    for fields in (same, other, same | other):
        assert ask(json={"prompt": PROMPT, "seed": 1, **fields}).status_code == 200
    assert {(job.steps, job.guidance) for job in backend.jobs} == {(7, 1.5)}


def test_a_negative_prompt_reaches_the_renderer_and_an_empty_one_is_none(ask: Ask, backend: EchoBackend) -> None:
    for negative in ("a fork", " ", ""):
        assert ask(json={"prompt": PROMPT, "negative_prompt": negative}).status_code == 200
    assert [job.negative for job in backend.jobs] == ["a fork", None, None]


def test_a_model_is_retrieved_by_its_name_in_openais_shape(ask: Ask) -> None:
    listed = ask("GET", "/v1/models").json()["data"]
    found = ask("GET", "/v1/models/aligned")
    assert (found.status_code, [found.json()]) == (200, listed)
    assert {"id", "object", "created", "owned_by"} <= found.json().keys()
    missing = ask("GET", "/v1/models/gpt-image-1")
    assert (missing.status_code, failure(missing)["code"], failure(missing)["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    assert "aligned" in failure(missing)["message"]
    assert ask("DELETE", "/v1/models/aligned").status_code == 405
    assert ask("POST", PATH + "/").status_code in (307, 404)
