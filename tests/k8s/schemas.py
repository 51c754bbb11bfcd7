"""Strict validation of manifests: Ray's kinds by KubeRay's own definitions, core kinds by Kubernetes' schemas."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.k8s.manifests import ROOT, Document

CRDS = ROOT.parent / "shared" / "kuberay-crds"
KUBERNETES = kubernetes_validate.latest_version()
RAY, PROMETHEUS = "ray.io/v1", "monitoring.coreos.com/v1"

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
SELECTOR = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": False,
    "properties": {
        "matchLabels": STRINGS,
        "matchExpressions": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["key", "operator"],
                "properties": {
                    "key": {"type": "string"},
                    "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                    "values": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}
# The Prometheus operator's definition is not at hand: these are its fields that the project uses.
POD_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["selector", "podMetricsEndpoints"],
    "properties": {
        "selector": SELECTOR,
        "podTargetLabels": {"type": "array", "items": {"type": "string"}},
        "podMetricsEndpoints": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["port"],
                "properties": {
                    "port": {"type": "string"},
                    "path": {"type": "string", "pattern": "^/"},
                    "interval": {"type": "string", "pattern": r"^[0-9]+(ms|s|m|h)$"},
                },
            },
        },
    },
}


def validate(document: Document) -> None:
    """Raise jsonschema.ValidationError, or SchemaNotFoundError, when a document is not what the API server takes.

    Stricter than the API server, which drops unknown fields without a word. Rules in CEL are not evaluated.
    """
    if document["apiVersion"] not in (RAY, PROMETHEUS):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    # A custom resource's metadata are those of any object.
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}, KUBERNETES, strict=True
    )
    if document["apiVersion"] == RAY:
        jsonschema.Draft202012Validator(ray_schema(document["kind"])).validate(document)
    else:
        assert document["kind"] == "PodMonitor"
        assert document.keys() == {"apiVersion", "kind", "metadata", "spec"}
        jsonschema.Draft202012Validator(POD_MONITOR).validate(document["spec"])


def validate_pod(spec: dict[str, Any]) -> None:
    """Raise ValidationError when a pod's spec, with what KubeRay adds, is wrong by Kubernetes' own schema."""
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@functools.cache
def ray_schema(kind: str) -> dict[str, Any]:
    path: Path = CRDS / f"ray.io_{kind.lower()}s.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["spec"]["versions"]
    (schema,) = [version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"]
    closed = _closed(schema)
    closed["required"] = ["apiVersion", "kind", "metadata", "spec"]
    closed["properties"]["apiVersion"] = {"const": RAY}
    closed["properties"]["kind"] = {"const": kind}
    return closed


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a structural schema as a JSON schema that refuses unknown fields."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: _closed(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if "required" in schema:
        # What has a default is filled in before it is validated.
        inner = schema.get("properties", {})
        closed["required"] = [name for name in schema["required"] if "default" not in inner.get(name, {})]
    if schema.get("nullable"):
        closed["type"] = [schema["type"], "null"]
    return closed
