"""DeepSpeed's engine against plain torch, in one process: the same updates, the same state, resumable at any stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.train.config import TrainConfig
from jobs.train.deepspeed_engine import DeepSpeedEngine
from safety.dataset.preferences import PreferenceSet
from safety.experts.checkpoint import Checkpoint, Checkpointer
from safety.experts.engine import Engine, TorchEngine
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining, load_adapter
from safety.families import ModelConfig, load_model
from tests.support.folder_store import FolderStore
from tests.support.small_training import STEPS, assert_close, small_pairs, train_config


@pytest.fixture(scope="module")
def data(tiny_model_dir: Path) -> PreferenceSet:
    return small_pairs(load_model(ModelConfig(path=str(tiny_model_dir))))


def make_expert(tiny_model_dir: Path, data: PreferenceSet, config: TrainConfig) -> Expert:
    torch.set_num_threads(1)
    return Expert(load_model(ModelConfig(path=str(tiny_model_dir))), data, config.expert, seed=0)


def norms(training: ExpertTraining) -> list[float]:
    return [metrics["gradient_norm"] for metrics in training.history]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("stage", "accumulation"), [(0, 1), (0, 2), (1, 1), (1, 2), (2, 2)])
def test_it_trains_as_plain_torch_does_and_resumes(
    tiny_model_dir: Path, data: PreferenceSet, tmp_path: Path, stage: int, accumulation: int
) -> None:
    config = train_config(stage, accumulation)
    plain = make_expert(tiny_model_dir, data, config)
    expected = ExpertTraining(plain, TorchEngine(plain))
    expected.run()

    expert = make_expert(tiny_model_dir, data, config)
    engine: Engine = DeepSpeedEngine(expert, config)
    keeper = Checkpointer(FolderStore(tmp_path), fingerprint="x")
    training = ExpertTraining(expert, engine, keeper)
    training.run()
    assert norms(training) == pytest.approx(norms(expected), rel=1e-3)
    assert_close(expert.weights(), plain.weights())
    assert_close_moments(keeper.latest(), expected.engine.moments())

    # Cut off after step 2: the newer checkpoint is gone, and a fresh process goes on from the older.
    (tmp_path / "checkpoints" / f"{STEPS:08d}.safetensors").unlink()
    start = keeper.latest()
    assert start is not None
    assert start.step == 2
    again = make_expert(tiny_model_dir, data, config)
    load_adapter(again, start)
    resumed = ExpertTraining(again, DeepSpeedEngine(again, config), keeper, start)
    resumed.run()
    assert resumed.history == training.history
    for name, layer in expert.weights().items():
        assert torch.equal(again.weights()[name].up, layer.up)
        assert torch.equal(again.weights()[name].down, layer.down)


def assert_close_moments(found: Checkpoint | None, expected: dict[str, torch.Tensor]) -> None:
    assert found is not None
    assert found.moments.keys() == expected.keys()
    for name, moment in expected.items():
        torch.testing.assert_close(found.moments[name], moment, rtol=1e-3, atol=1e-9)
