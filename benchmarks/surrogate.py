"""The agreement of the surrogate's ranking of merges with that by rendered images, and the ratio of their costs.

    python benchmarks/surrogate.py out/demo/work/merge/<id of a Co-Merge>

Reads the experts, dataset and calibration named by a published Co-Merge (its folder's siblings), merges them at points
all over the search space, scores each merge by the surrogate and by rendered images of the validation split, and prints
Spearman's rank correlation and the ratio of the two costs.
"""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import optuna
import torch
import typer
import yaml
from scipy.stats import spearmanr

from safety.dataset.latents import load_preferences
from safety.embedded import EMBEDDED_TAXONOMY
from safety.families import ModelConfig, load_model
from safety.judges.judge import JudgeConfig, load_judge
from safety.lora.files import load_lora
from safety.lora.weights import LoraWeights
from safety.merge import MethodConfig, load_calibration, merge_methods
from safety.merge.method import parse_method
from safety.merge.methods.co_merge import CoMergeConfig
from safety.merge.probes import gather_probes
from safety.merge.rendered_score import RenderedScoreConfig, choose_prompts, score_by_rendering
from safety.merge.search import SearchConfig, SearchSpace
from safety.merge.surrogate import Surrogate, SurrogateConfig
from safety.prompts.files import PROMPTS_FILE, read_prompt_file
from safety.rendering import RenderConfig
from safety.taxonomy import find_taxonomy

RENDERED = RenderedScoreConfig()
"""The counts of images with which the search itself scores a candidate."""
PACKAGES = ("torch", "diffusers", "optuna", "scipy")


def sample_merges(space: SearchSpace, count: int, seed: int) -> list[MethodConfig]:
    """Return ``count`` merges: the simple methods, the search's first points, then points drawn uniformly."""
    baselines = [parse_method(name) for name in ("average", "task-arithmetic")]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    points = [*space.first_points, *(study.ask(space.distributions).params for _ in range(count))]
    return [*baselines, *(space.candidate(point) for point in points)][:count]


def main(
    merge: Annotated[Path, typer.Argument(help="the folder of a Co-Merge artifact")],
    merges: Annotated[int, typer.Option(help="merges to rank")] = 20,
    pairs: Annotated[int, typer.Option(help="unsafe prompts per category to render")] = RENDERED.pairs_per_category,
    benign: Annotated[int, typer.Option(help="benign prompts to render")] = RENDERED.benign,
    sampling_steps: int = 6,
    guidance: float = 2.5,
    threads: int = 1,
    seed: int = 0,
    output: Annotated[Path | None, typer.Option(help="where to write the figures as JSON")] = None,
) -> None:
    """Rank merges both ways and print the correlation of the ranks."""
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recipe = yaml.safe_load((merge / "merge.yaml").read_text(encoding="utf-8"))
    work = merge.parent.parent
    experts: dict[str, LoraWeights] = {n: load_lora(work / "expert" / i) for n, i in recipe["experts"].items()}
    statistics = load_calibration(work / "calibration" / recipe["calibration"] / "calibration.safetensors")
    dataset = work / "dataset" / recipe["dataset"]
    sets = {name: load_preferences(dataset, name) for name in experts}
    model = load_model(ModelConfig(path=recipe["base_model"]))
    judge = load_judge(JudgeConfig(), find_taxonomy(EMBEDDED_TAXONOMY))
    config = SurrogateConfig()
    probes = gather_probes(sets, "validation", config.pairs_per_category, config.benign)
    counts = RenderedScoreConfig(pairs_per_category=pairs, benign=benign)
    prompts = choose_prompts(read_prompt_file(dataset / PROMPTS_FILE), list(experts), counts)
    started = time.perf_counter()
    surrogate = Surrogate(model, probes, config, seed)
    prepared = time.perf_counter() - started
    rows: list[dict[str, Any]] = []
    space = SearchSpace(list(experts), CoMergeConfig(), SearchConfig())
    for parameters in sample_merges(space, merges, seed):
        method = parameters.name
        weights = merge_methods[method](experts, statistics, parameters).weights
        started = time.perf_counter()
        score = surrogate.score(weights)
        scored = time.perf_counter()
        seen = score_by_rendering(
            model, weights, prompts, judge, RenderConfig(steps=sampling_steps, guidance=guidance), counts, seed
        )
        rendered = time.perf_counter() - scored
        rows.append(
            {
                "method": method,
                "parameters": parameters.model_dump(mode="json", exclude={"name"}),
                "harm": score.harm,
                "drift": score.drift,
                "total": score.total,
                **seen.model_dump(mode="json"),
                "surrogate_s": scored - started,
                "rendered_s": rendered,
            }
        )
        print(
            f"{len(rows):2d} {method:13s} harm {score.harm:.3f} drift {score.drift:.3f} | IP {seen.ip:.3f} "
            f"benign failed {seen.benign_failed:.3f} context lost {seen.context_lost:.3f} | "
            f"{scored - started:.2f} s against {rendered:.1f} s",
            flush=True,
        )
    report(rows, prepared, surrogate.predictions, output)


def report(rows: list[dict[str, Any]], prepared: float, predictions: int, output: Path | None) -> None:
    """Print the correlations and the costs, and write them to ``output``."""

    def column(name: str) -> list[float]:
        return [float(row[name]) for row in rows]

    surrogate_s = (sum(column("surrogate_s")) + prepared) / len(rows)
    rendered_s = sum(column("rendered_s")) / len(rows)
    ip = spearmanr(column("harm"), column("ip"))
    objective = spearmanr(column("total"), column("objective"))
    figures = {
        "spearman_harm_ip": float(ip.statistic),
        "spearman_total_objective": float(objective.statistic),
        "merges": len(rows),
        "images_a_merge": rows[0]["images"],
        "predictions_a_score": predictions,
        "surrogate_s": surrogate_s,
        "rendered_s": rendered_s,
        "cost_ratio": surrogate_s / rendered_s,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "versions": {name: version(name) for name in PACKAGES},
    }
    print(json.dumps(figures, indent=1))
    if output is not None:
        output.write_text(json.dumps({**figures, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
