"""Errors of an S3 store: which may pass, and for the others the cause and the setting that helps."""

from __future__ import annotations

import re
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
)
from botocore.exceptions import (
    ConnectionError as NoConnection,
)

from cluster.errors import (
    ClusterError,
    MissingBucket,
    StoreFull,
    StoreRefused,
    StoreUnreachable,
    UnsafeStore,
    WrongCredentials,
)
from cluster.store.config import StoreConfig
from cluster.store.objects import LostRace

LOST_RACE = ("412", "PreconditionFailed")
TRANSIENT_CODES = (
    *("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "ConditionalRequestConflict"),
    *("OperationAborted", "IncompleteBody", "BadDigest"),
)
TRANSIENT_STATUS = (429, 500, 502, 503, 504)
FULL = re.compile(r"quota|storage_?full|insufficient_?(storage|capacity|space)|(disk|no)_?(full|space)", re.IGNORECASE)
FULL_STATUS = 507
ACCOUNT = ("AccountProblem", "AllAccessDisabled", "UserSuspended", "AccountSuspended", "NotSignedUp", "InvalidPayer")
CLOCK = ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture")
CREDENTIALS = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch")
ARCHIVED = "InvalidObjectState"
DENIED = "AccessDenied"
REFUSED_STATUS = (401, 403)
REGION = (
    *("AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "MovedPermanently", "InvalidRegion"),
    *("IllegalLocationConstraintException", "InvalidLocationConstraint", "InvalidRegionName"),
)
REGION_HEADER = "x-amz-bucket-region"
EXPECTED_REGION = re.compile(r"(?:expecting|expected|use)\W+(?:region\W+)?'([a-z0-9-]+)'")
REDIRECTS = (301, 302, 307, 308)
NO_CONDITION_STATUS = (400, 405, 501)
OTHER_FAULTS = ("EntityTooLarge", "InvalidBucketName", "KeyTooLongError", "InvalidDigest", "MetadataTooLarge")
"""Codes of status 400 that a conditional write may get for another reason than its condition."""
CONDITIONAL_STORES = "use a store that honours If-None-Match and If-Match (S3, MinIO, Ceph, SeaweedFS)"


def code(error: ClientError) -> str:
    """Return S3's code for an error, or its status where the answer has no code."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _metadata(error: ClientError) -> dict[str, Any]:
    return dict(error.response.get("ResponseMetadata", {}))


def _status(error: ClientError) -> int:
    return int(_metadata(error).get("HTTPStatusCode", 0))


def _is_full(error: ClientError) -> bool:
    # A limit on the rate of requests is a quota too, and passes.
    return _status(error) not in (429, 503) and (FULL.search(code(error)) is not None or _status(error) == FULL_STATUS)


def is_transient(error: BaseException) -> bool:
    """Return whether an error may be gone at the next try, for example while the store restarts."""
    if isinstance(error, ClientError):
        return not _is_full(error) and (code(error) in TRANSIENT_CODES or _status(error) in TRANSIENT_STATUS)
    return isinstance(error, (HTTPClientError, NoConnection, IncompleteReadError)) and not isinstance(error, SSLError)


def explain(error: ClientError | BotoCoreError, config: StoreConfig, condition: str | None) -> Exception:
    """Return the error to raise instead of boto's: LostRace, or a ClusterError that names the cause and a setting.

    Args:
        error: boto's.
        config: The store's.
        condition: The header of the conditional write that failed; None for other requests.
    """
    where = config.endpoint or "S3"
    if isinstance(error, ClientError):
        return _refusal(error, config, where, condition)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound)):
        return WrongCredentials(
            f"no credentials: {error}", field="store", fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, SSLError):
        return StoreRefused(
            f"{where} does not prove who it is: {error}",
            field="store.endpoint",
            fix="check its scheme and host; for a certificate of your own authority, name its file in AWS_CA_BUNDLE",
        )
    return _unreachable(f"{where} does not answer: {error}")


def _unreachable(message: str) -> ClusterError:
    return StoreUnreachable(message, field="store.endpoint", fix="check the address and that the store is running")


def _refusal(error: ClientError, config: StoreConfig, where: str, condition: str | None) -> Exception:
    """Return the error for an answer of the store; the order matters, as stores differ in status and code."""
    found = code(error)
    if found in LOST_RACE:
        return LostRace(found)
    if found == "NoSuchBucket":
        return MissingBucket(
            f"{where} has no bucket {config.bucket!r}",
            field="store.bucket",
            fix=f"create it (aws s3 mb s3://{config.bucket}) or name another",
        )
    if _is_full(error):
        return StoreFull(
            f"{where} has no room: {found}: {_message(error)}",
            field="store.bucket",
            fix="raise the quota of the bucket or the account, free some space, or name another bucket",
        )
    if is_transient(error):
        return _unreachable(f"{where} keeps answering {found}")
    return (
        _region(error, config, where)
        or _credentials(error, where)
        or (None if condition is None else _condition(error, where, condition))
        or StoreRefused(
            f"{where} answers {found}: {error}",
            field="store",
            fix="look the code up in the store's documentation, and check that store.endpoint is an S3 endpoint",
        )
    )


def _message(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))


def _region(error: ClientError, config: StoreConfig, where: str) -> ClusterError | None:
    """Return the error for a bucket of another region, which stores report as a redirect or a malformed header."""
    headers = _metadata(error).get("HTTPHeaders", {})
    detail, match = error.response.get("Error", {}), EXPECTED_REGION.search(_message(error))
    expected = detail.get("Region") or headers.get(REGION_HEADER) or (match[1] if match else None)
    redirected = _status(error) in REDIRECTS
    if expected == config.region or not (code(error) in REGION or redirected):
        return None
    location = headers.get("location") or detail.get("Endpoint")
    if redirected and expected is None and location:
        return StoreRefused(
            f"{where} redirects to {location}", field="store.endpoint", fix="name the address that it redirects to"
        )
    return StoreRefused(
        f"{where} does not take requests for the region {config.region!r} ({code(error)}: {_message(error)})",
        field="store.region",
        fix=f"set store.region to {expected!r}" if expected else "set store.region to the bucket's region",
    )


def _credentials(error: ClientError, where: str) -> ClusterError | None:
    """Return the error for a request that was refused for who made it, or when."""
    found, what = code(error), f"{code(error)}: {_message(error)}"
    if found in CLOCK:
        return StoreRefused(
            f"{where} has another time than this machine ({what})",
            field="store",
            fix="run a time service (chrony, systemd-timesyncd) on both machines",
        )
    if found in ACCOUNT:
        return StoreRefused(
            f"{where} has closed the account ({what})",
            field="store",
            fix="ask those who run the store or send its bills",
        )
    if found == ARCHIVED:
        return StoreRefused(
            f"{where} has archived the object ({what})",
            field="store.bucket",
            fix="restore it, and keep lifecycle rules off this bucket",
        )
    if found == DENIED:
        return WrongCredentials(
            f"{where} refuses the credentials the right to {error.operation_name} ({what})",
            field="store",
            fix="give the key of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY that right on the bucket",
        )
    if found in CREDENTIALS or _status(error) in REFUSED_STATUS:
        return WrongCredentials(
            f"{where} refuses the credentials ({what})",
            field="store",
            fix="check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for temporary ones, AWS_SESSION_TOKEN; then the "
            "key's rights on the bucket, store.region, and the clock",
        )
    return None


def _condition(error: ClientError, where: str, condition: str) -> ClusterError | None:
    """Return the error for a store that does not know the header of a conditional write."""
    if _status(error) not in NO_CONDITION_STATUS or code(error) in OTHER_FAULTS:
        return None
    return UnsafeStore(
        f"the store does not take a write with {condition}: {where} answers {code(error)}: {_message(error)}",
        field="store.endpoint",
        fix=CONDITIONAL_STORES,
    )
