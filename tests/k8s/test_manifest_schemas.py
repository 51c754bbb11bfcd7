"""Every document of every overlay is valid to the letter, and the validation does refuse what is not."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.manifests import K8S, OVERLAYS, Document, one, pods, render
from tests.k8s.schemas import CRDS, RAY, validate, validate_pod

needs_crds = pytest.mark.skipif(not CRDS.is_dir(), reason=f"KubeRay's definitions are not at {CRDS}")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_core_document_is_valid(overlay: str) -> None:
    documents = [document for document in render(overlay) if document["apiVersion"] != RAY]
    assert len(documents) > 10
    for document in documents:
        validate(document)


@needs_crds
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_ray_document_is_valid(overlay: str) -> None:
    documents = [document for document in render(overlay) if document["apiVersion"] == RAY]
    assert sorted(document["kind"] for document in documents) == ["RayCluster", "RayJob", "RayService"]
    for document in documents:
        validate(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_valid_by_kubernetes_own_schema(overlay: str) -> None:
    for pod in pods(render(overlay)):
        validate_pod(pod.spec)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_has_a_name_of_its_own_and_the_namespace(overlay: str) -> None:
    documents = render(overlay)
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    spaces = {document["metadata"].get("namespace") for document in documents if document["kind"] != "Namespace"}
    assert spaces == {one(documents, "Namespace")["metadata"]["name"]} == {"safetydpo"}


def misspelt(document: Document) -> None:
    document["spec"]["headGroupSpec"]["rayStartParam"] = {}


def misspelt_deep(document: Document) -> None:
    document["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMount"] = []


def misspelt_metadata(document: Document) -> None:
    document["metadata"]["label"] = {}


def wrong_type(document: Document) -> None:
    document["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def wrong_choice(document: Document) -> None:
    document["spec"]["authOptions"]["mode"] = "password"


def missing(document: Document) -> None:
    del document["spec"]["headGroupSpec"]


def not_a_quantity(document: Document) -> None:
    document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] = "8 GB"


@needs_crds
@pytest.mark.parametrize(
    "spoil", [misspelt, misspelt_deep, misspelt_metadata, wrong_type, wrong_choice, missing, not_a_quantity]
)
def test_a_wrong_ray_cluster_is_refused(spoil: Callable[[Document], None]) -> None:
    document = deepcopy(one(render("local"), "RayCluster"))
    validate(document)
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


@needs_crds
def test_what_has_a_default_may_be_left_out() -> None:
    document = deepcopy(one(render("local"), "RayCluster"))
    del document["spec"]["workerGroupSpecs"][0]["minReplicas"]
    validate(document)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("NetworkPolicy", ["spec", "ingres"]),
        ("PodDisruptionBudget", ["spec", "minAvailible"]),
        ("ServiceAccount", ["automountServiceAccountTokens"]),
        ("PodMonitor", ["spec", "podMetricsEndpoint"]),
    ],
)
def test_a_misspelt_field_of_another_kind_is_refused(kind: str, path: list[str]) -> None:
    document: Any = deepcopy(next(d for d in render("gpu") if d["kind"] == kind))
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = []
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


def test_a_kind_without_a_schema_is_refused() -> None:
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        validate({"apiVersion": "v1", "kind": "Podd", "metadata": {"name": "x"}})


def test_a_wrong_pod_is_refused() -> None:
    spec = pods(render("local"))[0].spec
    spec["containers"][-1]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(jsonschema.ValidationError):
        validate_pod(spec)


def test_every_file_of_the_folder_is_used() -> None:
    used = set()
    for file in K8S.rglob("kustomization.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        entries = [*content.get("resources", []), *content.get("components", []), *content.get("configurations", [])]
        entries += [patch["path"] for patch in content.get("patches", [])]
        for generator in content.get("configMapGenerator", []):
            entries += [*generator.get("files", []), *generator.get("envs", [])]
        used |= {file.resolve(), *((file.parent / entry).resolve() for entry in entries)}
    assert {file for file in K8S.rglob("*") if file.is_file()} <= used
    assert all(path.exists() for path in used)
