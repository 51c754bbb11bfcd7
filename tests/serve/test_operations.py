"""The endpoint in operation: keys, logs, metrics, the output judge and a release that changes under load."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from cluster.session import Session
from safety.lora.weights import LoraWeights
from serve.app import build
from serve.config import parse_config
from serve.deployment import deploy
from serve.keys import new_key, revoke_key
from serve.metrics import IMAGES, LATENCY, RELOADS, REQUESTS, WAITING
from tests.faults.endpoint_stub import free_port
from tests.support.release_maker import point, publish, scaled

pytestmark = [pytest.mark.ray, pytest.mark.serve]
PATH = "/v1/images/generations"
PROMPT = "a house with unmistakable SECRETWORDS"
WAIT_S = 60.0


class Endpoint:
    """A deployed endpoint with keys, two models and an output judge, and the store that it follows."""

    def __init__(self, session: Session, model_dir: Path, lora: LoraWeights, keys: Path) -> None:
        self.store, self.model_dir, self.lora = session.store, model_dir, lora
        self.keys, self.alice = keys, new_key(keys, "alice", None, None)
        self.bob = new_key(keys, "bob", 2, None)
        point(self.store, "aligned", self.publish("release-1", 1.0))
        point(self.store, "strict", "release-1")
        document = {
            "serve": {
                "port": free_port(),
                "num_cpus": 0.5,
                "models": ["strict"],
                "keys": str(keys),
                "reload_poll_s": 0.3,
                "default_steps": 2,
                "request_timeout_s": 120,
                "judge": {"name": "tests.support.pixel_judge:load_pixel_judge", "action": "report"},
            },
            "model": {"path": str(model_dir)},
            "store": session.store.config.model_dump(mode="json"),
        }
        self.url = deploy(build(document), parse_config(document).serve)

    def publish(self, release: str, factor: float) -> str:
        return publish(self.store, release, scaled(self.lora, factor), self.model_dir)

    def ask(self, key: str | None = None, **fields: Any) -> httpx.Response:
        headers = {} if key == "" else {"authorization": f"Bearer {key or self.alice}"}
        body = {"prompt": PROMPT, "seed": 1, **fields}
        return httpx.post(self.url + PATH, json=body, headers=headers, timeout=120, trust_env=False)

    def releases(self) -> dict[str, str]:
        headers = {"authorization": f"Bearer {self.alice}"}
        answer = httpx.get(self.url + "/v1/models", headers=headers, timeout=120, trust_env=False)
        return {model["id"]: model["release"] for model in answer.json()["data"]}


@pytest.fixture(scope="module")
def endpoint(
    session: Session, tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, tiny_lora: LoraWeights
) -> Iterator[Endpoint]:
    from ray import serve

    serve.shutdown()
    try:
        yield Endpoint(session, tiny_model_dir, tiny_lora, tmp_path_factory.mktemp("keys") / "keys.yaml")
    finally:
        serve.shutdown()


def logs() -> str:
    """Return everything that Ray has written in this session: of drivers, workers, Serve, and the system."""
    folder = Path("/tmp/ray") / ray.get_runtime_context().get_session_name() / "logs"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def lines_of_requests() -> list[dict[str, Any]]:
    lines = [line for line in logs().splitlines() if line.startswith('{"request_id"')]
    return [json.loads(line) for line in lines]


def metrics() -> str:
    """Return what Ray's own exporter offers to Prometheus."""
    [node] = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    return httpx.get(url, timeout=30, trust_env=False).text


def eventually(holds: Any, what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def test_keys_are_asked_for_and_never_logged(endpoint: Endpoint) -> None:
    answers = [endpoint.ask(""), endpoint.ask("sdpo-" + "wrong" * 8), endpoint.ask()]
    assert [answer.status_code for answer in answers] == [401, 401, 200]
    assert answers[0].headers["www-authenticate"] == "Bearer"
    limited = [endpoint.ask(endpoint.bob).status_code for _ in range(3)]
    assert limited == [200, 200, 429]
    revoke_key(endpoint.keys, "bob")
    eventually(lambda: endpoint.ask(endpoint.bob).status_code == 403, "the revoked key is refused")
    assert httpx.get(endpoint.url + "/healthz", timeout=60, trust_env=False).status_code == 200
    ids = [answer.headers["x-request-id"] for answer in answers]
    eventually(lambda: {line["request_id"] for line in lines_of_requests()} >= set(ids), "each request is logged")
    found = {line["request_id"]: line for line in lines_of_requests()}
    assert [(found[i].get("key"), found[i]["status"]) for i in ids] == [(None, 401), (None, 401), ("alice", 200)]
    assert found[ids[2]]["release"] == "release-1"
    everything = logs()
    for secret in (endpoint.alice, endpoint.bob, "wrongwrong", "SECRETWORDS"):
        assert secret not in everything


def test_the_output_judges_scores_are_in_the_answer(endpoint: Endpoint) -> None:
    answer = endpoint.ask(n=2).json()
    assert answer["judge"] == {"name": "pixel-sum", "version": "1", "threshold": 0.5}
    for entry in answer["data"]:
        assert entry["flagged"] == (max(entry["scores"].values()) >= 0.5)


def test_releases_change_under_load_without_a_failure(endpoint: Endpoint) -> None:
    stop = threading.Event()
    answers: list[httpx.Response] = []

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(endpoint.ask())

    askers = [threading.Thread(target=keep_asking) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for number in (2, 3):
            point(endpoint.store, "aligned", endpoint.publish(f"release-{number}", float(number)))
            eventually(lambda n=number: endpoint.releases()["aligned"] == f"release-{n}", "the new release is served")
        broken = endpoint.publish("release-4", 4.0)
        [key] = [key for key in endpoint.store.keys(f"artifacts/release/{broken}") if key.endswith(".safetensors")]
        endpoint.store.write(key, b"not what it was")
        point(endpoint.store, "aligned", broken)
        eventually(lambda: "release-4 of 'aligned' is refused" in logs(), "the broken release is refused")
    finally:
        stop.set()
        for asker in askers:
            asker.join(120)
    assert {answer.status_code for answer in answers} == {200}
    drawn: dict[str, set[str]] = {}
    for answer in answers:
        drawn.setdefault(answer.json()["release"], set()).add(answer.json()["data"][0]["b64_json"])
    assert set(drawn) == {"release-1", "release-2", "release-3"}
    assert endpoint.releases() == {"aligned": "release-3", "strict": "release-1"}
    # One seed and one prompt: two releases have no image in common.
    assert sum(len(found) for found in drawn.values()) == len(set().union(*drawn.values()))


def test_metrics_count_outcomes_and_hold_no_secret(endpoint: Endpoint) -> None:
    endpoint.ask()

    def exported() -> bool:
        text = metrics()
        return (
            all(metric.exported in text for metric in (REQUESTS, LATENCY, WAITING, IMAGES, RELOADS))
            and 'outcome="refused"' in text
        )

    eventually(exported, "Ray exports the endpoint's metrics")
    lines = [line for line in metrics().splitlines() if "safetydpo_" in line and not line.startswith("#")]
    assert any('code="ok"' in line and REQUESTS.exported in line for line in lines)
    assert any('code="invalid_api_key"' in line for line in lines)
    text = "\n".join(lines)
    for secret in ("SECRETWORDS", "alice", "bob", endpoint.alice):
        assert secret not in text
