"""Passes: the same loss and gradient however a batch goes through, and adapters of three precisions that agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from safety.dataset.preferences import PreferenceSet
from safety.errors import ConfigError
from safety.experts import ExpertConfig
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.passes import PassPlan
from safety.experts.training import ExpertTraining
from safety.families import ModelConfig, ModelFamily, load_model
from safety.precision import compute_dtype

MakeModel = Callable[[], ModelFamily]
MakeConfig = Callable[..., ExpertConfig]


def gradients(expert: Expert) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    for name, parameter in expert.parameters_by_name().items():
        # B starts at zero, where A has no gradient.
        draw = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    value = expert(0, 0)
    value.loss.backward()
    found = {name: parameter.grad for name, parameter in expert.parameters_by_name().items()}
    return value.loss.detach(), {name: grad for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize(
    "plan",
    [
        PassPlan(checkpointing=True),
        PassPlan(images=1),
        PassPlan(images=3),
        PassPlan(images=4, checkpointing=True),
        PassPlan(images=1000),
    ],
    ids=str,
)
def test_every_plan_gives_the_same_gradient(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, plan: PassPlan
) -> None:
    config = make_config(precision="fp32")
    loss, expected = gradients(Expert(make_model(), data, config, seed=0))
    found_loss, found = gradients(Expert(make_model(), data, config, seed=0, plan=plan))
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=0)
    # fp32 sums in another order: some tens of roundings of 1.2e-7 of the largest term.
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest)


def test_the_plan_of_all_at_once_changes_no_bit(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    config = make_config(precision="fp32")
    _, expected = gradients(Expert(make_model(), data, config, seed=0))
    _, found = gradients(Expert(make_model(), data, config, seed=0, plan=PassPlan(images=1000)))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


class LargestInput(TorchDispatchMode):
    """Notes the largest number of images that a convolution is given."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function is torch.ops.aten.convolution.default:
            self.largest = max(self.largest, len(args[0]))
        return function(*args, **(kwargs or {}))


def test_no_pass_has_more_latents_than_planned(
    make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    expert = Expert(make_model(), data, make_config(precision="fp32"), seed=0, plan=PassPlan(images=3))
    with LargestInput() as seen:
        expert(0, 0).loss.backward()
        expert.validate()
    assert seen.largest == 3


def trained(model: ModelFamily, data: PreferenceSet, config: ExpertConfig) -> torch.Tensor:
    expert = Expert(model, data, config, seed=0)
    parameters = expert.parameters_by_name().values()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    engine = TorchEngine(expert)
    ExpertTraining(expert, engine).run()
    assert {state.dtype for state in engine.moments().values()} == {torch.float32}
    return torch.cat([layer.delta().flatten() for layer in expert.weights().values()])


@pytest.fixture(params=["bfloat16", "float16"])
def half(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_an_adapter_over_a_half_base_is_that_of_fp32_up_to_rounding(
    tiny_model_dir: Path, make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig, half: str
) -> None:
    # The objective is made plain: DPO alone would magnify rounding by beta.
    config = make_config(precision="auto", objective={"name": "anchored-dpo", "beta": 1.0, "benign_weight": 30.0})
    exact = config.model_copy(update={"precision": "fp32"})
    expected = trained(make_model(), data, exact)
    # What rounding the weights alone does, in fp32 arithmetic. Activations are rounded once a layer as weights are, and
    # their gradients once more: three errors of this size, added up.
    rounded = make_model()
    with torch.no_grad():
        for parameter in rounded.denoiser.parameters():
            parameter.copy_(parameter.to(getattr(torch, half)).float())
    unit = float((trained(rounded, data, exact) - expected).norm())
    model = load_model(ModelConfig(path=str(tiny_model_dir), dtype=half))  # type: ignore[arg-type]
    assert compute_dtype(model.denoiser) == getattr(torch, half)
    found = float((trained(model, data, config) - expected).norm())
    assert 0 < found < 4 * unit
    assert found < 0.5 * float(expected.norm()), "it is another adapter"


def test_gradients_too_small_for_fp16_still_arrive(
    tiny_model_dir: Path, make_model: MakeModel, data: PreferenceSet, make_config: MakeConfig
) -> None:
    # A loss so flat that its gradient at the output is below fp16's smallest number, 6e-8.
    config = make_config(objective={"name": "diffusion-dpo", "beta": 1e-6}, benign_rows=0)
    _, expected = gradients(Expert(make_model(), data, config.model_copy(update={"precision": "fp32"}), seed=0))
    model = load_model(ModelConfig(path=str(tiny_model_dir), dtype="float16"))
    _, found = gradients(Expert(model, data, config, seed=0))
    for name, gradient in expected.items():
        assert float(gradient.abs().max()) < 6e-8
        torch.testing.assert_close(found[name], gradient, rtol=0.1, atol=0.05 * float(gradient.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_arithmetic_that_the_weights_do_not_have_is_refused(
    tiny_model_dir: Path, data: PreferenceSet, make_config: MakeConfig, precision: str
) -> None:
    model = load_model(ModelConfig(path=str(tiny_model_dir), dtype="float16"))
    with pytest.raises(ConfigError, match="cannot compute in") as refused:
        Expert(model, data, make_config(precision=precision), seed=0)
    assert refused.value.field == "train.expert.precision"
