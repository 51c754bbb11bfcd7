"""Objects on a real S3 server and on stubs of worse ones: retries, and errors that name the cause in time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import pytest
from pydantic import ValidationError

from cluster.errors import MissingBucket, StoreUnreachable, UnsafeStore, WrongCredentials
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from tests.support.s3_server import Credentials, RunningServer


def test_listings_leave_out_the_folder_marks_of_other_writers(s3_store: ArtifactStore) -> None:
    for key in ("x/b", "x/a", "x/deep/", "x/", "y"):
        s3_store.write(key, b"" if key.endswith("/") else b"1")
    assert s3_store.keys("x/") == ["x/a", "x/b"]
    assert s3_store.keys("") == ["x/a", "x/b", "y"]
    assert s3_store.keys("nothing/") == []


def each_fails(store: ArtifactStore, tmp_path: Path, kind: type[Exception], match: str, skip: str = "") -> None:
    (tmp_path / "file").write_bytes(b"1")
    acts = {
        "check": store.check,
        "bucket": store.ensure_bucket,
        "read": lambda: store.read("a"),
        "write": lambda: store.write("a", b"1"),
        "upload": lambda: store.upload("a", str(tmp_path / "file")),
        "keys": lambda: store.keys(""),
        "delete": lambda: store.delete("a"),
    }
    for name, act in acts.items():
        if name != skip:
            with pytest.raises(kind, match=match):
                act()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_named(
    s3_store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "wrong")
    each_fails(ArtifactStore(s3_store.config), tmp_path, WrongCredentials, f"refuses the credentials.*{name}")


def test_no_credentials_are_named(s3_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(WrongCredentials, match="set AWS_ACCESS_KEY_ID"):
        ArtifactStore(s3_store.config).check()


def test_a_missing_bucket_is_named_and_can_be_made(s3_server: RunningServer, tmp_path: Path) -> None:
    config = StoreConfig(endpoint=s3_server.endpoint, bucket="not-there")
    each_fails(ArtifactStore(config), tmp_path, MissingBucket, "store.bucket: .*'not-there'.*aws s3 mb", skip="bucket")
    store = ArtifactStore(config.model_copy(update={"bucket": "made-now"}))
    store.ensure_bucket()
    store.ensure_bucket()
    store.write("a", b"1")
    assert store.keys("") == ["a"]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_an_endpoint_where_nobody_listens_is_named_soon(s3_credentials: Credentials) -> None:
    started = time.monotonic()
    store = ArtifactStore(StoreConfig(endpoint=f"http://127.0.0.1:{unused_port()}"))
    with pytest.raises(StoreUnreachable, match=r"store\.endpoint: http://127.0.0.1:\d+ does not answer"):
        store.check()
    assert time.monotonic() - started < 10


def test_an_endpoint_that_never_answers_is_named_in_time(s3_credentials: Credentials) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = ArtifactStore(StoreConfig(endpoint=endpoint, read_timeout_s=0.3, patience_s=1.0))
        started = time.monotonic()
        with pytest.raises(StoreUnreachable, match="does not answer"):
            store.read("a")
        assert time.monotonic() - started < 10


class Flaky(BaseHTTPRequestHandler):
    """Answers 503 as often as ``failures`` says, then as a store that ignores conditions."""

    failures = 0
    asked = 0

    def answer(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = 503 if type(self).asked <= type(self).failures else 200
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_DELETE = answer  # noqa: N815 (http.server names them so)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def flaky(s3_credentials: Credentials) -> Iterator[type[Flaky]]:
    class Handler(Flaky):
        endpoint = ""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Handler
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_an_error_that_passes_is_tried_again_and_one_that_stays_is_named(flaky: type[Flaky]) -> None:
    store = ArtifactStore(StoreConfig(endpoint=flaky.endpoint, patience_s=10.0))  # type: ignore[attr-defined]
    flaky.failures = 3
    store.write("a", b"1")
    assert flaky.asked == 4
    flaky.failures, flaky.asked = 10_000, 0
    impatient = ArtifactStore(StoreConfig(endpoint=flaky.endpoint, patience_s=1.5))  # type: ignore[attr-defined]
    with pytest.raises(StoreUnreachable, match="keeps answering"):
        impatient.write("a", b"1")
    assert flaky.asked > 1


def test_a_store_that_comes_back_is_found_again(s3_credentials: Credentials) -> None:
    port = unused_port()
    store = ArtifactStore(StoreConfig(endpoint=f"http://127.0.0.1:{port}", patience_s=30.0))

    class Handler(Flaky):
        pass

    made: list[HTTPServer] = []

    def come_back() -> None:
        time.sleep(0.5)
        made.append(HTTPServer(("127.0.0.1", port), Handler))
        made[0].serve_forever()

    threading.Thread(target=come_back, daemon=True).start()
    store.write("a", b"1")
    assert Handler.asked == 1
    made[0].shutdown()
    made[0].server_close()


def test_a_store_that_ignores_conditions_is_refused(flaky: type[Flaky], s3_store: ArtifactStore) -> None:
    with pytest.raises(UnsafeStore, match="If-None-Match"):
        ArtifactStore(StoreConfig(endpoint=flaky.endpoint)).probe_conditional_writes()  # type: ignore[attr-defined]
    s3_store.probe_conditional_writes()
    assert s3_store.keys("") == [], "the probe leaves nothing"


@pytest.mark.parametrize(
    "settings",
    [{"endpoint": "127.0.0.1:8333"}, {"bucket": "Upper_Case"}, {"bucket": "a"}, {"prefix": "a b"}, {"buket": "x"}],
)
def test_a_store_that_cannot_be_is_refused_by_its_field(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        StoreConfig.model_validate(settings)


def test_pyarrow_reads_what_the_store_wrote_with_the_same_environment(
    s3_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", str(s3_store.config.endpoint))
    s3_store.write("a", b"through pyarrow")
    files, path = fs.FileSystem.from_uri(f"s3://{s3_store.config.bucket}/{s3_store.config.prefix}/a")
    with files.open_input_stream(path) as stream:
        assert stream.read() == b"through pyarrow"
    assert boto3.client("s3").list_buckets()["Buckets"], "a plain client finds the endpoint too"
