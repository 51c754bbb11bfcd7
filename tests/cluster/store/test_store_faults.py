"""A store that cannot be used is told at once, with the setting to change and the fix."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.errors import MissingBucket, StoreUnreachable, WrongCredentials
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig

pytestmark = pytest.mark.s3
KEY, SECRET = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"


@pytest.mark.parametrize(("name", "value"), [(SECRET, "wrong"), (KEY, "nobody")])
def test_wrong_credentials(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    stranger = ArtifactStore(store.config)
    for call in (stranger.check, lambda: stranger.read("key"), lambda: stranger.write("key", b"")):
        with pytest.raises(WrongCredentials, match=rf"refuses the credentials .* Fix: check {KEY}, {SECRET}"):
            call()
    assert store.keys("") == []


def test_no_credentials(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv(KEY)
    monkeypatch.delenv(SECRET)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(WrongCredentials, match=f"set {KEY} and {SECRET}"):
        ArtifactStore(store.config).check()


def test_a_bucket_that_is_not_there_is_not_made_in_passing(store: ArtifactStore, tmp_path: Any) -> None:
    other = ArtifactStore(store.config.model_copy(update={"bucket": "misspelt"}))
    (tmp_path / "a.json").write_text("{}")
    calls: list[Callable[[], Any]] = [
        other.check,
        lambda: other.read("key"),
        lambda: other.keys(""),
        lambda: other.write("key", b""),
        lambda: other.upload("key", str(tmp_path / "a.json")),
        lambda: other.manifest("dataset", "dataset-1"),
        lambda: other.put("dataset", "dataset-1", tmp_path, config={}, seed=0),
    ]
    for call in calls:
        with pytest.raises(MissingBucket, match=r"store.bucket: .* no bucket 'misspelt'.*aws s3 mb s3://misspelt"):
            call()
    assert "misspelt" not in {bucket["Name"] for bucket in store._client.list_buckets()["Buckets"]}


def test_a_bucket_is_made_on_request_and_only_once(store: ArtifactStore) -> None:
    other = ArtifactStore(store.config.model_copy(update={"bucket": f"made-{store.config.prefix}"}))
    other.ensure_bucket()
    other.write("key", b"kept")
    other.ensure_bucket()
    assert other.read("key") == b"kept"


def test_an_endpoint_where_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(StoreUnreachable, match=rf"store.endpoint: {endpoint} does not answer.*Fix: check the address"):
            ArtifactStore(StoreConfig(endpoint=endpoint)).check()
    assert time.monotonic() - started < 5


def test_an_endpoint_that_never_answers(wire: Any, over_wire: Callable[..., ArtifactStore]) -> None:
    wire.faults = dict.fromkeys(range(10), "hang")
    started = time.monotonic()
    with pytest.raises(StoreUnreachable, match="does not answer: Read timeout"):
        over_wire(read_timeout_s=0.5).check()
    assert time.monotonic() - started < 5


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    ArtifactStore(store.config).check()


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": "127.0.0.1:9000"},
        {"endpoint": "http://host/path"},
        {"bucket": "Upper"},
        {"bucket": "a"},
        {"prefix": "a?b"},
        {"attempts": 0},
        {"buckets": "x"},
    ],
)
def test_settings_that_name_no_store_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        StoreConfig(**settings)
