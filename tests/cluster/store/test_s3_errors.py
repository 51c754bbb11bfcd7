"""Answers of S3 stores as users met them: each names its cause and the setting or the step that helps."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.errors import (
    ClusterError,
    CorruptArtifact,
    StoreFull,
    StoreRefused,
    StoreUnreachable,
    UnsafeStore,
    WrongCredentials,
)
from cluster.metrics import Counter
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from tests.support.s3_server import Credentials


class Stub:
    """Answers every request alike, at first as often with 503 as ``busy`` says."""

    def __init__(self) -> None:
        self.stores: dict[float, ArtifactStore] = {}
        self.reset()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stub.asked += 1
                body = stub.document() if stub.body is None else stub.body
                self.send_response(503 if stub.asked <= stub.busy else stub.status)
                for name, value in {"Content-Length": str(len(body)), **stub.headers}.items():
                    if value:
                        self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.send(body)

            def send(self, body: bytes) -> None:
                for start in range(0, len(body), 65536):
                    try:
                        self.wfile.write(body[start : start + 65536])
                    except OSError:
                        return
                    stub.sent += 65536

            do_GET = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815 (http.server names them so)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def reset(self) -> None:
        self.status, self.code, self.message = 200, "", ""
        self.headers: dict[str, str] = {}
        self.body: bytes | None = None
        self.busy, self.asked, self.sent = 0, 0, 0

    def document(self) -> bytes:
        if not self.code:
            return b""
        return f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()

    def store(self, patience_s: float = 3.0) -> ArtifactStore:
        """Return a store on the stub; a client takes half a second to make, so it is kept."""
        if patience_s not in self.stores:
            self.stores[patience_s] = self.new_store(patience_s)
        return self.stores[patience_s]

    def new_store(self, patience_s: float = 3.0) -> ArtifactStore:
        endpoint = f"http://127.0.0.1:{self.server.server_port}"
        return ArtifactStore(StoreConfig(endpoint=endpoint, patience_s=patience_s))


@pytest.fixture(scope="module")
def one_stub(s3_credentials: Credentials) -> Iterator[Stub]:
    found = Stub()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def stub(one_stub: Stub) -> Stub:
    one_stub.reset()
    return one_stub


def refusal(stub: Stub, status: int, code: str, message: str = "", **headers: str) -> ClusterError:
    """Return the error of a plain write."""
    stub.status, stub.code, stub.message, stub.headers = status, code, message, headers
    with pytest.raises(ClusterError) as caught:
        stub.store().write("a", b"1")
    return caught.value


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "QuotaExceeded"),  # Ceph
        (403, "XMinioAdminBucketQuotaExceeded"),
        (507, "XMinioStorageFull"),
        (507, "InsufficientStorage"),
        (500, "StorageFull"),
        (400, "StorageQuotaExceeded"),
        (507, ""),
    ],
)
def test_a_full_store_is_no_wrong_key_and_is_not_asked_again(stub: Stub, status: int, code: str) -> None:
    found = refusal(stub, status, code, "no more")
    assert type(found) is StoreFull
    assert "quota" in found.fix
    assert stub.asked == 1


@pytest.mark.parametrize("condition", [{"if_absent": True}, {"if_match": '"1"'}])
@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (400, "InvalidArgument"), (400, "InvalidRequest"), (400, ""), (405, "MethodNotAllowed")],
)
def test_a_store_that_does_not_know_conditions_is_named_as_one(
    stub: Stub, status: int, code: str, condition: dict[str, object]
) -> None:
    stub.status, stub.code, stub.message = status, code, "A header you provided implies functionality"
    with pytest.raises(UnsafeStore, match="use a store that honours If-None-Match and If-Match") as caught:
        stub.store().write("a", b"1", **condition)  # type: ignore[arg-type]
    assert ("If-None-Match" if "if_absent" in condition else "If-Match") in caught.value.message
    assert caught.value.field == "store.endpoint"


def test_a_conditional_write_that_fails_for_another_reason_says_that(stub: Stub) -> None:
    stub.status, stub.code = 400, "EntityTooLarge"
    with pytest.raises(StoreRefused, match="EntityTooLarge"):
        stub.store().write("a", b"1", if_absent=True)
    stub.code = "ExpiredToken"
    with pytest.raises(WrongCredentials, match="AWS_SESSION_TOKEN"):
        stub.store().write("a", b"1", if_absent=True)


@pytest.mark.parametrize(
    ("status", "code", "message", "headers", "fix"),
    [
        (
            *(400, "AuthorizationHeaderMalformed"),
            "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'",
            *({}, "set store.region to 'eu-west-1'"),
        ),
        (301, "PermanentRedirect", "", {"x-amz-bucket-region": "eu-west-1"}, "set store.region to 'eu-west-1'"),
        (301, "", "", {"x-amz-bucket-region": "eu-west-1"}, "set store.region to 'eu-west-1'"),
        (400, "IllegalLocationConstraintException", "", {}, "set store.region to the bucket's region"),
        (400, "AuthorizationHeaderMalformed", "unexpected scope", {}, "set store.region to the bucket's region"),
    ],
)
def test_a_wrong_region_names_the_setting(
    stub: Stub, status: int, code: str, message: str, headers: dict[str, str], fix: str
) -> None:
    found = refusal(stub, status, code, message, **headers)
    assert (type(found), found.field, found.fix) == (StoreRefused, "store.region", fix)
    stub.status, stub.code, stub.message, stub.headers = status, code, message, headers
    with pytest.raises(StoreRefused, match=r"^store\.region: "):
        stub.store().check()


def test_a_redirect_elsewhere_names_the_endpoint(stub: Stub) -> None:
    found = refusal(stub, 308, "", "", location="https://127.0.0.1/")
    assert (found.field, "https://127.0.0.1/" in found.message) == ("store.endpoint", True)


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "InvalidAccessKeyId", WrongCredentials, "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", WrongCredentials, "store.region"),
        (403, "AccessDenied", WrongCredentials, "the right to PutObject"),
        (400, "ExpiredToken", WrongCredentials, "AWS_SESSION_TOKEN"),
        (400, "InvalidToken", WrongCredentials, "AWS_SESSION_TOKEN"),
        (403, "RequestTimeTooSkewed", StoreRefused, "time service"),
        (403, "AllAccessDisabled", StoreRefused, "closed the account"),
        (403, "InvalidObjectState", StoreRefused, "archived"),
        (501, "NotImplemented", StoreRefused, "NotImplemented"),
        (418, "", StoreRefused, "store.endpoint is an S3 endpoint"),
    ],
)
def test_a_refusal_names_what_was_refused(
    stub: Stub, status: int, code: str, kind: type[ClusterError], says: str
) -> None:
    found = refusal(stub, status, code, "why")
    assert type(found) is kind
    assert says in str(found)


def test_something_else_than_s3_at_the_endpoint_is_named(stub: Stub) -> None:
    stub.status, stub.body = 404, b"<html><body>Not found"
    with pytest.raises(StoreRefused, match=r"answers 404: .*check that store\.endpoint is an S3 endpoint"):
        stub.store().check()


def test_a_profile_that_is_not_there_is_named(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(WrongCredentials, match="nobody"):
        stub.new_store().check()


def test_retries_are_logged_once_in_a_while_and_counted(
    stub: Stub, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[dict[str, str]] = []
    monkeypatch.setattr(Counter, "add", lambda self, amount=1.0, **tags: counted.append({"name": self.name, **tags}))
    stub.busy = 3
    with caplog.at_level(logging.WARNING):
        stub.store().write("a", b"1")
    assert counted == [{"name": "safetydpo_store_retries_total", "reason": "503"}] * 3
    [line] = [record.message for record in caplog.records if record.name == "cluster.store.s3"]
    assert "503" in line
    assert "store.patience_s" in line


def test_an_answer_that_stays_bad_is_reported_when_patience_ends(stub: Stub) -> None:
    stub.busy = 10_000
    with pytest.raises(StoreUnreachable, match="keeps answering 503"):
        stub.store(patience_s=0.5).write("a", b"1")


@pytest.mark.parametrize("says_its_length", [True, False])
def test_a_pointer_of_many_megabytes_is_not_read(stub: Stub, says_its_length: bool) -> None:
    stub.body = b"x" * (40 << 20)
    stub.headers = {
        "Date": "Fri, 27 Nov 2026 00:00:00 GMT",
        "Last-Modified": "Fri, 27 Nov 2026 00:00:00 GMT",
        "ETag": '"1"',
    }
    if not says_its_length:
        stub.headers |= {"Content-Length": "", "Connection": "close"}
    with pytest.raises(CorruptArtifact, match=r"pointers/aligned\.json: .*a pointer may have \(65536\)"):
        stub.store().read("pointers/aligned.json")
    assert stub.sent < 20 << 20, "most of it stays where it is"
