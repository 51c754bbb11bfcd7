"""DeepSpeed's engine against plain torch, in one process: the same updates, the same state, resumable at any stage."""

from __future__ import annotations

from collections.abc import Iterator
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
from safety.lora.weights import LoraWeights
from tests.support.folder_store import FolderStore
from tests.support.small_world import RECIPE

STEPS = 4


def train_config(stage: int, accumulation: int = 1) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "deepspeed": {"stage": stage},
            "expert": {
                **RECIPE,
                "steps": STEPS,
                "rows": 4,
                "benign_rows": 2,
                "warmup": 1,
                "accumulation": accumulation,
                "precision": "fp32",
                "checkpoint_every": 2,
                "validation_rows": 0,
                "clip_norm": 0.01,
                "lora": {"rank": 2, "targets": None},
            },
        }
    )


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
        meeting = tmp_path_factory.mktemp("group") / "meeting"
        torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def data(tiny_model_dir: Path) -> PreferenceSet:
    model = load_model(ModelConfig(path=str(tiny_model_dir)))
    draw = torch.Generator().manual_seed(3)
    return PreferenceSet(
        category="hate",
        ids=("a", "b", "c"),
        splits=("train",) * 3,
        winner=torch.randn(3, 4, 4, 4, generator=draw),
        loser=torch.randn(3, 4, 4, 4, generator=draw),
        unsafe=model.encode_text([f"a kitchen knife {i}" for i in range(3)]),
        safe=model.encode_text([f"a house {i}" for i in range(3)]),
        benign_ids=("x", "y"),
        benign_splits=("train",) * 2,
        benign=torch.randn(2, 4, 4, 4, generator=draw),
        benign_prompts=model.encode_text(["a blue house", "a house"]),
        empty=model.encode_text([""]),
    )


def make_expert(tiny_model_dir: Path, data: PreferenceSet, config: TrainConfig) -> Expert:
    torch.set_num_threads(1)
    return Expert(load_model(ModelConfig(path=str(tiny_model_dir))), data, config.expert, seed=0)


def norms(training: ExpertTraining) -> list[float]:
    return [metrics["gradient_norm"] for metrics in training.history]


def assert_close(found: LoraWeights, expected: LoraWeights) -> None:
    for name, layer in expected.items():
        torch.testing.assert_close(found[name].down, layer.down, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[name].up, layer.up, rtol=1e-3, atol=1e-5)


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
