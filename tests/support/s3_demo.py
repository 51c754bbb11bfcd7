"""Runs a job on a real S3 server on loopback instead of the folder: ``make demo STORE=s3``.

    python -m tests.support.s3_demo jobs.pipeline --config jobs/configs/emoji.yaml

Its data stay in ``out/s3``, so that a stopped run goes on and ``make serve STORE=s3`` finds the release.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import yaml

from cluster.store.artifacts import ArtifactStore
from cluster.store.config import StoreConfig
from tests.support.s3_server import REGION, new_credentials, serve_store

FOLDER = Path("out/s3")


def main(module: str, flag: str, config: str) -> None:
    """Start the server, point the config's store at it, and run ``python -m MODULE --config FILE`` in this process."""
    assert flag == "--config", "give the config as --config FILE"
    with serve_store(FOLDER, new_credentials()) as server:
        os.environ.update(server.credentials.environment())
        store = StoreConfig(endpoint=server.endpoint, region=REGION)
        ArtifactStore(store).ensure_bucket()
        document = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        path = FOLDER / "run.yaml"
        path.write_text(
            yaml.safe_dump({**document, "store": store.model_dump(mode="json")}, allow_unicode=True), encoding="utf-8"
        )
        sys.argv = [module, flag, str(path)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
