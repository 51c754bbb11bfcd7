"""Calibration on a real tiny UNet against loops over inputs caught one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from merge_oracle import brute_merge
from torch import Tensor

from safety.errors import ArtifactFormatError
from safety.families import ModelFamily
from safety.gates import GatePrompts, PromptMoments, gather_prompt_moments, no_moments
from safety.lora.weights import LoraWeights
from safety.merge import CalibrationConfig, calibrate, load_calibration
from safety.merge.methods.co_merge import CoMerge, CoMergeConfig
from safety.merge.probes import Probes, timestep_of, unsafe_batches

Experts = Callable[..., dict[str, LoraWeights]]
UNITS: tuple[Literal["input"], Literal["row"]] = ("input", "row")


def texts_of(model: ModelFamily, experts: Mapping[str, LoraWeights]) -> PromptMoments:
    own = {name: tuple(f"a knife of {name} number {index}" for index in range(3)) for name in experts}
    return gather_prompt_moments(model, GatePrompts(own, ("a house on a hill", "a tree")))


@torch.no_grad()
def caught_inputs(model: ModelFamily, layer: str, probes: Probes, config: CalibrationConfig) -> Tensor:
    """Return every input of a layer, [tokens x prompts x timesteps, K], seen one prompt at a time."""
    caught: list[Tensor] = []
    handle = model.denoiser.get_submodule(layer).register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    for batch in unsafe_batches(model, probes, config.timesteps, 1, 3, "calibration"):
        model.predict(batch.noisy, batch.timesteps, batch.conditioning)
    handle.remove()
    return torch.cat([inputs.flatten(0, -2) for inputs in caught])


def test_statistics_are_those_of_the_layers_inputs(
    tiny_model: ModelFamily, make_experts: Experts, probes: Probes
) -> None:
    config = CalibrationConfig(timesteps=(0.9, 0.2), batch=4)
    experts = make_experts()
    before = {name: value.clone() for name, value in tiny_model.denoiser.state_dict().items()}
    statistics = calibrate(tiny_model, experts, probes, texts_of(tiny_model, experts), config, 3)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.denoiser.state_dict().items())
    assert set(statistics.layers) == set(next(iter(experts.values())))
    for name in (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    ):
        inputs = caught_inputs(tiny_model, name, probes, config)
        layer = statistics.layers[name]
        assert layer.count == len(inputs)
        signals = torch.stack([(inputs @ expert[name].delta().T).abs() for expert in experts.values()])
        torch.testing.assert_close(layer.signal, signals.mean(1), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(layer.mean_input, inputs.abs().mean(0), rtol=1e-3, atol=1e-5)
        assert torch.equal(layer.active_inputs, (inputs != 0).float().sum(0))
        votes = torch.stack([(signals.argmax(0) == index).sum(0) for index in range(3)]).float()
        # A vote may move where rounding decides between two nearly equal signals.
        assert float((layer.votes - votes).abs().sum()) <= 0.002 * layer.count * votes.shape[1]
        assert float(layer.votes.sum()) == layer.count * votes.shape[1]


def test_merge_of_gathered_statistics_is_the_brute_force_one(
    tiny_model: ModelFamily, make_experts: Experts, probes: Probes
) -> None:
    config = CalibrationConfig(timesteps=(0.5,), batch=6)
    experts = make_experts()
    statistics = calibrate(tiny_model, experts, probes, texts_of(tiny_model, experts), config, 3)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    inputs = caught_inputs(tiny_model, name, probes, config)[::3]
    deltas = [expert[name].delta() for expert in experts.values()]
    for form in (CoMergeConfig(granularity="weight"), CoMergeConfig(granularity="weight", score="sum")):
        merged = CoMerge()(experts, statistics, form).weights[name].delta()
        torch.testing.assert_close(merged, brute_merge(deltas, inputs, form, [1, 1, 1]), rtol=1e-4, atol=1e-6)


def test_equal_experts_tie_on_every_signal(tiny_model: ModelFamily, make_experts: Experts, probes: Probes) -> None:
    expert = make_experts()["hate"]
    statistics = calibrate(
        tiny_model,
        {"a": expert, "b": expert},
        probes,
        texts_of(tiny_model, {"a": expert, "b": expert}),
        CalibrationConfig(timesteps=(0.5,)),
        3,
    )
    for name, layer in statistics.layers.items():
        assert layer.ties == layer.count * expert[name].up.shape[0]
        assert float(layer.votes[1].sum()) == 0


def test_chunks_and_batches_do_not_change_the_statistics(
    tiny_model: ModelFamily, make_experts: Experts, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = make_experts()
    whole = calibrate(
        tiny_model, experts, probes, texts_of(tiny_model, experts), CalibrationConfig(timesteps=(0.5,), batch=6), 3
    )
    monkeypatch.setattr("safety.merge.calibration.CHUNK_SIGNALS", 300)
    pieces = calibrate(
        tiny_model, experts, probes, texts_of(tiny_model, experts), CalibrationConfig(timesteps=(0.5,), batch=2), 3
    )
    for name, layer in whole.layers.items():
        assert pieces.layers[name].count == layer.count
        torch.testing.assert_close(pieces.layers[name].signal, layer.signal, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(pieces.layers[name].mean_input, layer.mean_input, rtol=1e-3, atol=1e-6)


def test_saved_statistics_read_back(
    tiny_model: ModelFamily, make_experts: Experts, probes: Probes, tmp_path: Path
) -> None:
    statistics = calibrate(
        tiny_model, make_experts(), probes, texts_of(tiny_model, make_experts()), CalibrationConfig(timesteps=(0.5,)), 3
    )
    statistics.save(tmp_path / "calibration.safetensors")
    again = load_calibration(tmp_path / "calibration.safetensors")
    assert again.experts == statistics.experts
    for name, layer in statistics.layers.items():
        other = again.layers[name]
        assert (other.ties, other.count) == (layer.ties, layer.count)
        for key in ("votes", "signal", "mean_input", "active_inputs"):
            assert torch.equal(getattr(other, key), getattr(layer, key))
    assert again.text_layers == statistics.text_layers
    assert torch.equal(again.moments.unsafe, statistics.moments.unsafe)
    assert torch.equal(again.moments.preserved, statistics.moments.preserved)


def test_the_layers_that_read_the_prompt_are_those_that_see_its_states(
    tiny_model: ModelFamily, make_experts: Experts, probes: Probes
) -> None:
    experts = make_experts()
    statistics = calibrate(
        tiny_model, experts, probes, texts_of(tiny_model, experts), CalibrationConfig(timesteps=(0.5,)), 3
    )
    config = CalibrationConfig(timesteps=(0.9,))
    states = probes.unsafe["states"].flatten(0, 1)
    for name in statistics.layers:
        inputs = caught_inputs(tiny_model, name, probes, config)
        reads_prompt = inputs.shape == states.shape and torch.equal(inputs, states)
        assert (name in statistics.text_layers) == reads_prompt, name


def test_experts_that_no_gate_can_close_need_no_moments_and_are_merged_by_rows(
    tiny_model: ModelFamily, make_experts: Experts, probes: Probes, tmp_path: Path
) -> None:
    experts = {
        name: LoraWeights({layer: value for layer, value in expert.items() if "attn1" in layer})
        for name, expert in make_experts().items()
    }
    found = calibrate(tiny_model, experts, probes, no_moments(len(experts)), CalibrationConfig(timesteps=(0.5,)), 3)
    found.save(tmp_path / "calibration.safetensors")
    statistics = load_calibration(tmp_path / "calibration.safetensors")
    assert statistics.text_layers == ()
    assert statistics.moments.unsafe.shape == (len(experts), 0, 0)
    by_input, by_row = (CoMerge()(experts, statistics, CoMergeConfig(granularity=unit)).weights for unit in UNITS)
    assert all(torch.equal(by_input[layer].delta(), by_row[layer].delta()) for layer in by_row)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ArtifactFormatError, match="holds no calibration"):
        load_calibration(tmp_path / "odd.safetensors")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactFormatError, match="its format is None"):
        load_calibration(tmp_path / "other.safetensors")


def test_timesteps_are_shares_of_the_schedule(tiny_model: ModelFamily) -> None:
    assert timestep_of(tiny_model, 1.0) == 999
    assert timestep_of(tiny_model, 0.5) == 500
    assert timestep_of(tiny_model, 0.0) == 0
