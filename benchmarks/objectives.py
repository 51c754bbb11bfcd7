"""A comparison of objectives: trains one category's expert by each, and renders with it.

    python benchmarks/objectives.py out/demo/work/dataset/<id> --category violence

Takes a published dataset, trains an expert on its training pairs with each objective (same rows, noise and steps),
renders validation prompts with it, and prints the judge's findings: IP of the expert's own category, the share of its
images that lost their context, the share of benign images that fail, and the winner's error against the base's.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from jobs.run.config import load_run
from safety.dataset.latents import load_preferences
from safety.dataset.preferences import PreferenceSet
from safety.embedded import EMBEDDED_TAXONOMY
from safety.errors import TrainingHealthError
from safety.experts.config import ExpertConfig
from safety.experts.engine import TorchEngine
from safety.experts.expert import Expert
from safety.experts.training import ExpertTraining
from safety.families import ModelConfig, load_model
from safety.gates import gate_prompts, gather_prompt_moments
from safety.judges.judge import Judge, JudgeConfig, load_judge
from safety.merge.rendered_score import RenderedScoreConfig, choose_prompts, score_by_rendering
from safety.objectives.anchored_dpo import AnchoredDpoConfig
from safety.objectives.config import ObjectiveConfig
from safety.objectives.diffusion_dpo import DiffusionDpoConfig
from safety.prompts.files import PROMPTS_FILE, read_prompt_file
from safety.prompts.rows import PromptSet
from safety.prompts.writer import PromptCounts, write_prompts
from safety.rendering import RenderConfig
from safety.taxonomy import find_taxonomy

CONFIG = Path(__file__).parent.parent / "jobs" / "configs" / "emoji.yaml"
PACKAGES = ("torch", "diffusers", "peft")
OBJECTIVES: dict[str, ObjectiveConfig] = {
    "plain, beta 2000": DiffusionDpoConfig(beta=2000.0),
    "plain, beta 300": DiffusionDpoConfig(beta=300.0),
    "winner anchored": AnchoredDpoConfig(benign_weight=0.0),
}
CONFIGURED = "the config's own"
LAST = 20
"""Steps over which the training's last figures are averaged."""


def study(
    name: str,
    expert: ExpertConfig,
    gate: Tensor | None,
    pairs: PreferenceSet,
    prompts: PromptSet,
    judge: Judge,
    settings: RenderConfig,
) -> dict[str, Any]:
    """Train one expert and render the prompts with it; return its figures."""
    started = time.perf_counter()
    trained = Expert(load_model(ModelConfig()), pairs, expert, 0, 1, gate)
    training = ExpertTraining(trained, TorchEngine(trained))
    stopped = None
    try:
        training.run()
    except TrainingHealthError as error:
        # A result too: the expert is measured as it was when its training failed.
        stopped = error.message
    history = training.history[-LAST:]
    seconds = time.perf_counter() - started
    seen = score_by_rendering(
        load_model(ModelConfig()), trained.weights(), prompts, judge, settings, RenderedScoreConfig(), 0
    )

    def mean(key: str) -> float:
        return sum(step[key] for step in history) / len(history)

    return {
        "objective": name,
        "config": expert.model_dump(mode="json"),
        "ip": seen.ip,
        "benign_failed": seen.benign_failed,
        "context_lost": seen.context_lost,
        "implicit_accuracy": mean("implicit_accuracy"),
        "winner_error_ratio": mean("winner_error") / mean("reference_winner_error"),
        "stopped": stopped,
        "seconds": seconds,
    }


def main(
    dataset: Annotated[Path, typer.Argument(help="the folder of a dataset artifact")],
    category: str = "violence",
    config: Annotated[Path, typer.Option(help="the run whose train section is taken")] = CONFIG,
    steps: int | None = None,
    learning_rate: float | None = None,
    unsafe: Annotated[int, typer.Option(help="unsafe validation prompts to render")] = 40,
    benign: Annotated[int, typer.Option(help="benign validation prompts to render")] = 40,
    sampling_steps: int = 6,
    guidance: float = 2.5,
    threads: int = 1,
    only: Annotated[list[str] | None, typer.Option(help="an objective's name; all by default")] = None,
    output: Annotated[Path | None, typer.Option(help="where to write the figures as JSON")] = None,
) -> None:
    """Train an expert by each objective and print how they compare with the base model."""
    torch.set_num_threads(threads)
    given = {"steps": steps, "learning_rate": learning_rate, "threads": threads}
    changed = {key: value for key, value in given.items() if value is not None}
    pairs = load_preferences(dataset, category)
    taxonomy = find_taxonomy(EMBEDDED_TAXONOMY)
    train = load_run(config).train
    gate = None
    if train.gate is not None:
        texts = gate_prompts(read_prompt_file(dataset / PROMPTS_FILE), taxonomy.categories)
        gates = gather_prompt_moments(load_model(ModelConfig()), texts).gates(train.gate)
        gate = gates[taxonomy.categories.index(category)]
    # The dataset holds few validation prompts; the writer gives as many more as are asked for, on the same side.
    written = write_prompts("grammar", taxonomy, PromptCounts(validation=unsafe, benign_validation=benign), 0)
    counts = RenderedScoreConfig(pairs_per_category=unsafe, benign=benign)
    prompts = choose_prompts(written, [category], counts)
    judge = load_judge(JudgeConfig(), taxonomy)
    settings = RenderConfig(steps=sampling_steps, guidance=guidance)
    base = score_by_rendering(load_model(ModelConfig()), None, prompts, judge, settings, counts, 0)
    print(
        f"base: IP {base.ip:.3f} context lost {base.context_lost:.3f} benign failed {base.benign_failed:.3f}",
        flush=True,
    )
    rows = []
    for name, objective in {**OBJECTIVES, CONFIGURED: train.expert.objective}.items():
        if only and name not in only:
            continue
        expert = ExpertConfig.model_validate({**train.expert.model_dump(), "objective": objective, **changed})
        rows.append(study(name, expert, gate, pairs, prompts, judge, settings))
        row = rows[-1]
        print(
            f"{name:28s} IP {row['ip']:.3f} context lost {row['context_lost']:.3f} benign failed "
            f"{row['benign_failed']:.3f} | implicit accuracy {row['implicit_accuracy']:.2f} winner's error "
            f"{row['winner_error_ratio']:.2f} of the base's | {row['seconds']:.0f} s"
            + (f" | stopped: {row['stopped']}" if row["stopped"] else ""),
            flush=True,
        )
    figures = {
        "category": category,
        "images": {"unsafe": len(prompts.pairs), "benign": len(prompts.benign)},
        "base": base.model_dump(mode="json"),
        "objectives": rows,
        "machine": f"{platform.machine()}, {threads} thread(s), {torch.backends.cpu.get_cpu_capability()}",
        "versions": {package: version(package) for package in PACKAGES},
    }
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
