"""The S3 client: with time limits, without retries of its own, and with fixes for three pitfalls of botocore."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from cluster.store.config import StoreConfig


def make_client(config: StoreConfig) -> Any:
    """Return a boto3 client for the store; credentials come from boto3's usual chain.

    It tries each request once: ``ObjectStore`` repeats whole operations, including the body, which botocore does not.
    """
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=config.endpoint,
        region_name=config.region,
        config=Config(
            connect_timeout=config.connect_timeout_s,
            read_timeout=config.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": 1},
            s3={"addressing_style": "path"},
            # Older S3 servers reject the newer checksums, and every artifact has its own hashes.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            # A proxy of the environment cannot reach this machine's loopback.
            proxies={} if _is_loopback(config.endpoint) else None,
        ),
    )
    # When the connection ends inside a "100 Continue" answer, botocore reads for ever in spite of its time limits
    # (AWSConnection._consume_headers), so the client does not ask for one.
    client.meta.events.register_last("before-call.s3", _expect_nothing)
    return client


def _expect_nothing(params: dict[str, Any], **_: object) -> None:
    params["headers"].pop("Expect", None)


def _is_loopback(endpoint: str | None) -> bool:
    return endpoint is not None and urlsplit(endpoint).hostname in ("127.0.0.1", "::1", "localhost")
