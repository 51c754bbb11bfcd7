"""Objects in a bucket: reads, conditional writes and listings, with retries and errors that name the cause."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from boto3.exceptions import RetriesExceededError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import (
    ConnectionError as NoConnection,
)
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from cluster.errors import ClusterError, MissingBucket, StoreRefused, StoreUnreachable, UnsafeStore, WrongCredentials
from cluster.store.client import make_client
from cluster.store.config import StoreConfig

T = TypeVar("T")
ABSENT = ("404", "NoSuchKey", "NotFound")
LOST_RACE = ("412", "PreconditionFailed")
TRANSIENT_CODES = ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "ConditionalRequestConflict")
TRANSIENT_STATUS = (429, 500, 502, 503, 504)
REFUSED_STATUS = (401, 403)
START_PATIENCE_S = 5.0
"""How long the check at the start is retried: a wrong address should be reported soon."""
LONGEST_WAIT_S = 5.0
OWN_BUCKET = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


class Versioned(NamedTuple):
    """An object's bytes, the ETag of this version, and its age in seconds by the store's clock."""

    data: bytes
    etag: str
    age_s: float


class LostRace(Exception):
    """A conditional write failed, since the object is not in the expected state."""


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _age_s(answer: Mapping[str, Any]) -> float:
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - answer["LastModified"]).total_seconds())


def _is_transient(error: BaseException) -> bool:
    """Return whether an error may be gone at the next try, for example while the store restarts."""
    if isinstance(error, ClientError):
        return _code(error) in TRANSIENT_CODES or _status(error) in TRANSIENT_STATUS
    return isinstance(error, (HTTPClientError, NoConnection, IncompleteReadError))


class ObjectStore:
    """One bucket and prefix of an S3 endpoint; can be pickled, and connects again in the process that unpickles it."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self._connection: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the connection."""
        return {"config": self.config, "_connection": None}

    @property
    def _client(self) -> Any:
        if self._connection is None:
            self._connection = make_client(self.config)
        return self._connection

    def url(self, key: str = "") -> str:
        """Return a key's address, for people: its S3 URL and, unless it is AWS's, the endpoint."""
        where = f"s3://{self.config.bucket}/{self._key(key)}"
        return where if self.config.endpoint is None else f"{where} at {self.config.endpoint}"

    def _key(self, key: str) -> str:
        return f"{self.config.prefix.strip('/')}/{key}".lstrip("/")

    def _try(self, call: Callable[[], T], patience_s: float | None = None) -> T:
        """Call with retries for transient errors; raise any other error with its cause and a fix.

        Time limits the retries, not their number: refused connections would use up any number within seconds, and a
        store may take a minute to restart.
        """
        with self._explained():
            for attempt in Retrying(
                stop=stop_after_delay(patience_s or self.config.patience_s),
                wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT_S),
                retry=retry_if_exception(_is_transient),
                reraise=True,
            ):
                with attempt:
                    return call()
        raise AssertionError("tenacity returns or raises")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        where = self.config.endpoint or "the default S3 endpoint"
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound) as error:
            raise WrongCredentials(
                f"no credentials: {error}", field="store", fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except ClientError as error:
            code = _code(error)
            if code == "NoSuchBucket":
                raise MissingBucket(
                    f"{where} has no bucket {self.config.bucket!r}",
                    field="store.bucket",
                    fix=f"create it (aws s3 mb s3://{self.config.bucket}) or name another",
                ) from error
            if _status(error) in REFUSED_STATUS:
                raise WrongCredentials(
                    f"{where} refuses the credentials ({code})",
                    field="store",
                    fix="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the key's rights on the bucket, and the clock",
                ) from error
            if code in LOST_RACE:
                raise LostRace(code) from error
            if _is_transient(error):
                raise self._unreachable(f"{where} keeps answering {code}") from error
            raise StoreRefused(
                f"{where} answers {code}: {error}",
                field="store",
                fix="search for the code in the store's documentation",
            ) from error
        except BotoCoreError as error:
            raise self._unreachable(f"{where} does not answer: {error}") from error

    def _unreachable(self, message: str) -> ClusterError:
        return StoreUnreachable(message, field="store.endpoint", fix="check the address and that the store is running")

    def ensure_bucket(self) -> None:
        """Create the bucket when it does not exist."""
        try:
            self.check()
        except MissingBucket:
            self._try(self._create_bucket)

    def _create_bucket(self) -> None:
        try:
            self._client.create_bucket(Bucket=self.config.bucket)
        except ClientError as error:
            # An earlier try succeeded and only its answer was lost, or another process was first.
            if _code(error) not in OWN_BUCKET:
                raise
            self._client.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1)

    def check(self) -> None:
        """Raise the error that explains why the bucket cannot be used; return when it can."""
        client = self._client  # created before the time limit starts, as it may take a second
        patience_s = min(START_PATIENCE_S, self.config.patience_s)
        self._try(lambda: client.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1), patience_s)

    def clock_ahead_s(self) -> float:
        """Return the seconds by which the store's clock is ahead of this machine's, accurate to a second."""
        started = time.time()
        answer = self._try(lambda: self._client.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1), START_PATIENCE_S)
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return now.timestamp() + 0.5 - (started + time.time()) / 2

    def probe_conditional_writes(self) -> None:
        """Raise UnsafeStore when a write succeeds although its condition, on absence or on a version, does not hold."""
        key = f"probe/{secrets.token_hex(8)}"
        self.write(key, b"first")
        try:
            if self._overwrites(key, if_absent=True) or self._overwrites(key, if_match=f'"{"0" * 32}"'):
                raise UnsafeStore(
                    "the store overwrote an object although the write's condition did not hold",
                    field="store.endpoint",
                    fix="use a store that honours If-None-Match and If-Match (S3, MinIO, Ceph, SeaweedFS)",
                )
        finally:
            self.delete(key)

    def _overwrites(self, key: str, *, if_absent: bool = False, if_match: str | None = None) -> bool:
        try:
            self.write(key, b"second", if_absent=if_absent, if_match=if_match)
        except LostRace:
            return False
        return True

    def read(self, key: str) -> bytes | None:
        """Return an object's bytes, or None when it does not exist."""
        found = self.read_versioned(key)
        return None if found is None else found.data

    def read_versioned(self, key: str) -> Versioned | None:
        """Return an object's bytes, ETag and age, or None when it does not exist."""

        def get() -> Versioned | None:
            try:
                answer = self._client.get_object(Bucket=self.config.bucket, Key=self._key(key))
                return Versioned(answer["Body"].read(), answer["ETag"], _age_s(answer))
            except ClientError as error:
                if _code(error) in ABSENT:
                    return None
                raise

        return self._try(get)

    def write(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> None:
        """Write an object as a whole; raise LostRace when a condition does not hold.

        A write whose answer was lost is tried again, and then finds its own object. To learn which writer won, include
        a unique token in ``data`` and read it back.
        """
        condition: dict[str, str] = {}
        if if_absent:
            condition["IfNoneMatch"] = "*"
        if if_match is not None:
            condition["IfMatch"] = if_match

        def put() -> None:
            try:
                self._client.put_object(Bucket=self.config.bucket, Key=self._key(key), Body=data, **condition)
            except ClientError as error:
                if if_match is not None and _code(error) in ABSENT:
                    raise LostRace("it was deleted") from error
                raise

        self._try(put)

    def upload(self, key: str, path: str) -> None:
        """Upload a file as an object, in parts when it is large."""

        def put() -> None:
            # upload_file would wrap the cause in an error that names neither code nor status.
            with Path(path).open("rb") as file:
                self._client.upload_fileobj(file, self.config.bucket, self._key(key))

        self._try(put)

    def download(self, key: str, path: str) -> bool:
        """Download an object to a file; return False when the object does not exist."""

        def get() -> bool:
            try:
                self._client.download_file(self.config.bucket, self._key(key), path)
            except ClientError as error:
                if _code(error) in ABSENT:
                    return False
                raise
            except RetriesExceededError as error:
                raise error.last_exception from error
            return True

        return self._try(get)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys with a prefix, sorted, without the zero-byte folder markers that some writers leave."""

        def listing() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.config.bucket, Prefix=self._key(prefix)
            )
            found = [item["Key"] for page in pages for item in page.get("Contents", ())]
            cut = len(self._key(""))
            return sorted(key[cut:] for key in found if not key.endswith("/"))

        return self._try(listing)

    def delete(self, key: str) -> None:
        """Delete an object; it is no error when it does not exist."""
        self._try(lambda: self._client.delete_object(Bucket=self.config.bucket, Key=self._key(key)))
