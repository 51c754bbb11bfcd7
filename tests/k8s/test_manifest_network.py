"""The network policies connect the pods that work together, and no others."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.k8s.manifests import OVERLAYS, config_map, of_kind, render
from tests.k8s.network import Peer, allowed

HEAD = Peer({"app.kubernetes.io/component": "pipeline", "ray.io/node-type": "head"})
WORKER = Peer({"app.kubernetes.io/component": "pipeline", "ray.io/node-type": "worker"})
SUBMITTER = Peer({"app.kubernetes.io/component": "submitter"})
IMAGES_HEAD = Peer({"app.kubernetes.io/component": "images", "ray.io/node-type": "head"})
IMAGES = Peer({"app.kubernetes.io/component": "images", "ray.io/node-type": "worker"})
STORE = Peer({"app.kubernetes.io/component": "store"})
STRANGER = Peer({"app": "stranger"})
FOREIGNER = Peer({"safetydpo.io/images": "allowed", "safetydpo.io/dashboard": "allowed"}, namespace="default")
OPERATOR = Peer({"app.kubernetes.io/name": "kuberay-operator"}, namespace="ray-system")
PROMETHEUS = Peer({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring")
DNS = Peer({"k8s-app": "kube-dns"}, namespace="kube-system")
OUTSIDE = Peer({}, namespace="", address="203.0.113.7")
OUTSIDE_6 = Peer({}, namespace="", address="2001:db8::7")
CREDENTIALS = [
    Peer({}, namespace="", address=address)
    for address in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fe80::1")
]
"""Where clouds hand out a node's or a pod's credentials."""
NODE_LOCAL_DNS = Peer({}, namespace="", address="169.254.20.10")
NODE_LOCAL_DNS_POD = Peer({"k8s-app": "node-local-dns"}, namespace="kube-system")
OPENSHIFT_DNS = Peer({"dns.operator.openshift.io/daemonset-dns": "default"}, namespace="openshift-dns")
INGRESS = Peer({"app.kubernetes.io/name": "ingress-nginx"}, namespace="ingress-nginx")
GATEWAY = Peer({"app": "envoy"}, namespace="gateways", namespace_labels={"safetydpo.io/images": "allowed"})
MAY_SEE_IMAGES = Peer({"safetydpo.io/images": "allowed"})
MAY_SEE_DASHBOARDS = Peer({"safetydpo.io/dashboard": "allowed"})
EVERYONE = (HEAD, WORKER, SUBMITTER, IMAGES_HEAD, IMAGES, STRANGER, FOREIGNER, OPERATOR, PROMETHEUS, OUTSIDE)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_works_together_is_connected_and_no_one_else(overlay: str) -> None:
    documents = render(overlay)

    def open_to(target: Peer, port: int) -> set[int]:
        return {EVERYONE.index(peer) for peer in EVERYONE if allowed(documents, peer, target, port)}

    def these(*peers: Peer) -> set[int]:
        return {EVERYONE.index(peer) for peer in peers}

    pipeline, images = (HEAD, WORKER), (IMAGES_HEAD, IMAGES)
    metrics = (PROMETHEUS,) if overlay == "gpu" else ()
    for target in pipeline:
        assert open_to(target, 6379) == open_to(target, 10002) == these(*pipeline)
        assert open_to(target, 8080) == these(*pipeline, *metrics)
    assert open_to(HEAD, 8265) == these(*pipeline, SUBMITTER, OPERATOR)
    for target in images:
        assert open_to(target, 6379) == these(*images)
        assert open_to(target, 8000) == open_to(target, 8265) == these(*images, OPERATOR)
    assert open_to(SUBMITTER, 22) == open_to(STRANGER, 8000) == set()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_labels_open_the_dashboard_and_the_images_to_pods_of_the_namespace(overlay: str) -> None:
    # What such a pod may send is its own policy's to say: here only the receiving end counts.
    incoming = [policy for policy in render(overlay) if policy["metadata"]["name"] in ("pipeline", "images")]
    for target in (IMAGES_HEAD, IMAGES):
        assert allowed(incoming, MAY_SEE_IMAGES, target, 8000)
        assert not allowed(incoming, MAY_SEE_IMAGES, target, 8265)
        assert allowed(incoming, MAY_SEE_DASHBOARDS, target, 8265)
    assert allowed(incoming, MAY_SEE_DASHBOARDS, HEAD, 8265)
    assert not allowed(incoming, MAY_SEE_DASHBOARDS, HEAD, 6379)
    assert not allowed(incoming, STRANGER, HEAD, 8265)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_ingress_and_a_gateway_reach_the_images_and_nothing_else(overlay: str) -> None:
    documents = render(overlay)
    neighbour = INGRESS._replace(labels={"app": "stranger"})
    for target in (IMAGES_HEAD, IMAGES):
        for peer in (INGRESS, GATEWAY):
            assert {
                port for port in (6379, 8000, 8080, 8265, 10001, 52365) if allowed(documents, peer, target, port)
            } == {8000}
        assert not allowed(documents, neighbour, target, 8000)
        assert not allowed(documents, GATEWAY._replace(namespace_labels={}), target, 8000)
    for target in (HEAD, WORKER, STORE):
        for peer in (INGRESS, GATEWAY):
            assert not any(allowed(documents, peer, target, port) for port in (6379, 8000, 8265, 8333))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_are_served_in_each_of_the_ways_of_clusters(overlay: str) -> None:
    documents = render(overlay)
    for peer in (HEAD, WORKER, IMAGES_HEAD, IMAGES, SUBMITTER, STRANGER):
        for protocol in ("UDP", "TCP"):
            for server in (DNS, NODE_LOCAL_DNS, NODE_LOCAL_DNS_POD):
                assert allowed(documents, peer, server, 53, protocol)
            assert allowed(documents, peer, OPENSHIFT_DNS, 5353, protocol)
            assert not allowed(documents, peer, OPENSHIFT_DNS, 443, protocol)
            assert not allowed(documents, peer, DNS._replace(labels={"k8s-app": "metrics-server"}), 53, protocol)
            assert not allowed(documents, peer, OUTSIDE, 53, protocol)
        for port in (80, 443, 8080):
            assert not allowed(documents, peer, NODE_LOCAL_DNS, port)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_reach_the_store_and_no_cloud_credentials(overlay: str) -> None:
    documents = render(overlay)
    for peer in (HEAD, WORKER, IMAGES_HEAD, IMAGES, SUBMITTER, STRANGER):
        for credentials in CREDENTIALS:
            assert not any(allowed(documents, peer, credentials, port) for port in (53, 80, 443, 6443, 8443))
        assert not allowed(documents, peer, OUTSIDE, 80)
    for outside in (OUTSIDE, OUTSIDE_6):
        for peer in (HEAD, IMAGES_HEAD):
            # Of the Kubernetes API: as its service has it, and as kubeadm, kind, k3s, OpenShift and minikube do.
            assert all(allowed(documents, peer, outside, port) for port in (443, 6443, 8443))
        for peer in (WORKER, IMAGES):
            assert allowed(documents, peer, outside, 443) is (overlay == "gpu")
            assert not allowed(documents, peer, outside, 6443)
    if overlay == "local":
        for peer in (HEAD, WORKER, IMAGES_HEAD, IMAGES):
            assert allowed(documents, peer, STORE, 8333)
            # The file server behind S3 asks for no signature.
            assert not allowed(documents, peer, STORE, 8888)
        assert not allowed(documents, SUBMITTER, STORE, 8333)
        assert not allowed(documents, STORE, OUTSIDE, 443)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_runs_store_is_open_at_the_port_of_its_endpoint(overlay: str) -> None:
    documents = render(overlay)
    endpoint = urlsplit(config_map(documents, "safetydpo-store")["AWS_ENDPOINT_URL"])
    port = endpoint.port or {"http": 80, "https": 443}[endpoint.scheme]
    inside = endpoint.hostname in {service["metadata"]["name"] for service in of_kind(documents, "Service")}
    for peer in (HEAD, WORKER, IMAGES):
        assert allowed(documents, peer, STORE if inside else OUTSIDE, port)
