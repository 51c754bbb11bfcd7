"""The store's checks, against a folder and the real server."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.preflight.check import Check, Status, run_check
from cluster.preflight.checks import check_conditional_writes, check_store
from cluster.store.artifacts import ArtifactStore


def test_a_good_store_passes_and_is_named(any_store: ArtifactStore) -> None:
    store = any_store
    found = check_store(store)
    assert found.status is Status.PASS
    folder = f"{store.config.data_dir}/objects"
    s3 = f"s3://safetydpo/{store.config.prefix}/ at {store.config.endpoint}"
    assert found.found == (folder if store.config.endpoint is None else s3)
    assert check_conditional_writes(store).status is Status.PASS
    assert store.keys("") == []


def test_a_wrong_key_and_a_missing_bucket_fail_with_their_fix(
    s3_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ArtifactStore(s3_store.config.model_copy(update={"bucket": "not-there"}))
    found = run_check(Check("store", lambda: check_store(missing))).finding
    assert (found.status, found.found.partition(":")[0]) == (Status.FAIL, "store.bucket")
    assert "aws s3 mb s3://not-there" in found.fix
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    found = run_check(Check("store", lambda: check_store(ArtifactStore(s3_store.config)))).finding
    assert (found.status, found.found.partition(":")[0]) == (Status.FAIL, "store")
    assert "refuses the credentials" in found.found


def test_a_store_that_overwrites_fails(s3_store: ArtifactStore) -> None:
    def forget(request: Any, **_: object) -> None:
        del request.headers["If-None-Match"]

    s3_store.objects._client.meta.events.register("before-sign.s3.PutObject", forget)
    found = run_check(Check("conditional writes", lambda: check_conditional_writes(s3_store))).finding
    assert found.status is Status.FAIL
    assert "overwrote" in found.found
