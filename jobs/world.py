"""Builds the embedded emoji model from its raw material: ``python -m jobs.world --work out/world --zoo DIR``.

Needs npm (the drawings come from its registry) and the ``world`` extra. Every part resumes from its
checkpoints. The committed zoo was made by this job.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from safety.documents import read_yaml
from safety.embedded import EMBEDDED_TAXONOMY_FILE
from safety.emoji.build.measure import JudgeQuality, ModelQuality
from safety.emoji.build.reference import real_scene_moments
from safety.emoji.build.world import PARTS, Part, WorldBuilder, WorldConfig, measure_world, write_cards
from safety.evaluation.moments import save_moments
from safety.taxonomy import load_taxonomy

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "world.yaml"


def show(console: Console, judge: dict[str, JudgeQuality], model: ModelQuality) -> None:
    """Print the measured quality as two tables."""
    table = Table("drawings", "scenes", "concepts named", "scenes exact", "calibration error", title="Judge")
    for name, quality in judge.items():
        table.add_row(
            name,
            str(quality.scenes),
            f"{quality.named:.3f}",
            f"{quality.exact:.3f}",
            f"{quality.calibration_error:.3f}",
        )
    console.print(table)
    base = Table("measure", "value", title="Base model")
    for key, value in model.model_dump().items():
        base.add_row(key.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else str(value))
    console.print(base)


def chosen_parts(names: list[str] | None) -> tuple[Part, ...]:
    """Return the parts of these names, or all of them; raise BadParameter for an unknown name."""
    unknown = [name for name in names or () if name not in PARTS]
    if unknown:
        raise typer.BadParameter(f"no part is called {unknown[0]!r}; use {', '.join(PARTS)}", param_hint="--part")
    return tuple(part for part in PARTS if names is None or part in names)


def main(
    work: Annotated[Path, typer.Option(help="folder for drawings and checkpoints")] = Path("out/world"),
    zoo: Annotated[Path, typer.Option(help="folder the models are written to")] = Path("out/zoo"),
    config: Annotated[Path, typer.Option(help="a WorldConfig as YAML")] = DEFAULT_CONFIG,
    images: Annotated[int, typer.Option(help="images a measurement of the base model renders")] = 1000,
    part: Annotated[
        list[str] | None, typer.Option(help=f"train this part and keep the zoo's others; one of {', '.join(PARTS)}")
    ] = None,
    only_measure: Annotated[bool, typer.Option(help="measure an existing zoo again")] = False,
) -> None:
    """Train the emoji zoo, measure it and write its cards."""
    console = Console()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console)])
    torch.set_float32_matmul_precision("high")
    settings = WorldConfig.model_validate(read_yaml(config, field="--config", what="a world's YAML") or {})
    builder = WorldBuilder(settings, load_taxonomy(EMBEDDED_TAXONOMY_FILE), work)
    if not only_measure:
        builder.build(zoo, chosen_parts(part))
        moments = real_scene_moments(zoo, builder.taxonomy, builder.renderer, settings.unet_pool)
        save_moments(moments, zoo / "fid" / "benign.safetensors")
    judge, model = measure_world(builder, zoo, images)
    document = {"judge": {k: v.model_dump() for k, v in judge.items()}, "model": model.model_dump()}
    (zoo / "quality.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    write_cards(zoo, settings, judge, model)
    show(console, judge, model)


if __name__ == "__main__":
    typer.run(main)
