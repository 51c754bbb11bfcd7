"""The committed Serve config: in step with ``serve build``, and deployed by ``serve deploy`` on a real cluster."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import torch
import yaml

from safety.families import ModelConfig, load_model
from safety.families.family import model_folder
from safety.images import decode_image
from safety.lora.weights import LoraLayer, LoraWeights
from serve.deployment import PROXY_GRACE_S
from serve.endpoint_config import EndpointConfig
from tests.conftest import folder_store
from tests.faults.endpoint_stub import free_port
from tests.support.release_maker import point, publish

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "serve" / "serve_config.yaml"
START_S = 240.0


def serve_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("serve")), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


def committed() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_the_config_is_what_serve_build_writes_on_loopback(tmp_path: Path) -> None:
    made = serve_cli("build", "serve.default:app", "-o", str(tmp_path / "built.yaml"))
    assert made.returncode == 0, made.stderr[-2000:]
    [built] = yaml.safe_load((tmp_path / "built.yaml").read_text())["applications"]
    ours = committed()
    [application] = ours["applications"]
    assert application == {**built, "name": EndpointConfig().app}
    http = {"host": "127.0.0.1", "port": 8000, "request_timeout_s": EndpointConfig().request_timeout_s + PROXY_GRACE_S}
    assert ours["http_options"] == http


def zoo_lora() -> LoraWeights:
    """Return an adapter of the embedded model that changes one layer a little."""
    denoiser = load_model(ModelConfig()).denoiser
    name, module = next(
        (name, m) for name, m in denoiser.named_modules() if isinstance(m, torch.nn.Linear) and name.endswith("to_q")
    )
    draw = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, module.in_features, generator=draw), torch.randn(module.out_features, 2, generator=draw)
    return LoraWeights({name: LoraLayer(down, 0.01 * up)})


@pytest.mark.ray
@pytest.mark.serve
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_serve_deploy_brings_the_endpoint_up(ray_cluster: None, tmp_path: Path) -> None:
    import base64

    from ray import serve

    serve.shutdown()
    store = folder_store(tmp_path / "store")
    point(store, "aligned", publish(store, "release-zoo", zoo_lora(), model_folder(ModelConfig(path="emoji"))))
    document, port = committed(), free_port()
    document["http_options"]["port"] = port
    [application] = document["applications"]
    # The builder's arguments, as docs/endpoint.md gives them: the default store lies below the folder Ray started in.
    application |= {"import_path": "serve.app:build", "args": {"store": store.config.model_dump(mode="json")}}
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(document))
    dashboard = f"http://{ray._private.worker._global_node.address_info['webui_url']}"
    try:
        sent = serve_cli("deploy", str(path), "-a", dashboard)
        assert sent.returncode == 0, sent.stderr[-2000:]
        await_running(dashboard)
        url = f"http://127.0.0.1:{port}"
        body = {"prompt": "a red apple", "seed": 3, "steps": 2}
        answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120, trust_env=False).json()
        assert (answer["model"], answer["release"], answer["size"]) == ("aligned", "release-zoo", "64x64")
        assert decode_image(base64.b64decode(answer["data"][0]["b64_json"])).shape == (3, 64, 64)
    finally:
        serve.shutdown()


def await_running(dashboard: str) -> None:
    """Wait until ``serve status`` says that the application runs."""
    deadline = time.monotonic() + START_S
    while True:
        said = serve_cli("status", "-a", dashboard)
        status = (yaml.safe_load(said.stdout) or {}).get("applications", {}).get("images", {})
        if status.get("status") == "RUNNING":
            return
        assert status.get("status") != "DEPLOY_FAILED", status
        assert time.monotonic() < deadline, said.stdout + said.stderr
        time.sleep(4)  # each look is a process that imports Serve
