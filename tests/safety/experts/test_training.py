"""Training: it learns, it is the same twice, and the same after it was cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from safety.dataset.preferences import PreferenceSet
from safety.errors import TrainingHealthError
from safety.experts import ExpertConfig
from safety.experts.card import write_card
from safety.experts.checkpoint import Checkpointer
from safety.experts.curves import plot_curves, write_metrics
from safety.experts.engine import TorchEngine, learning_rate_at
from safety.experts.expert import Expert
from safety.experts.health import AlarmKind
from safety.experts.training import ExpertTraining, TrainingResult, load_adapter
from safety.families import ModelFamily
from safety.lora.files import save_lora
from tests.support.folder_store import FolderStore

MakeModel = Callable[[], ModelFamily]
MakeConfig = Callable[..., ExpertConfig]


class CutOff(Exception):
    """Stands for a kill."""


def train(
    model: ModelFamily, data: PreferenceSet, config: ExpertConfig, folder: Path, *, stop_after: int | None = None
) -> tuple[Expert, TrainingResult]:
    expert = Expert(model, data, config, seed=0)
    keeper = Checkpointer(FolderStore(folder), fingerprint="the same")
    start = keeper.latest()
    if start is not None:
        load_adapter(expert, start)

    def observe(step: int, _: dict[str, float]) -> None:
        if stop_after is not None and step + 1 >= stop_after:
            raise CutOff

    training = ExpertTraining(expert, TorchEngine(expert), keeper, start)
    return expert, training.run(observe)


def files(expert: Expert, result: TrainingResult, folder: Path) -> dict[str, bytes]:
    save_lora(expert.weights(), folder, metadata={"expert": "hate"})
    write_metrics(result.history, folder)
    plot_curves(result.history, "hate", folder)
    write_card(folder, "hate", expert.config, result, {"seed": 0})
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_two_runs_and_a_resumed_one_give_the_same_bytes(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, tmp_path: Path, stop_after: int
) -> None:
    config = make_config()
    expected = files(*train(make_model(), data, config, tmp_path / "a"), tmp_path / "out-a")
    with pytest.raises(CutOff):
        train(make_model(), data, config, tmp_path / "b", stop_after=stop_after)
    expert, result = train(make_model(), data, config, tmp_path / "b")
    assert result.resumed_from == stop_after // 2 * 2
    assert files(expert, result, tmp_path / "out-b") == expected


def test_it_learns_to_prefer_the_winners(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(steps=40, rows=12, learning_rate=5e-3, warmup=4, checkpoint_every=40, validate_every=40)
    _, result = train(make_model(), data, config, tmp_path)
    last = result.history[-4:]
    assert sum(step["implicit_accuracy"] for step in last) / 4 > 0.9
    assert last[-1]["dpo_loss"] < 0.6 < result.history[0]["dpo_loss"]
    assert not [alarm for alarm in result.alarms if alarm.kind is AlarmKind.NOT_LEARNING]


def test_a_loss_that_blows_up_ends_the_run(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, tmp_path: Path
) -> None:
    model = make_model()
    with torch.no_grad():
        model.denoiser.get_parameter("conv_out.bias").fill_(float("inf"))
    with pytest.raises(TrainingHealthError, match="is not finite at step 0"):
        train(model, data, make_config(), tmp_path)


def test_accumulation_does_not_change_the_update(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, tmp_path: Path
) -> None:
    results = [
        train(make_model(), data, make_config(precision="fp32", accumulation=n), tmp_path / str(n))[0].weights()
        for n in (1, 2)
    ]
    for name, layer in results[0].items():
        torch.testing.assert_close(layer.delta(), results[1][name].delta(), rtol=2e-2, atol=2e-5)


def test_the_rate_rises_then_falls(make_config: MakeConfig) -> None:
    config = make_config(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate_at(step, config) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.0 < rates[-1] < 0.06
    steady = make_config(steps=100, warmup=10, learning_rate=1.0, schedule="constant")
    assert learning_rate_at(99, steady) == 1.0


def test_the_card_shows_the_curves_the_settings_and_the_alarms(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, tmp_path: Path
) -> None:
    expert, result = train(make_model(), data, make_config(), tmp_path / "work")
    found = files(expert, result, tmp_path / "out")
    card = found["README.md"].decode()
    assert found["curves.png"].startswith(b"\x89PNG")
    assert len(found["metrics.jsonl"].splitlines()) == 6
    assert "anchored-dpo" in card
    assert f"{result.history[0]['winner_error']:.4f}" in card
    assert "No health alarm" in card
