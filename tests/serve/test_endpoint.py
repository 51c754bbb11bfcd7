"""The endpoint as users meet it: real Ray Serve over a release in a real S3 server."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from cluster.session import Session
from cluster.store.config import StoreConfig
from cluster.store.pointer import swap_pointer
from safety.images import decode_image
from safety.lora.files import LORA_FILE
from safety.release import BaseModelIdentity, ReleaseInfo, file_hash, model_hash
from serve.admission import CAPACITY_HEADER
from serve.app import build
from serve.config import parse_config
from serve.deployment import DeploymentFailed, deploy
from tests.faults.endpoint_stub import free_port

pytestmark = [pytest.mark.ray, pytest.mark.serve]
PATH = "/v1/images/generations"
STEPS = 4


@pytest.fixture(scope="module")
def release(
    session: Session, tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_lora_dir: Path
) -> StoreConfig:
    """Publish the tiny model's adapter as the release "aligned" of a real S3 server."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copyfile(tiny_lora_dir / LORA_FILE, folder / LORA_FILE)
    info = ReleaseInfo(
        name="tiny",
        base=BaseModelIdentity(id="tiny", family="stable-diffusion", sha256=model_hash(tiny_model_dir)),
        adapter_sha256=file_hash(folder / LORA_FILE),
        judge=None,
        provenance={},
    )
    (folder / "release.json").write_text(info.model_dump_json())
    session.store.put("release", "release-tiny", folder, config={}, seed=0)
    swap_pointer(session.store, "aligned", None, "release-tiny")
    return session.store.config


Deploy = Callable[..., str]


@pytest.fixture(scope="module")
def deployed(release: StoreConfig, tiny_model_dir: Path) -> Iterator[Deploy]:
    """Return a function that deploys with settings of the endpoint; Serve comes down at the end."""
    from ray import serve

    port = free_port()

    def up(**settings: Any) -> str:
        document = {
            "serve": {"port": port, "num_cpus": 0.5, "request_timeout_s": 200, **settings},
            "model": {"path": str(tiny_model_dir)},
            "store": release.model_dump(mode="json"),
        }
        return deploy(build(document), parse_config(document).serve)

    yield up
    serve.shutdown()


@pytest.fixture(scope="module")
def url(deployed: Deploy) -> str:
    return deployed(
        serve_base=True, batch_size=4, max_queued_requests=8, default_steps=STEPS, default_guidance=3.0, max_steps=200
    )


def pixels(entry: dict[str, Any]) -> torch.Tensor:
    return decode_image(base64.b64decode(entry["b64_json"])).float()


@pytest.fixture(scope="module")
def stock(tiny_model_dir: Path, tiny_lora_dir: Path) -> Callable[[str, int], torch.Tensor]:
    """Return what the stock pipeline with the release's adapter draws."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model_dir, safety_checker=None)
    pipeline.load_lora_weights(tiny_lora_dir)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str, seed: int) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(seed)
        [image] = pipeline(
            prompt, num_inference_steps=STEPS, guidance_scale=3.0, generator=generator, output_type="np"
        ).images
        return torch.from_numpy(image).permute(2, 0, 1) * 255

    return draw


def test_concurrent_requests_each_get_the_stock_pipelines_image(
    url: str, stock: Callable[[str, int], torch.Tensor]
) -> None:
    prompts = [f"a {thing} on a blue background" for thing in ("house", "knife", "house", "cake", "knife", "house")]

    def ask(seed: int) -> dict[str, Any]:
        response = httpx.post(url + PATH, json={"prompt": prompts[seed], "seed": seed}, timeout=240)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    for seed, answer in enumerate(answers):
        [entry] = answer["data"]
        assert (entry["seed"], answer["model"], answer["size"]) == (seed, "aligned", "16x16")
        assert float((pixels(entry) - stock(prompts[seed], seed)).abs().mean()) <= 1.0


def test_several_images_of_one_request_are_those_of_the_seeds_that_follow(
    url: str, stock: Callable[[str, int], torch.Tensor]
) -> None:
    answer = httpx.post(url + PATH, json={"prompt": "a house", "seed": 40, "n": 3}, timeout=240).json()
    assert [entry["seed"] for entry in answer["data"]] == [40, 41, 42]
    for entry in answer["data"]:
        assert float((pixels(entry) - stock("a house", entry["seed"])).abs().mean()) <= 1.0
    image = Image.open(io.BytesIO(base64.b64decode(answer["data"][1]["b64_json"])))
    assert image.info == {"model": "aligned", "release": "release-tiny", "seed": "41"}


def test_the_base_model_stands_beside_the_aligned_one(url: str) -> None:
    models = httpx.get(url + "/v1/models", timeout=240).json()["data"]
    assert [(m["id"], m["release"]) for m in models] == [("aligned", "release-tiny"), ("base", None)]
    base, aligned = (
        httpx.post(url + PATH, json={"prompt": "a house", "seed": 1, "model": name}, timeout=240).json()["data"][0]
        for name in ("base", "aligned")
    )
    assert float((pixels(base) - pixels(aligned)).abs().mean()) > 1.0


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"prompt": "a house", "model": "other"}, 404, "model", "model_not_found"),
        ({"prompt": "a naked child"}, 400, "prompt", "content_policy_violation"),
        ({"prompt": "house " * 60}, 400, "prompt", "prompt_too_long"),
        ({"prompt": "a house", "size": "18x16"}, 400, "size", "invalid_value"),
        ({"prompt": "a house", "n": 1000}, 400, "n", "invalid_value"),
        ({"prompt": "x" * 5_000_000}, 413, None, "body_too_large"),
    ],
)
def test_refusals_come_in_the_envelope(
    url: str, body: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    response = httpx.post(url + PATH, json=body, timeout=240)
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert len(response.content) < 2048


def test_the_queue_is_bounded_and_says_when_to_come_back(url: str) -> None:
    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=240, limits=limits, verify=False) as client:
            bodies = ({"prompt": "a house", "seed": seed, "steps": 150} for seed in range(40))
            return await asyncio.gather(*(client.post(url + PATH, json=body) for body in bodies))

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert [(a.status_code, a.text[:500]) for a in refused if a.status_code != 429] == []
    for answer in refused:
        assert 2 <= int(answer.headers["retry-after"]) <= 6
        assert CAPACITY_HEADER not in answer.headers, "the middleware in front of Serve's proxy removes it"
        # Serve's proxy, when it is the one that refuses, answers in plain text.
        if answer.headers["content-type"].startswith("application/json"):
            assert answer.json()["error"]["code"] == "queue_full"
    # Requests that the queue accepted are answered, whatever else arrives.
    assert len(answers) - len(refused) >= 8
    assert httpx.post(url + PATH, json={"prompt": "a house"}, timeout=240).status_code == 200


def test_health_and_page(url: str) -> None:
    assert httpx.get(url + "/healthz", timeout=240).json() == {"status": "ok"}
    page = httpx.get(url + "/", timeout=240)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_deployment_that_cannot_start_says_why(url: str, deployed: Deploy) -> None:
    with pytest.raises(DeploymentFailed, match="the store has no release 'nowhere'"):
        deployed(app="other", route_prefix="/other", pointer="nowhere")
    assert httpx.get(url + "/healthz", timeout=240).status_code == 200
