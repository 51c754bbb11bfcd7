"""The stand-in for the process group that Ray Train makes for a worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stand in for Ray Train: a group of one process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "DS_ACCELERATOR": "cpu",
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
        }.items():
            patch.setenv(name, value)
        # Late, since DeepSpeed reads the environment when it is imported.
        from deepspeed.utils import groups

        # DeepSpeed keeps its copy of the first group that it has seen; another module's is destroyed by now.
        patch.setattr(groups, "_WORLD_GROUP", None)
        meeting = tmp_path_factory.mktemp("group") / "meeting"
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()
