"""The gates of text inputs against least squares on the stacked states, and where prompts share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import ArtifactFormatError, EmptyDatasetError
from safety.families import ModelConfig, ModelFamily, load_model
from safety.gates import (
    GateConfig,
    GatePrompts,
    PromptMoments,
    gate_prompts,
    gather_prompt_moments,
    load_prompt_moments,
    prompts_at_once,
)
from safety.prompts.writer import PromptCounts, write_prompts
from safety.taxonomy import find_taxonomy


@pytest.fixture(scope="module")
def tiny_model(tiny_model_dir: Path) -> ModelFamily:
    return load_model(ModelConfig(path=str(tiny_model_dir)))


def random_texts(experts: int, width: int, seed: int) -> PromptMoments:
    """Return second moments of a few random states of each expert and of benign ones."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(experts + 1, 9, width, generator=generator, dtype=torch.float64)
    moments = states.transpose(1, 2) @ states / 9
    return PromptMoments(moments[:-1], moments[-1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), experts=st.integers(1, 4), weight=st.floats(0.0, 3.0), ridge=st.floats(1e-4, 0.5))
def test_gated_sum_is_the_least_squares_map(seed: int, experts: int, weight: float, ridge: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    width, tokens = 5, 7
    states = torch.randn(experts + 1, tokens, width, generator=generator, dtype=torch.float64)
    moments = states.transpose(1, 2) @ states / tokens
    deltas = torch.randn(experts, 3, width, generator=generator, dtype=torch.float64)
    total = moments[:-1].sum(0) + weight * experts * moments[-1]
    # One least-squares problem: every expert's output on its own states, nothing on the benign ones and the ridge.
    rows = [states[i] / tokens**0.5 for i in range(experts)] + [states[-1] * (weight * experts / tokens) ** 0.5]
    rows.append(torch.eye(width, dtype=torch.float64) * (ridge * total.diagonal().mean()) ** 0.5)
    wanted = [states[i] @ deltas[i].T / tokens**0.5 for i in range(experts)]
    wanted += [torch.zeros(tokens, 3, dtype=torch.float64), torch.zeros(width, 3, dtype=torch.float64)]
    expected = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted)).solution.T
    gates = (
        PromptMoments(moments[:-1], moments[-1]).gates(GateConfig(benign=weight, ridge=ridge, directions=None)).double()
    )
    torch.testing.assert_close(torch.einsum("noi,nik->ok", deltas, gates), expected, rtol=1e-3, atol=1e-4)


def test_prompts_that_share_no_direction_keep_their_experts_whole_and_benign_ones_untouched() -> None:
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    first, second, benign = basis[:, :2], basis[:, 2:4], basis[:, 4:]
    texts = PromptMoments(torch.stack([first @ first.T, second @ second.T]), benign @ benign.T)
    gates = texts.gates(GateConfig(benign=1.0, ridge=1e-9, directions=None)).double()
    torch.testing.assert_close(gates[0] @ first, first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gates[1] @ first, torch.zeros_like(first), atol=1e-5, rtol=1e-5)
    assert float((gates @ benign).abs().max()) < 1e-5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), weight=st.floats(0.0, 2.0))
def test_more_weight_on_benign_prompts_leaves_less_to_the_experts(seed: int, weight: float) -> None:
    texts = random_texts(3, 5, seed)
    less, more = (
        float(texts.gates(GateConfig(benign=w, ridge=0.01, directions=None)).sum(0).trace())
        for w in (weight, weight + 0.5)
    )
    assert 0 < more < less < 5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
def test_a_gate_of_some_directions_passes_those_of_the_largest_shares_whole(seed: int, count: int) -> None:
    texts = random_texts(3, 6, seed)
    gates = texts.gates(GateConfig(benign=2.0, ridge=0.01, directions=count)).double()
    total = texts.unsafe.sum(0) + 2.0 * 3 * texts.preserved
    total = total + 0.01 * total.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    for own, gate in zip(texts.unsafe, gates, strict=True):
        # G v = h T v by another way: the eigenvectors of T^-1 G, which is not symmetric.
        shares, vectors = torch.linalg.eig(torch.linalg.solve(total, own))
        inputs = total @ vectors.real[:, shares.real.argsort()]
        passed, stopped = inputs[:, -count:], inputs[:, :-count]
        torch.testing.assert_close(gate @ passed, passed, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(gate @ stopped, torch.zeros_like(stopped), rtol=1e-3, atol=1e-4)


def test_second_moments_are_those_of_single_tokens(tiny_model: ModelFamily) -> None:
    own = {"a": ("a knife", "a long kitchen knife"), "b": ("a skull",)}
    texts = gather_prompt_moments(tiny_model, GatePrompts(own, ("a house", "a tree")))
    for index, prompts in enumerate(own.values()):
        tokens = [x for prompt in prompts for x in tiny_model.encode_text([prompt])["states"][0].double()]
        expected = sum((torch.outer(x, x) for x in tokens), torch.zeros(())) / len(tokens)
        torch.testing.assert_close(texts.unsafe[index], expected, rtol=1e-4, atol=1e-6)
    kept = [x for prompt in ("a house", "a tree") for x in tiny_model.encode_text([prompt])["states"][0].double()]
    empty = tiny_model.encode_text([""])["states"][0].double()
    expected = sum((torch.outer(x, x) for x in kept), torch.zeros(())) / len(kept) + empty.T @ empty / len(empty)
    torch.testing.assert_close(texts.preserved, expected, rtol=1e-4, atol=1e-6)


def test_moments_are_read_as_they_were_written_and_nothing_else_is_read(
    tiny_model: ModelFamily, tmp_path: Path
) -> None:
    texts = gather_prompt_moments(tiny_model, GatePrompts({"a": ("a knife",)}, ("a house",)))
    texts.save(tmp_path / "moments.safetensors")
    found = load_prompt_moments(tmp_path / "moments.safetensors")
    assert torch.equal(found.unsafe, texts.unsafe)
    assert torch.equal(found.preserved, texts.preserved)
    save_file({"own": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactFormatError, match="no prompt moments"):
        load_prompt_moments(tmp_path / "other.safetensors")


def test_a_batch_boundary_changes_nothing(tiny_model: ModelFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"a": tuple(f"a knife number {index}" for index in range(5))}
    whole = gather_prompt_moments(tiny_model, GatePrompts(own, ("a house",)))
    monkeypatch.setattr("safety.gates.BATCH", 2)
    torch.testing.assert_close(gather_prompt_moments(tiny_model, GatePrompts(own, ("a house",))).unsafe, whole.unsafe)


@pytest.mark.parametrize(
    ("tokens", "width", "expected"), [(77, 768, 64), (77, 2048, 64), (512, 4096, 8), (10**5, 4096, 1)]
)
def test_as_many_prompts_are_encoded_at_once_as_their_states_in_fp64_allow(
    tokens: int, width: int, expected: int
) -> None:
    # SD 1.5, SDXL, a T5 of FLUX at 16 MiB a prompt, and one prompt over the bound.
    assert prompts_at_once(torch.empty(1, tokens, width, device="meta")) == expected


def test_texts_are_training_prompts_alone() -> None:
    counts = PromptCounts(
        train=6, validation=2, test=2, heldout=1, benign_train=3, benign_validation=2, benign_test=2, benign_text_only=4
    )
    prompts = write_prompts("grammar", find_taxonomy(EMBEDDED_TAXONOMY), counts, 0)
    texts = gate_prompts(prompts, ["hate", "violence"])
    split = dict(prompts.prompts())
    assert [len(own) for own in texts.unsafe.values()] == [6, 6]
    assert {split[prompt] for own in texts.unsafe.values() for prompt in own} == {"train"}
    safe = {pair.safe_prompt for name in texts.unsafe for pair in prompts.in_split("train", name)}
    assert safe < set(texts.preserved)
    assert sorted(split[prompt] for prompt in texts.preserved) == ["text_only"] * 4 + ["train"] * (3 + len(safe))
    with pytest.raises(EmptyDatasetError, match="no training prompt of 'nothing'"):
        gate_prompts(prompts, ["hate", "nothing"])
