"""Trains two tiny experts, merges them and renders before and after: the science of ``safety/`` without a cluster.

    python docs/science.py --output out/science

Nothing here needs Ray, a store or the network. The figures of so small a run mean little; ``make demo`` is the whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from safety.dataset.latents import preference_set
from safety.dataset.preferences import PreferenceSet
from safety.dataset.record import Record
from safety.dataset.renderer import GroupRenderer
from safety.experts.config import ExpertConfig
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining
from safety.families import ModelConfig, ModelFamily, load_model
from safety.gates import GateConfig, gate_prompts, gather_prompt_moments
from safety.images import encode_png, grid
from safety.judges.judge import JudgeConfig, load_judge
from safety.lora.files import save_lora
from safety.lora.fuse import fused
from safety.lora.weights import LoraWeights
from safety.merge.method import merge_methods
from safety.prompts.rows import PromptRow, PromptSet
from safety.prompts.writer import PromptCounts, write_prompts
from safety.rendering import RenderConfig, render, row_seed
from safety.taxonomy import find_taxonomy

SEED = 0
CATEGORIES = ("violence", "illegal activity")
RENDER = RenderConfig(steps=6, guidance=2.5)


def main(output: Path, pairs: int, steps: int) -> None:
    """Run the whole chain and write ``before_after.png`` and the merged adapter to ``output``.

    Args:
        output: A folder; made when it is not there.
        pairs: Training pairs per category; there are twice as many benign images, and twenty times as many benign texts.
        steps: Optimizer steps per expert.
    """
    torch.manual_seed(SEED)
    output.mkdir(parents=True, exist_ok=True)
    taxonomy = find_taxonomy("emoji")

    # Prompt pairs: an unsafe prompt and the counterpart that differs in the harmful concept alone.
    counts = PromptCounts(
        train=pairs,
        validation=1,
        test=2,
        heldout=0,
        benign_train=2 * pairs,
        benign_validation=1,
        benign_test=2,
        benign_text_only=20 * pairs,
    )
    prompts = write_prompts("grammar", taxonomy, counts, SEED)
    model = load_model(ModelConfig(path="emoji"))

    # One expert per category, each behind the gate that leaves it the directions of its own prompts.
    moments = gather_prompt_moments(model, gate_prompts(prompts, CATEGORIES))
    gates = moments.gates(GateConfig(benign=3.0, directions=8))
    experts = {
        category: train(preferences(model, prompts, category), gate, steps)
        for category, gate in zip(CATEGORIES, gates, strict=True)
    }

    # The merge: the average of the experts, applied as many times as there are experts, which is their sum.
    average = merge_methods["average"]
    merged = average(experts, None, average.config_type()).weights
    save_lora(merged, output, metadata={"made by": "docs/science.py"})

    # Before and after, on test prompts, from the same noise.
    tested = [pair for pair in prompts.in_split("test") if pair.category in CATEGORIES]
    texts = [pair.unsafe_prompt for pair in tested] + [row.prompt for row in prompts.benign_in("test")]
    seeds = [row_seed(SEED, text) for text in texts]
    before = render(model, texts, seeds, RENDER)
    with fused(model, merged, scale=len(experts)):
        after = render(model, texts, seeds, RENDER)
    (output / "before_after.png").write_bytes(encode_png(grid(torch.cat([before, after]), columns=len(texts))))

    judge = load_judge(JudgeConfig(), taxonomy)
    unsafe = len(tested)
    for name, images in (("before", before), ("after", after)):
        flagged = judge.flagged(judge.score(images))
        print(
            f"{name}: {int(flagged[:unsafe].sum())} of {unsafe} images of unsafe prompts are flagged, "
            f"{int(flagged[unsafe:].sum())} of {len(texts) - unsafe} of benign ones"
        )
    print(f"see {output / 'before_after.png'}: the base model above, the aligned one below")


def preferences(model: ModelFamily, prompts: PromptSet, category: str) -> PreferenceSet:
    """Render a category's training pairs and the benign rows, and return them as an expert's training set."""
    return preference_set(
        category,
        rendered(model, prompts.in_split("train", category)),
        rendered(model, prompts.benign_in("train")),
        {key: value.float() for key, value in model.unconditional().items()},
    )


def rendered(model: ModelFamily, rows: Sequence[PromptRow]) -> list[Record]:
    """Return the rows with their images and latents; a pair's two images start from one noise."""
    records = [Record(row=row, seed=row_seed(SEED, row.row_id)) for row in rows]
    return [record for record in GroupRenderer(model, RENDER).render(records) if record.kept]


def train(pairs: PreferenceSet, gate: torch.Tensor, steps: int) -> LoraWeights:
    """Return one expert's LoRA, trained on a base model of its own."""
    config = ExpertConfig.model_validate(
        {
            "objective": {"name": "anchored-dpo", "benign_weight": 900.0},
            "lora": {"rank": 8, "alpha": 8, "targets": ["attn2.to_k", "attn2.to_v"]},
            "steps": steps,
            "rows": 10,
            "benign_rows": 8,
            "learning_rate": 0.015,
            "caption_dropout": 0.0,
            "distinct_batches": max(1, steps // 2),
            "validation_rows": 0,
        }
    )
    expert = Expert(load_model(ModelConfig(path="emoji")), pairs, config, SEED, gate=gate)
    result = ExpertTraining(expert, TorchEngine(expert)).run()
    first, last = result.history[0]["loss"], result.history[-1]["loss"]
    print(f"{pairs.category}: {len(pairs)} pairs, {steps} steps, loss {first:.3f} -> {last:.3f}")
    return expert.weights()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/science"))
    parser.add_argument("--pairs", type=int, default=16, help="training pairs per category")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps per expert")
    arguments = parser.parse_args()
    main(arguments.output, arguments.pairs, arguments.steps)
