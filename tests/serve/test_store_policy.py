"""The documented policies of the store's keys, evaluated against what the endpoint and the pipeline ask the store for."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest
from botocore.client import BaseClient

import serve.__main__ as serve_command
from cluster import session as session_module
from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from safety.families import ModelConfig
from safety.lora.weights import LoraWeights
from serve.config import ServeConfig
from serve.endpoint_config import EndpointConfig
from serve.loading import load_engine
from serve.release_watcher import ReleaseWatcher
from tests.k8s.manifests import ROOT, config_map, render
from tests.support.release_maker import point, publish, scaled

ACTIONS = {"HeadObject": "GetObject", "HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket"}
"""The S3 actions that operations of another name need; the rest are called alike."""
BUCKET = "safetydpo"

Asked = list[tuple[str, str]]


def documented() -> dict[str, dict[str, Any]]:
    """Return the policies in docs/kubernetes.md by the names of the secrets that the text above them gives."""
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    found = re.findall(r"in `(safetydpo-s3[\w-]*)`:\n```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {name: json.loads(policy) for name, policy in found}


def allows(policy: dict[str, Any], operation: str, key: str) -> bool:
    """Say whether a policy of plain Allow statements allows an operation on a key, or on the bucket ("")."""
    action = f"s3:{ACTIONS.get(operation, operation)}"
    resource = f"arn:aws:s3:::{BUCKET}" + (f"/{key}" if key else "")
    for statement in policy["Statement"]:
        assert statement.keys() == {"Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        resources = [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        if action in actions and any(fnmatch.fnmatchcase(resource, pattern) for pattern in resources):
            return True
    return False


@pytest.fixture
def asked(s3_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Return the operations and keys that are sent to the store from now on, without the store's own prefix."""
    sent: Asked = []
    real = BaseClient._make_api_call

    def note(self: Any, operation: str, parameters: dict[str, Any]) -> Any:
        key = parameters.get("Key", "").removeprefix(s3_store.config.prefix).lstrip("/")
        sent.append((operation, key))
        return real(self, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", note)
    return sent


@pytest.mark.s3
def test_the_endpoint_asks_for_nothing_that_its_policy_does_not_allow(
    s3_store: ArtifactStore, asked: Asked, tiny_model_dir: Path, tiny_lora: LoraWeights
) -> None:
    store = s3_store
    point(store, "aligned", publish(store, "release-1", tiny_lora, tiny_model_dir))
    point(store, "strict", "release-1")
    publish(store, "release-2", scaled(tiny_lora, 0.5), tiny_model_dir)
    config = ServeConfig(
        serve=EndpointConfig(models=("strict",), default_steps=2, serve_base=True),
        model=ModelConfig(path=str(tiny_model_dir)),
        store=store.config,
    )
    policies = documented()
    published = list(asked)
    assert all(allows(policies["safetydpo-s3"], *one) for one in published)
    asked.clear()
    engine = load_engine(config)
    reads = list(asked)
    point(store, "aligned", "release-2")
    asked.clear()
    ReleaseWatcher(config, engine, lambda *_: None).poll()
    reads += asked
    assert {key.partition("/")[0] for _, key in reads} == {"pointers", "artifacts"}
    assert len(reads) > 8
    assert [one for one in reads if not allows(policies["safetydpo-s3-endpoint"], *one)] == []


@pytest.mark.parametrize(
    ("operation", "key"),
    [
        ("PutObject", "pointers/aligned.json"),
        ("PutObject", "artifacts/release/release-1/manifest.json"),
        ("DeleteObject", "pointers/aligned.json"),
        ("GetObject", "artifacts/dataset/dataset-1/manifest.json"),
        ("GetObject", "artifacts/releases/x"),
        ("GetObject", "work/dataset/dataset-1/groups/000000.parquet"),
        ("GetObject", "leases/demo.json"),
        ("GetObject", "probe/x"),
        ("ListObjectsV2", ""),
        ("CreateBucket", ""),
    ],
)
def test_the_endpoints_key_is_of_no_use_for_anything_else(operation: str, key: str) -> None:
    assert not allows(documented()["safetydpo-s3-endpoint"], operation, key)


def test_the_policies_are_for_the_bucket_of_the_overlays() -> None:
    policies = documented()
    assert set(policies) == {"safetydpo-s3", "safetydpo-s3-endpoint"}
    assert {config_map(render(overlay), "safetydpo-store")["S3_BUCKET"] for overlay in ("local", "gpu")} == {BUCKET}
    for operation in ("HeadBucket", "ListObjectsV2"):
        assert allows(policies["safetydpo-s3"], operation, "")
    for operation in ("GetObject", "PutObject", "DeleteObject"):
        assert allows(policies["safetydpo-s3"], operation, "work/x")
    assert not allows(policies["safetydpo-s3"], "DeleteBucket", "")


def test_the_command_that_serves_does_not_write_to_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def write(*_: Any, **__: Any) -> None:
        pytest.fail("it wrote")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    store = StoreConfig(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(ArtifactStore, "write", write)
    monkeypatch.setattr(ArtifactStore, "check", write)
    monkeypatch.setattr(serve_command, "up", stop)
    monkeypatch.setattr(session_module, "connect_ray", lambda *_: contextlib.nullcontext(None))
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"store": store.model_dump(mode="json")}))
    with pytest.raises(KeyboardInterrupt):
        serve_command.main(config)
