"""The loss of one expert as a module: a step's number in, the loss out, without Ray or DeepSpeed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from safety.dataset.preferences import PreferenceSet, no_pair
from safety.errors import EmptyDatasetError
from safety.experts.batch import Batch, BatchMaker
from safety.experts.config import ExpertConfig
from safety.experts.passes import Passes, PassPlan, configured_plan
from safety.experts.sharding import is_sharded
from safety.families.family import ModelFamily
from safety.lora.attach import attach, extract, reference, set_weights, trainable
from safety.lora.gate import fold_gate, gate_inputs
from safety.lora.weights import LoraWeights
from safety.objectives import Objective, ObjectiveValue, PreferenceErrors, objectives

TRAIN, VALIDATION = "train", "validation"
PLAIN_POSITIONS = 1024
"""Positions of a latent up to which a CPU computes attention without fusing it."""


class Reference(NamedTuple):
    """The base model's side of a batch: fp32, without gradient."""

    errors: Tensor
    """Squared errors of winners, then losers, [2B]."""
    benign: Tensor
    """Predictions on the benign rows, [M, C, h, w]."""


def configured_objective(config: ExpertConfig) -> Objective:
    """Return the objective that an expert minimises."""
    return objectives[config.objective.name](config.objective)


def training_rows(preferences: PreferenceSet, objective: Objective) -> PreferenceSet:
    """Return the training split.

    Raises:
        EmptyDatasetError: It has no pair, or no benign row though the objective reads them.
    """
    rows = preferences.rows(TRAIN)
    require_rows(rows.category, pairs=len(rows), benign=len(rows.benign_ids), objective=objective)
    return rows


def require_rows(name: str, *, pairs: int, benign: int, objective: Objective) -> None:
    """Raise EmptyDatasetError when an expert has no training pair, or no benign row though the objective reads them."""
    if not pairs:
        raise no_pair(name, TRAIN)
    if objective.needs_benign and not benign:
        raise EmptyDatasetError(
            f"{name!r} has no benign row in the split {TRAIN!r}",
            field="dataset",
            fix="generate benign rows, or set train.expert.objective.benign_weight to 0",
        )


class Expert(nn.Module):
    """The denoiser with a trainable LoRA, and the loss of any part of any step."""

    def __init__(
        self,
        model: ModelFamily,
        preferences: PreferenceSet,
        config: ExpertConfig,
        seed: int,
        workers: int = 1,
        gate: Tensor | None = None,
        start: LoraWeights | None = None,
        plan: PassPlan | None = None,
    ) -> None:
        """Attach a LoRA to the model's denoiser, and lay out its weights for training.

        Args:
            model: The base model; its denoiser is changed.
            preferences: The pairs of all splits; only "train" and "validation" are used.
            config: The expert's settings.
            seed: The run's seed; every draw is a function of it, the category, and the row or layer.
            workers: Number of workers that share a step; times the accumulation, the number of a step's equal parts.
            gate: P of ``safety.gates``, [K, K], which the inputs of the layers that read the prompt are multiplied by.
            start: The adapter that training starts from; None starts from no change.
            plan: How a batch goes through the denoiser; None: by the config, and where that says "auto" the fastest.

        Raises:
            ConfigError: The model's weights cannot be computed with as configured.
            ArtifactFormatError: ``start`` is of other layers, or of a higher rank than the config's.
            EmptyDatasetError: There is no training pair, or no benign row where the objective reads them.
        """
        super().__init__()
        config.check_parts(workers)
        self.model, self.config, self.category = model, config, preferences.category
        # A submodule, so that an engine finds the parameters.
        self.denoiser = model.denoiser
        self.parts = workers * config.accumulation
        self.objective = configured_objective(config)
        self._train = BatchMaker(model, training_rows(preferences, self.objective), config, seed)
        self._validation = _validation(model, preferences, config, seed)
        attach(model, config.lora, seed)
        if start is not None:
            set_weights(model, start)
        self.gate = gate
        if gate is not None:
            gate_inputs(model, gate)
        self._passes = Passes(model, config, plan or configured_plan(config))
        self._passes.scale_gradients(list(self.parameters_by_name().values()))
        choose_attention(model, self._train.positions)
        self.lay_out()
        self._references: dict[tuple[int, int], Reference] = {}

    def forward(self, step: int, part: int) -> ObjectiveValue:
        """Return the loss of one part (a worker's share of one accumulation) of a step, and its metrics."""
        period = self.config.distinct_batches
        number = step if period is None else step % period
        batch = self._train.step(number, part, self.parts, benign=self.objective.needs_benign)
        return self.objective(self._measure(batch, self._reference(batch, (number, part))))

    @torch.no_grad()
    def validate(self) -> dict[str, Tensor]:
        """Return metrics on the first validation rows, ``validation_...``; none when there are no such rows."""
        if self._validation is None or not self.config.validation_rows:
            return {}
        batch = self._validation.first(self.config.validation_rows)
        value = self.objective(self._measure(batch, self._base(batch)))
        return {
            f"{VALIDATION}_{name}": metric for name, metric in value.metrics.items() if name not in ("loss", "drift")
        }

    def lay_out(self) -> None:
        """Lay the convolutions' weights out for speed; no value changes. A divided base can only be in the plain layout."""
        if not is_sharded(self.denoiser):
            self.denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name, in sorted order."""
        return trainable(self.model)

    def weights(self) -> LoraWeights:
        """Return the adapter as trained so far, its gate folded in."""
        weights = extract(self.model)
        return weights if self.gate is None else fold_gate(weights, self.gate, self.model.text_targets)

    def _reference(self, batch: Batch, place: tuple[int, int]) -> Reference:
        """Return the base's side of a batch. It is kept where batches repeat, since it is the same again.

        Benign predictions are kept in main memory: those of all batches can take a GiB, which a card's plan has no room for.
        """
        if self.config.distinct_batches is None:
            return self._base(batch)
        if place not in self._references:
            found = self._base(batch)
            # A copy, since the predictions of the other rows would stay with it.
            self._references[place] = found._replace(benign=found.benign.to("cpu", copy=True))
        kept = self._references[place]
        return kept._replace(benign=kept.benign.to(self.model.device))

    @torch.no_grad()
    def _base(self, batch: Batch) -> Reference:
        count = 2 * batch.rows
        with reference(self.model):
            predicted = self._passes(batch)
        return Reference(_errors(predicted[:count], batch.target[:count]), predicted[count:])

    def _measure(self, batch: Batch, base: Reference) -> PreferenceErrors:
        rows, count = batch.rows, 2 * batch.rows
        predicted = self._passes(batch)
        policy = _errors(predicted[:count], batch.target[:count])
        return PreferenceErrors(
            winner=policy[:rows],
            loser=policy[rows:],
            reference_winner=base.errors[:rows],
            reference_loser=base.errors[rows:],
            drift=_errors(predicted[count:], base.benign),
        )


def _errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of each row, fp32 [n]: beta would magnify the rounding of a shorter type."""
    return (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))


def _validation(model: ModelFamily, preferences: PreferenceSet, config: ExpertConfig, seed: int) -> BatchMaker | None:
    try:
        return BatchMaker(model, preferences.rows(VALIDATION), config, seed)
    except EmptyDatasetError:
        return None


def choose_attention(model: ModelFamily, positions: int) -> None:
    """Take a UNet's plain attention where it is faster; else the denoiser keeps its own, which is torch's fused one.

    On a CPU the fused attention's backward pass takes longer than the plain one's at a few hundred tokens. At thousands
    the plain one's score matrices would fill the memory. A transformer's joint attention has one form alone.
    """
    denoiser: Any = model.denoiser
    if model.device.type != "cpu" or positions > PLAIN_POSITIONS or not hasattr(denoiser, "attn_processors"):
        return
    # Slow to import, and not for processes that train nothing.
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    if all(isinstance(found, AttnProcessor2_0) for found in denoiser.attn_processors.values()):
        # On a CPU the fused attention's backward pass takes longer than the plain one's at a few hundred tokens.
        denoiser.set_attn_processor(AttnProcessor())
