"""The local overlay's store, started as its pod starts it, by the same version of the server."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.k8s.manifests import config_map, pods, render
from tests.support.s3_server import free_ports, weed

KEY, SECRET = "store-test", "0123456789abcdef"


def client(port: int, secret: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}, proxies={}),
    )


@pytest.fixture(scope="module")
def store_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the pod's command on free ports of loopback, with no environment but the pod's; return S3's port."""
    folder = tmp_path_factory.mktemp("store-pod")
    (pod,) = [pod for pod in pods(render("local")) if pod.name == "store"]
    container = pod.container("store")
    settings = config_map(render("local"), "safetydpo-store")
    master, volume, filer, s3, admin = free_ports(5)
    here = {"-dir=/data": f"-dir={folder}", "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1", "-s3.port=8333": f"-s3.port={s3}"}
    assert here.keys() <= set(container["args"])
    ports = [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-admin.port={admin}"]
    command = [weed(), *container["command"][1:], *(here.get(a, a) for a in container["args"]), *ports]
    with (folder / "log").open("wb") as log:
        environment = settings | {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd="/")
    try:
        wait_for_bucket(process, s3, settings["S3_BUCKET"], folder / "log")
        yield s3
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for_bucket(process: subprocess.Popen[bytes], port: int, bucket: str, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            client(port, SECRET).head_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-2000:]
            time.sleep(0.2)
        else:
            return


def test_it_makes_the_bucket_and_takes_the_secrets_credentials_alone(store_port: int) -> None:
    own = client(store_port, SECRET)
    own.put_object(Bucket="safetydpo", Key="a", Body=b"1")
    assert own.get_object(Bucket="safetydpo", Key="a")["Body"].read() == b"1"
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client(store_port, "wrong").list_buckets()
    with pytest.raises(ClientError, match="NoSuchBucket"):
        own.put_object(Bucket="misspelt", Key="a", Body=b"1")
