"""Random preference sets and adapters for a tiny model, for tests of jobs that start from a dataset or from experts."""

from __future__ import annotations

import torch

from safety.dataset.preferences import PreferenceSet
from safety.families import ModelFamily
from safety.lora.weights import LoraLayer, LoraWeights
from safety.prompts.rows import PromptSet


def preferences(model: ModelFamily, prompts: PromptSet, category: str) -> PreferenceSet:
    """Return the kept rows of a category as the dataset holds them: nothing of the test split."""
    draw = torch.Generator().manual_seed(len(category))
    pairs = [pair for pair in prompts.pairs if pair.category == category and pair.split != "test"]
    benign = [row for row in prompts.benign if row.split != "test"]
    return PreferenceSet(
        category=category,
        ids=tuple(pair.pair_id for pair in pairs),
        splits=tuple(pair.split for pair in pairs),
        winner=torch.randn(len(pairs), 4, 4, 4, generator=draw),
        loser=torch.randn(len(pairs), 4, 4, 4, generator=draw),
        unsafe=model.encode_text([pair.unsafe_prompt for pair in pairs]),
        safe=model.encode_text([pair.safe_prompt for pair in pairs]),
        benign_ids=tuple(row.prompt_id for row in benign),
        benign_splits=tuple(row.split for row in benign),
        benign=torch.randn(len(benign), 4, 4, 4, generator=draw),
        benign_prompts=model.encode_text([row.prompt for row in benign]),
        empty=model.encode_text([""]),
    )


def random_lora(
    model: ModelFamily, seed: int, targets: tuple[str, ...] | None = None, size: float = 0.1
) -> LoraWeights:
    """Return a random LoRA of rank 2 on the layers that end with ``targets``, or on all that the family adapts."""
    draw = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            name: LoraLayer(
                torch.randn(2, module.in_features, generator=draw),
                size * torch.randn(module.out_features, 2, generator=draw),
            )
            for name, module in model.denoiser.named_modules()
            if isinstance(module, torch.nn.Linear) and name.endswith(targets or model.lora_targets)
        }
    )
