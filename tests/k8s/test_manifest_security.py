"""Every pod is held by the restricted standard, secrets are named and not kept; the checks do find what is not so."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.manifests import OVERLAYS, Document, Pod, of_kind, one, pods, ray_clusters, render
from tests.k8s.network import selects
from tests.k8s.security import API_TOKEN, SECRET_NAME, faults


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_held_by_the_restricted_standard(overlay: str) -> None:
    found = pods(render(overlay))
    names = {"safetydpo/headgroup", "safetydpo/cpu", "safetydpo-images/headgroup", "safetydpo-images/images"}
    other = {"store"} if overlay == "local" else {"safetydpo/gpu"}
    assert {pod.name for pod in found} == names | other | {"safetydpo-pipeline"}
    assert [fault for pod in found for fault in faults(pod)] == []


def privileged(pod: Pod, container: dict[str, Any]) -> None:
    container["securityContext"]["privileged"] = True


def root(pod: Pod, container: dict[str, Any]) -> None:
    del pod.spec["securityContext"]["runAsNonRoot"]


def user_zero(pod: Pod, container: dict[str, Any]) -> None:
    container["securityContext"]["runAsUser"] = 0


def capability(pod: Pod, container: dict[str, Any]) -> None:
    container["securityContext"]["capabilities"]["add"] = ["SYS_PTRACE"]


def writable(pod: Pod, container: dict[str, Any]) -> None:
    del container["securityContext"]["readOnlyRootFilesystem"]


def unconfined(pod: Pod, container: dict[str, Any]) -> None:
    pod.spec["securityContext"]["seccompProfile"] = {"type": "Unconfined"}


def host_network(pod: Pod, container: dict[str, Any]) -> None:
    pod.spec["hostNetwork"] = True


def host_path(pod: Pod, container: dict[str, Any]) -> None:
    pod.spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


def token_for_all(pod: Pod, container: dict[str, Any]) -> None:
    pod.spec["automountServiceAccountToken"] = True


def token_for_ray(pod: Pod, container: dict[str, Any]) -> None:
    container["volumeMounts"].append({"name": "kubernetes-api", "mountPath": API_TOKEN, "readOnly": True})


def memory(pod: Pod, container: dict[str, Any]) -> None:
    container["resources"]["requests"]["memory"] = "1Gi"


def unbounded(pod: Pod, container: dict[str, Any]) -> None:
    del container["resources"]["limits"]


def latest(pod: Pod, container: dict[str, Any]) -> None:
    container["image"] = "registry:5000/safetydpo:latest"


def untagged(pod: Pod, container: dict[str, Any]) -> None:
    container["image"] = "registry:5000/safetydpo"


def spelt_out(pod: Pod, container: dict[str, Any]) -> None:
    container["env"].append({"name": "RAY_AUTH_TOKEN", "value": "1234"})


def not_probed(pod: Pod, container: dict[str, Any]) -> None:
    del container["livenessProbe"]


def autoscaler(pod: Pod, container: dict[str, Any]) -> None:
    del pod.container("autoscaler")["securityContext"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (privileged, "ray-head: sets privileged"),
        (root, "may run as root"),
        (user_zero, "ray-head: sets runAsUser"),
        (capability, "ray-head: keeps capabilities"),
        (writable, "ray-head: may write to its image"),
        (unconfined, "has no seccomp profile"),
        (host_network, "has the field hostNetwork"),
        (host_path, "has a volume of the kind hostPath"),
        (token_for_all, "is given a token"),
        (token_for_ray, "ray-head: is given a token of the Kubernetes API"),
        (memory, "ray-head: may be killed for memory"),
        (unbounded, "ray-head: may be killed for memory"),
        (latest, "has no fixed tag"),
        (untagged, "has no fixed tag"),
        (spelt_out, "ray-head: has the secret RAY_AUTH_TOKEN spelt out"),
        (not_probed, "ray-head: is not probed"),
        (autoscaler, "autoscaler: may gain privileges"),
    ],
)
def test_a_pod_that_is_let_loose_is_found(spoil: Callable[[Pod, dict[str, Any]], None], said: str) -> None:
    (pod,) = [pod for pod in pods(render("gpu")) if pod.name == "safetydpo/headgroup"]
    spoil(pod, pod.container("ray-head"))
    assert any(said in fault for fault in faults(pod)), faults(pod)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_namespace_enforces_the_restricted_standard(overlay: str) -> None:
    labels = one(render(overlay), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_asks_for_a_token_from_a_secret_that_is_named_and_not_kept(overlay: str) -> None:
    documents = render(overlay)
    clusters = ray_clusters(documents)
    assert len(clusters) == 2
    for cluster in clusters.values():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "safetydpo-ray-token"}
    assert of_kind(documents, "Secret") == []
    for document in of_kind(documents, "ConfigMap"):
        assert not [name for name in document["data"] if SECRET_NAME.search(name)]
        assert not re.search(r"AKIA[A-Z0-9]{16}|PRIVATE KEY", str(document["data"]))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_accounts_are_there_and_only_heads_have_the_one_with_rights(overlay: str) -> None:
    documents = render(overlay)
    known = {account["metadata"]["name"]: account for account in of_kind(documents, "ServiceAccount")}
    assert all(account["automountServiceAccountToken"] is False for account in known.values())
    for pod in pods(documents):
        head = pod.labels.get("ray.io/node-type") == "head"
        assert pod.spec["serviceAccountName"] == ("safetydpo-head" if head else "safetydpo")
        assert pod.spec["serviceAccountName"] in known
    assert of_kind(documents, "Role") == of_kind(documents, "RoleBinding") == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_budgets_and_policies_and_monitors_select_pods_that_exist(overlay: str) -> None:
    documents, found = render(overlay), pods(render(overlay))
    budgets = of_kind(documents, "PodDisruptionBudget")
    kept = {budget["metadata"]["name"]: _selected(budget["spec"]["selector"], found) for budget in budgets}
    assert kept == {
        "pipeline-head": {"safetydpo/headgroup"},
        "images-head": {"safetydpo-images/headgroup"},
        "images-worker": {"safetydpo-images/images"},
    }
    # Of pods whose owner has no scale, Kubernetes takes no other kind of budget.
    assert {str(budget["spec"].keys() - {"selector"}) for budget in budgets} == {"{'minAvailable'}"}
    assert {budget["spec"]["minAvailable"] for budget in budgets} == {1}
    for policy in of_kind(documents, "NetworkPolicy"):
        assert _selected(policy["spec"]["podSelector"], found), policy["metadata"]["name"]
    for monitor in of_kind(documents, "PodMonitor"):
        watched = [pod for pod in found if selects(monitor["spec"]["selector"], pod.labels)]
        assert len(watched) == 5
        for pod in watched:
            ports = {port["name"]: port["containerPort"] for port in pod.spec["containers"][0]["ports"]}
            assert ports["metrics"] == 8080
    for service in of_kind(documents, "Service"):
        assert _selected({"matchLabels": service["spec"]["selector"]}, found)


def _selected(selector: Document, found: list[Pod]) -> set[str]:
    return {pod.name for pod in found if selects(selector, pod.labels)}


KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def store_secrets(pod: Pod) -> set[str]:
    """Return the secrets from which a pod's containers take the store's keys, all of them by their own names."""
    found = set()
    for container in pod.containers:
        references = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in container.get("env", []) if v["name"] in KEYS}
        assert all(reference["key"] == name for name, reference in references.items())
        assert references.keys() in (set(), set(KEYS))
        found |= {reference["name"] for reference in references.values()}
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pipelines_key_which_writes_is_not_the_endpoints(overlay: str) -> None:
    secrets = {pod.name: store_secrets(pod) for pod in pods(render(overlay))}
    assert secrets.pop("safetydpo-images/images") == {"safetydpo-s3-endpoint"}
    # Neither reads the store: the endpoint's head runs no replica, and the submitter only submits.
    assert secrets.pop("safetydpo-images/headgroup") == secrets.pop("safetydpo-pipeline") == set()
    assert all(found <= {"safetydpo-s3"} for found in secrets.values())
    assert secrets["safetydpo/headgroup"] == secrets["safetydpo/cpu"] == {"safetydpo-s3"}
