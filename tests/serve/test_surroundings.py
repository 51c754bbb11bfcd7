"""What Serve and its nodes are set to: an endpoint is open on purpose alone, and answers what it has accepted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.stub_endpoint import build_images
from cluster.preflight.check import Status
from jobs.preflight import Preflight
from jobs.run.config import RunConfig
from safety.errors import ConfigError
from serve.deployment import DeploymentFailed, deploy, undeploy
from serve.endpoint_config import EndpointConfig
from serve.keys import new_key
from serve.surroundings import NODE_DRAIN, Listener, find_listener, find_short_limits, require_purpose
from tests.faults.endpoint_stub import free_port

PATH = "/v1/images/generations"
OPEN = ("0.0.0.0", "::", "10.1.2.3", "images.example")
KEYS = Path("keys.yaml")


@pytest.mark.parametrize("host", OPEN)
def test_an_open_address_of_serve_takes_a_key_or_a_word(host: str) -> None:
    with pytest.raises(ConfigError, match="which others can reach") as caught:
        require_purpose(EndpointConfig(), Listener(host))
    assert caught.value.field == "serve.keys"
    assert "allow_open" in caught.value.fix
    require_purpose(EndpointConfig(keys=KEYS), Listener(host))
    require_purpose(EndpointConfig(allow_open=True), Listener(host))


@pytest.mark.parametrize("listener", [None, Listener("127.0.0.1"), Listener("::1"), Listener("localhost")])
def test_a_loopback_address_is_open_to_its_own_machine(listener: Listener | None) -> None:
    require_purpose(EndpointConfig(), listener)


@pytest.mark.parametrize(
    ("given_up_s", "drain", "found"),
    [
        (70.0, "130", []),
        (None, "130", []),
        (60.0, "130", ["http_options.request_timeout_s"]),
        (30.0, "200", ["http_options.request_timeout_s"]),
        (70.0, "60", [f"{NODE_DRAIN}=130"]),
        (70.0, "", [f"{NODE_DRAIN}=130"]),
        (70.0, None, [f"{NODE_DRAIN}=130"]),
    ],
)
def test_limits_that_cut_answers_short_are_named(given_up_s: float | None, drain: str | None, found: list[str]) -> None:
    environment = {} if drain is None else {NODE_DRAIN: drain}
    said = list(find_short_limits(EndpointConfig(), Listener("127.0.0.1", given_up_s), environment))
    assert len(said) == len(found)
    assert all(part in sentence for part, sentence in zip(found, said, strict=True))


class Deployed:
    """An endpoint on every address, of half a second an image, and its keys: one of 20 images a minute, one without end."""

    def __init__(self, keys: Path) -> None:
        self.limited, self.free = new_key(keys, "alice", None, 20), new_key(keys, "bob", None, None)
        settings = {"host": "0.0.0.0", "port": free_port(), "keys": str(keys), "num_cpus": 0.2, "request_timeout_s": 60}
        self.document: dict[str, Any] = {"serve": {**settings, "batch_size": 1, "max_images": 20}}
        self.endpoint = EndpointConfig.model_validate(self.document["serve"])
        self.url = deploy(build_images(self.document), self.endpoint)

    def ask(self, key: str, n: int, timeout_s: float = 120.0) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        body = {"prompt": "x", "n": n}
        return httpx.post(self.url + PATH, json=body, headers=headers, timeout=timeout_s, trust_env=False)


@pytest.fixture(scope="module")
def deployed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    from ray import serve

    serve.shutdown()
    try:
        yield Deployed(tmp_path_factory.mktemp("keys") / "keys.yaml")
    finally:
        serve.shutdown()


@pytest.mark.ray
@pytest.mark.serve
@pytest.mark.timeout(300)
class TestDeployed:
    """On a real Serve; the last test takes the endpoint down."""

    def test_the_endpoint_sees_where_serve_listens_and_refuses_to_be_open_there(self, deployed: Deployed) -> None:
        found = find_listener()
        assert found == Listener("0.0.0.0", 70.0)
        other = {"app": "other", "route_prefix": "/other", "keys": None, "start_timeout_s": 120}
        # Its config names loopback, and Serve, which runs already, stays where it is.
        hidden = {"serve": {**self.settings(deployed), **other, "host": "127.0.0.1"}}
        with pytest.raises(ConfigError, match=r"Serve listens on 0\.0\.0\.0"):
            deploy(build_images(hidden), EndpointConfig.model_validate(hidden["serve"]))

    def test_preflight_finds_it_before_any_work(self, deployed: Deployed, tmp_path: Path) -> None:
        run = RunConfig.model_validate({"run": {"name": "x", "output": str(tmp_path)}})
        with ExitStack() as stack:
            found = Preflight(run, run.load_taxonomy(), stack)._endpoint()
        assert (found.status, "Serve listens on 0.0.0.0" in found.found) == (Status.FAIL, True)

    def test_a_gateway_that_serve_deploy_starts_refuses_it_too(
        self, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hidden = {"serve": {**self.settings(deployed), "app": "other", "route_prefix": "/other", "keys": None}}
        hidden["serve"]["host"] = "127.0.0.1"
        monkeypatch.setattr("serve.deployment.require_purpose", lambda *_: None)
        with pytest.raises(DeploymentFailed, match="which others can reach, and no key is asked for"):
            deploy(build_images(hidden), EndpointConfig.model_validate(hidden["serve"]))

    def test_one_that_hangs_up_pays_for_what_was_rendered_and_gets_the_rest_back(self, deployed: Deployed) -> None:
        with pytest.raises(httpx.TimeoutException):
            deployed.ask(deployed.limited, 20, timeout_s=3.0)
        time.sleep(1.0)
        assert deployed.ask(deployed.limited, 20).status_code == 429
        assert deployed.ask(deployed.limited, 1).status_code == 200

    def test_what_it_has_accepted_is_answered_before_it_goes(self, deployed: Deployed) -> None:
        answers: list[httpx.Response] = []
        clients = [
            threading.Thread(target=lambda: answers.append(deployed.ask(deployed.free, 2))) for _ in range(6)
        ]  # two in the renderer, four in the gateway's queue
        for client in clients:
            client.start()
        time.sleep(1.5)
        undeploy(deployed.endpoint)
        for client in clients:
            client.join(60)
        assert [answer.status_code for answer in answers] == [200] * 6

    @staticmethod
    def settings(deployed: Deployed) -> dict[str, Any]:
        settings: dict[str, Any] = deployed.document["serve"]
        return settings
