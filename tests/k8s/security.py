"""What the project asks of every pod: the restricted pod security standard, and more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.k8s.manifests import Pod

SECRET_NAME = re.compile(r"SECRET|KEY|PASSWORD|TOKEN|CREDENTIAL")
VOLUMES = {"configMap", "emptyDir", "projected", "persistentVolumeClaim"}
API_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
POD_KEYS = {
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "restartPolicy",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "volumes",
}
SHORT_LIVED = {"ray-job-submitter"}
WATCHED_BY_NOBODY = {"autoscaler"}
"""KubeRay gives its container no probes and takes none."""


def faults(pod: Pod) -> list[str]:
    """Return what is wrong with a pod, as sentences."""
    found = list(_of_pod(pod))
    for container in pod.containers:
        found += [f"{container['name']}: {fault}" for fault in _of_container(container, pod)]
    return [f"{pod.name}: {fault}" for fault in found]


def _of_pod(pod: Pod) -> Iterator[str]:
    security = pod.spec.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser") or not security.get("runAsGroup"):
        yield "may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    # A list of the allowed fields, so that host namespaces and any field that Kubernetes adds are refused at first.
    for key in pod.spec.keys() - POD_KEYS:
        yield f"has the field {key}"
    if pod.spec.get("automountServiceAccountToken") is not False or pod.spec.get("enableServiceLinks") is not False:
        yield "is given a token or the services' addresses that it does not use"
    if not pod.spec.get("serviceAccountName"):
        yield "runs under the default service account"
    for volume in pod.spec.get("volumes", []):
        for kind in volume.keys() - VOLUMES - {"name"}:
            yield f"has a volume of the kind {kind}"


def _of_container(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    security = container.get("securityContext", {})
    if security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "may write to its image"
    if security.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    for key in security.keys() - {"allowPrivilegeEscalation", "readOnlyRootFilesystem", "capabilities"}:
        yield f"sets {key}"
    yield from _of_resources(container.get("resources", {}))
    yield from _of_environment(container)
    yield from _of_mounts(container, pod)
    if not re.fullmatch(r"[^:@]+(:[0-9]+/[^:@]+)?:(?!latest)[\w.-]+", container["image"]):
        yield f"its image {container['image']} has no fixed tag"
    if any("hostPort" in port for port in container.get("ports", [])):
        yield "takes a port of the host"
    probes = {"startupProbe", "readinessProbe", "livenessProbe"}
    if container["name"] not in SHORT_LIVED | WATCHED_BY_NOBODY and not probes <= container.keys():
        yield "is not probed"


def _of_resources(resources: dict[str, dict[str, str]]) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    if "memory" not in limits or requests.get("memory") != limits["memory"]:
        yield "may be killed for memory that it was not promised"
    if "cpu" not in requests:
        yield "asks for no CPU"
    if any(requests.get(name) != amount for name, amount in limits.items() if name != "cpu"):
        yield "asks for less than its limits"


def _of_environment(container: dict[str, Any]) -> Iterator[str]:
    for variable in container.get("env", []):
        if SECRET_NAME.search(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
            yield f"has the secret {variable['name']} spelt out"


def _of_mounts(container: dict[str, Any], pod: Pod) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    for path, mount in mounts.items():
        volume = volumes.get(mount["name"])
        if volume is None:
            yield f"mounts {mount['name']}, which is not there"
        elif volume.keys() & {"configMap", "projected"} and mount.get("readOnly") is not True:
            yield f"may write to {path}"
    if "emptyDir" not in volumes.get(mounts.get("/tmp", {}).get("name"), {}):
        yield "has no /tmp to write to"
    if API_TOKEN in mounts and container["name"] != "autoscaler":
        yield "is given a token of the Kubernetes API"
