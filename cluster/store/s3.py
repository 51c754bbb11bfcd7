"""Objects in a bucket of an S3 endpoint, under the contract of ``cluster.store.objects``, with retries."""

from __future__ import annotations

import hashlib
import logging
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from boto3.exceptions import RetriesExceededError
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from cluster.errors import MissingBucket
from cluster.store.client import make_client
from cluster.store.config import StoreConfig
from cluster.store.limits import Limit, limit_of, too_large
from cluster.store.objects import LostRace, Versioned
from cluster.store.s3_errors import code, explain, is_transient

logger = logging.getLogger(__name__)

T = TypeVar("T")
ABSENT = ("404", "NoSuchKey", "NotFound")
START_PATIENCE_S = 5.0
"""How long the check at the start is retried: a wrong address should be reported soon."""
LONGEST_WAIT_S = 5.0
LOG_EVERY_S = 10.0
"""Shortest time between two log lines on the retries of one request."""
OWN_BUCKET = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")
DEFAULT_REGION = "us-east-1"
CHUNK = 2**20
CONDITIONS = {"IfNoneMatch": "If-None-Match", "IfMatch": "If-Match"}


class Stored(NamedTuple):
    """What a listing says of an object."""

    size: int
    etag: str
    """Without its quotes."""


def _age_s(answer: Mapping[str, Any]) -> float:
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - answer["LastModified"]).total_seconds())


def _read_body(body: Any, limit: Limit) -> bytes | None:
    """Return a body, or None when it goes on past the limit; the last, empty read notices one that was cut."""
    parts, size = list[bytes](), 0
    while part := body.read(CHUNK):
        parts.append(part)
        size += len(part)
        if size > limit.size:
            body.close()
            return None
    return b"".join(parts)


class _RetryLog:
    """Tells of the retries of one request: a log line for the first and then every ten seconds, and a count."""

    def __init__(self, where: str) -> None:
        self.where, self._logged_s = where, -LOG_EVERY_S

    def __call__(self, state: RetryCallState) -> None:
        """Log and count; tenacity calls this before it sleeps."""
        # Imported here for its weight: a store that answers needs no Ray in this process.
        from cluster.store.metrics import STORE_RETRIES

        error = None if state.outcome is None else state.outcome.exception()
        reason = code(error) if isinstance(error, ClientError) else type(error).__name__
        STORE_RETRIES.add(reason=reason)
        elapsed_s = state.seconds_since_start or 0.0
        if elapsed_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = elapsed_s
            logger.warning(
                "%s: %s; tried %d time(s) in %.1f s, and again until store.patience_s is over",
                self.where,
                " ".join(str(error).split()),
                state.attempt_number,
                elapsed_s,
            )


class S3Objects:
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
            try:
                self._connection = make_client(self.config)
            except BotoCoreError as error:
                raise explain(error, self.config, None) from error
        return self._connection

    def url(self, key: str = "") -> str:
        """Return a key's address, for people: its S3 URL and, unless it is AWS's, the endpoint."""
        where = f"s3://{self.config.bucket}/{self.config.full_key(key)}"
        return where if self.config.endpoint is None else f"{where} at {self.config.endpoint}"

    def _try(self, call: Callable[[], T], patience_s: float | None = None, condition: str | None = None) -> T:
        """Call with retries for transient errors; raise any other error with its cause and a fix.

        Time limits the retries, not their number: refused connections would use up any number within seconds, and a
        store may take a minute to restart.

        Args:
            call: The request.
            patience_s: How long it is retried; None: ``store.patience_s``.
            condition: The header that makes a write conditional.
        """
        try:
            _ = self._client  # made before the time limit starts, as that may take a second
            for attempt in Retrying(
                stop=stop_after_delay(patience_s or self.config.patience_s),
                wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT_S),
                retry=retry_if_exception(is_transient),
                before_sleep=_RetryLog(self.config.endpoint or "S3"),
                reraise=True,
            ):
                with attempt:
                    return call()
        except (ClientError, BotoCoreError) as error:
            raise explain(error, self.config, condition) from error
        raise AssertionError("tenacity returns or raises")

    def ensure_bucket(self) -> None:
        """Create the bucket when it does not exist."""
        try:
            self.check()
        except MissingBucket:
            self._try(self._create_bucket)

    def _create_bucket(self) -> None:
        try:
            # S3 refuses its default region as a constraint.
            region = self.config.region
            place = {} if region == DEFAULT_REGION else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            self._client.create_bucket(Bucket=self.config.bucket, **place)
        except ClientError as error:
            # An earlier try succeeded and only its answer was lost, or another process was first.
            if code(error) not in OWN_BUCKET:
                raise
            self._client.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1)

    def check(self) -> None:
        """Raise the error that explains why the bucket cannot be used; return when it can."""
        patience_s = min(START_PATIENCE_S, self.config.patience_s)
        self._try(lambda: self._client.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1), patience_s)

    def clock_ahead_s(self) -> float:
        """Return the seconds by which the store's clock is ahead of this machine's, accurate to a second."""
        started = time.time()
        answer = self._try(lambda: self._client.list_objects_v2(Bucket=self.config.bucket, MaxKeys=1), START_PATIENCE_S)
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return now.timestamp() + 0.5 - (started + time.time()) / 2

    def read(self, key: str) -> bytes | None:
        """Return an object's bytes, or None when it does not exist."""
        found = self.read_versioned(key)
        return None if found is None else found.data

    def read_versioned(self, key: str) -> Versioned | None:
        """Return an object's bytes, ETag and age, or None when it does not exist."""
        limit = limit_of(key)

        def get() -> Versioned | None:
            try:
                answer = self._client.get_object(Bucket=self.config.bucket, Key=self.config.full_key(key))
            except ClientError as error:
                if code(error) in ABSENT:
                    return None
                raise
            size = answer.get("ContentLength")
            data = _read_body(answer["Body"], limit) if size is None or size <= limit.size else None
            if data is None:
                answer["Body"].close()
                raise too_large(key, size, limit)
            return Versioned(data, answer["ETag"], _age_s(answer))

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

        # SeaweedFS 4.48 keeps an empty object when a connection closes between the head of a request and its body,
        # whatever length the head told. The digest makes every server refuse what is not whole.
        digest = b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()

        def put() -> None:
            try:
                self._client.put_object(
                    Bucket=self.config.bucket,
                    Key=self.config.full_key(key),
                    Body=data,
                    ContentMD5=digest,
                    **condition,
                )
            except ClientError as error:
                if if_match is not None and code(error) in ABSENT:
                    raise LostRace("it was deleted") from error
                raise

        self._try(put, condition=" and ".join(CONDITIONS[name] for name in condition) or None)

    def upload(self, key: str, path: str) -> None:
        """Upload a file as an object, in parts when it is large."""

        def put() -> None:
            # upload_file would wrap the cause in an error that names neither code nor status.
            with Path(path).open("rb") as file:
                self._client.upload_fileobj(file, self.config.bucket, self.config.full_key(key))

        self._try(put)

    def download(self, key: str, path: str, limit: int | None = None) -> bool:
        """Copy an object to a file, in parts when it is large; return False when the object does not exist."""

        def get() -> bool:
            try:
                if limit is not None:
                    self._require_within(key, limit)
                self._client.download_file(self.config.bucket, self.config.full_key(key), path)
            except ClientError as error:
                if code(error) in ABSENT:
                    return False
                raise
            except RetriesExceededError as error:
                raise error.last_exception from error
            return True

        return self._try(get)

    def _require_within(self, key: str, limit: int) -> None:
        size = self._client.head_object(Bucket=self.config.bucket, Key=self.config.full_key(key))["ContentLength"]
        if size > limit:
            raise too_large(key, size, Limit("this file", limit))

    def keys(self, prefix: str) -> list[str]:
        """Return the keys with a prefix, sorted, without the zero-byte folder markers that some writers leave."""
        return sorted(self.listing(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes of the objects with a prefix, by key; one request tells of a thousand."""
        return {key: found.size for key, found in self.listing(prefix).items()}

    def listing(self, prefix: str) -> dict[str, Stored]:
        """Return the objects with a prefix by their keys, as ``keys`` does."""

        def found() -> dict[str, Stored]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.config.bucket, Prefix=self.config.full_key(prefix)
            )
            cut = len(self.config.full_key(""))
            return {
                item["Key"][cut:]: Stored(int(item["Size"]), item["ETag"].strip('"'))
                for page in pages
                for item in page.get("Contents", ())
                if not item["Key"].endswith("/")
            }

        return self._try(found)

    def names_md5(self, key: str) -> bool:
        """Return whether an object's ETag can be its MD5: not where it is encrypted by a key of the store's user."""
        answer = self._try(lambda: self._client.head_object(Bucket=self.config.bucket, Key=self.config.full_key(key)))
        return "SSECustomerAlgorithm" not in answer and answer.get("ServerSideEncryption", "AES256") == "AES256"

    def delete(self, key: str) -> None:
        """Delete an object; it is no error when it does not exist."""
        self._try(lambda: self._client.delete_object(Bucket=self.config.bucket, Key=self.config.full_key(key)))
