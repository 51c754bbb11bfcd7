"""An expert over a base that is divided between two workers: the adapter of two workers with a whole base each."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from jobs.train.config import TrainConfig
from jobs.train.deepspeed_engine import DeepSpeedEngine
from safety.dataset.preferences import PreferenceSet
from safety.experts.checkpoint import Checkpointer
from safety.experts.expert import Expert
from safety.experts.passes import PassPlan
from safety.experts.sharding import blocks, load_sharded, sharded_bytes
from safety.experts.training import ExpertTraining, load_adapter
from safety.families import ModelConfig, ModelFamily, load_model
from safety.lora.attach import detach
from safety.lora.files import load_lora, save_lora
from safety.lora.weights import LoraWeights
from tests.support.folder_store import FolderStore
from tests.support.small_training import STEPS, assert_close, small_pairs, train_config

pytestmark = pytest.mark.slow
PLANS = {
    "divided": (0, PassPlan()),
    "checkpointed": (2, PassPlan(checkpointing=True)),
    "in passes": (0, PassPlan(images=2)),
    "in checkpointed passes": (1, PassPlan(images=2, checkpointing=True)),
}
"""Stage of DeepSpeed, and way of a batch through the denoiser, of each training over the divided base."""


class Worker(NamedTuple):
    """One of two workers, and what its trainings have in common."""

    rank: int
    folder: Path
    pairs: PreferenceSet
    gate: torch.Tensor

    def expert(self, model: ModelFamily, config: TrainConfig, plan: PassPlan) -> Expert:
        return Expert(model, self.pairs, config.expert, seed=0, workers=2, gate=self.gate, plan=plan)

    def save(self, name: str, expert: Expert) -> None:
        if self.rank == 0:
            save_lora(expert.weights(), self.folder / name, metadata={})


def work(rank: int, folder: Path, model_dir: str) -> None:
    """Train as one of two workers: with a whole base, then in turn over one divided base, by every plan."""
    torch.set_num_threads(1)
    os.environ.update(DS_ACCELERATOR="cpu", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    whole = load_model(ModelConfig(path=model_dir))
    width = whole.unconditional()["states"].shape[-1]
    gate = torch.eye(width) - torch.full((width, width), 0.5 / width)
    worker = Worker(rank, folder, small_pairs(whole), gate)
    report = {"size": size(whole.denoiser)}
    train(worker, whole, train_config(0), PassPlan(), "whole")
    model = load_sharded(ModelConfig(path=model_dir))
    report["held"] = size(model.denoiser)
    for name, (stage, plan) in PLANS.items():
        report[name] = train(worker, model, train_config(stage), plan, name)
        detach(model)
    resume(worker, model)
    report["held at the end"] = size(model.denoiser)
    (folder / f"{rank}.json").write_text(json.dumps(report), encoding="utf-8")
    torch.distributed.destroy_process_group()


def size(network: nn.Module) -> int:
    """Return the numbers of a network that this worker holds."""
    return sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in network.parameters())


def train(worker: Worker, model: ModelFamily, config: TrainConfig, plan: PassPlan, name: str) -> int:
    """Train an expert, with checkpoints; return the most blocks whose weights were whole at once."""
    units, most = blocks(model.denoiser), 0

    def count(*_: Any) -> None:
        nonlocal most
        most = max(most, sum(not isinstance(next(unit.parameters()), DTensor) for unit in units))

    def watch(module: nn.Module, _inputs: Any, output: Any) -> None:
        count()
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(count)

    expert = worker.expert(model, config, plan)
    handles = [unit.register_forward_hook(watch) for unit in units]
    handles += [unit.register_forward_pre_hook(count) for unit in units]
    keeper = Checkpointer(FolderStore(worker.folder / name), fingerprint="x")
    ExpertTraining(expert, DeepSpeedEngine(expert, config), keeper).run()
    worker.save(name, expert)
    for handle in handles:
        handle.remove()
    return most


def resume(worker: Worker, model: ModelFamily) -> None:
    """Go on from the middle of the training "divided"."""
    torch.distributed.barrier()
    keeper = Checkpointer(FolderStore(worker.folder / "divided"), fingerprint="x")
    start = keeper.at(STEPS // 2)
    assert start is not None
    expert = worker.expert(model, train_config(0), PassPlan())
    load_adapter(expert, start)
    ExpertTraining(expert, DeepSpeedEngine(expert, train_config(0)), None, start).run()
    worker.save("resumed", expert)
    detach(model)


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of what two workers have trained."""
    folder = tmp_path_factory.mktemp("two-workers")
    torch.multiprocessing.spawn(work, args=(folder, str(tiny_model_dir)), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


def adapter(folder: Path, name: str) -> LoraWeights:
    return load_lora(folder / name)


@pytest.mark.parametrize("name", PLANS)
def test_its_adapter_is_that_of_whole_bases(trained: Path, name: str) -> None:
    found = adapter(trained, name)
    assert max(float(layer.up.abs().max()) for layer in found.values()) > 0
    assert_close(found, adapter(trained, "whole"))


def test_a_resumed_training_is_the_uninterrupted_one(trained: Path) -> None:
    found, expected = adapter(trained, "resumed"), adapter(trained, "divided")
    for name, layer in expected.items():
        assert torch.equal(found[name].up, layer.up)
        assert torch.equal(found[name].down, layer.down)


def test_a_worker_holds_half_of_the_base_and_few_blocks_at_once(trained: Path, tiny_model_dir: Path) -> None:
    reports = [json.loads((trained / f"{rank}.json").read_text()) for rank in (0, 1)]
    size = reports[0]["size"]
    assert sum(report["held"] for report in reports) == size
    denoiser = load_model(ModelConfig(path=str(tiny_model_dir)), "denoiser").denoiser
    many = len(blocks(denoiser))
    for report in reports:
        assert report["held"] == pytest.approx(size / 2, rel=0.02)
        assert report["held at the end"] == report["held"]
        for name in PLANS:
            assert 1 <= report[name] <= 2 < many, name
    assert sharded_bytes(denoiser, 1) == 4 * size
    assert 4 * size / 2 < sharded_bytes(denoiser, 2) < 4 * size
