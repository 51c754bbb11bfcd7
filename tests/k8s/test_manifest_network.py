"""The network policies connect the pods that work together, and no others."""

from __future__ import annotations

import pytest

from tests.k8s.manifests import OVERLAYS, render
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
METADATA = Peer({}, namespace="", address="169.254.169.254")
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
def test_pods_reach_names_the_store_and_no_cloud_credentials(overlay: str) -> None:
    documents = render(overlay)
    for peer in (HEAD, WORKER, IMAGES_HEAD, IMAGES, SUBMITTER, STRANGER):
        assert allowed(documents, peer, DNS, 53, "UDP")
        assert not allowed(documents, peer, METADATA, 443)
        assert not allowed(documents, peer, OUTSIDE, 80)
    for peer in (HEAD, IMAGES_HEAD):
        assert allowed(documents, peer, OUTSIDE, 443)
        assert allowed(documents, peer, OUTSIDE, 6443)
    for peer in (WORKER, IMAGES):
        assert allowed(documents, peer, OUTSIDE, 443) is (overlay == "gpu")
        assert not allowed(documents, peer, OUTSIDE, 6443)
    if overlay == "local":
        for peer in (HEAD, WORKER, IMAGES_HEAD, IMAGES):
            assert allowed(documents, peer, STORE, 8333)
            # The file server behind S3 asks for no signature.
            assert not allowed(documents, peer, STORE, 8888)
        assert not allowed(documents, SUBMITTER, STORE, 8333)
        assert not allowed(documents, STORE, OUTSIDE, 443)
