"""What happens on the wire to an S3 server: lost answers, broken connections, proxies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import MissingBucket, StoreUnreachable, UnsafeStore
from cluster.store.artifacts import ArtifactStore


@pytest.mark.parametrize("fault", ["busy", "mute", "cut"])
def test_a_passing_fault_is_tried_again(
    fault: str, s3_store: ArtifactStore, wire: Any, over_wire: Callable[..., ArtifactStore], tmp_path: Path
) -> None:
    s3_store.write("key", b"x" * 2000)
    (tmp_path / "up").write_bytes(b"y" * 2000)
    wire.faults = {0: fault, 1: fault}
    assert over_wire().read("key") == b"x" * 2000
    wire.faults = {wire.seen: fault}
    over_wire().write("key", b"again")
    assert s3_store.read("key") == b"again"
    wire.faults = {wire.seen: fault}
    over_wire().upload("file", str(tmp_path / "up"))
    wire.faults = {wire.seen: fault, wire.seen + 1: fault}
    assert over_wire().download("file", str(tmp_path / "down"))
    assert (tmp_path / "down").read_bytes() == b"y" * 2000
    wire.faults = {wire.seen: fault}
    assert over_wire().keys("") == ["file", "key"]


@pytest.mark.parametrize("if_absent", [True, False])
def test_a_write_that_loses_its_body_leaves_no_object(
    if_absent: bool, s3_store: ArtifactStore, wire: Any, over_wire: Callable[..., ArtifactStore]
) -> None:
    wire.faults = dict.fromkeys(range(1000), "head")
    with pytest.raises(StoreUnreachable):
        over_wire(patience_s=0.5).write("key", b"whole", if_absent=if_absent)
    assert wire.seen > 0
    assert s3_store.read("key") is None
    wire.faults = {wire.seen: "head"}
    over_wire().write("key", b"whole", if_absent=if_absent)
    assert s3_store.read("key") == b"whole"


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_a_condition_is_refused(s3_store: ArtifactStore, header: str) -> None:
    def forget(request: Any, **_: object) -> None:
        del request.headers[header]

    s3_store.objects._client.meta.events.register("before-sign.s3.PutObject", forget)
    with pytest.raises(UnsafeStore, match="honours If-None-Match and If-Match"):
        s3_store.probe_conditional_writes()
    assert s3_store.keys("") == []


def test_a_bucket_that_is_not_there_is_not_made_in_passing(s3_store: ArtifactStore, tmp_path: Any) -> None:
    other = ArtifactStore(s3_store.config.model_copy(update={"bucket": "misspelt"}))
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
    assert "misspelt" not in {bucket["Name"] for bucket in s3_store.objects._client.list_buckets()["Buckets"]}


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    s3_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    ArtifactStore(s3_store.config).check()
