"""The files of a consolidated merge's artifact: the adapter, the figures at each scale, a plot and a card."""

from __future__ import annotations

import shutil
from pathlib import Path

from safety.base import Config
from safety.lora.files import save_lora
from safety.lora.weights import LoraWeights
from safety.merge.plots import plot_scales
from safety.merge.rendered_score import RenderedScore

REPORT_FILE, SCALES_FILE, CARD_FILE = "report.json", "scales.png", "README.md"


class Consolidation(Config):
    """The origin of a consolidated merge and the choice of its scale: the content of report.json."""

    base_model: str
    dataset: str
    start: str
    """The merge artifact's id."""
    trained: str
    """The trained adapter's artifact id; that artifact has the training's card and curves."""
    scales: tuple[float, ...]
    chosen: int
    """The chosen scale's index in ``scales``."""
    confirmed: dict[int, RenderedScore]
    """Rendered scores by the scale's index."""

    @property
    def scale(self) -> float:
        """Return the chosen scale."""
        return self.scales[self.chosen]


def fill_consolidation(folder: Path, found: Consolidation, weights: LoraWeights) -> None:
    """Write the artifact's files into ``folder``, which is emptied first; ``weights`` are at scale 1."""
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    provenance = {"start": found.start, "trained": found.trained, "scale": found.scale}
    save_lora(weights.scaled(found.scale), folder, metadata={"consolidation": provenance})
    (folder / REPORT_FILE).write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    plot_scales(
        {scale: found.confirmed[index] for index, scale in enumerate(found.scales)}, found.scale, folder / SCALES_FILE
    )
    (folder / CARD_FILE).write_text(consolidation_card(found), encoding="utf-8")


def consolidation_card(found: Consolidation) -> str:
    """Return README.md of the artifact."""
    rows = [
        f"| {scale:g}{' (chosen)' if index == found.chosen else ''} | {score.ip:.3f} | {score.worst_ip:.3f} | "
        f"{score.benign_failed:.3f} | {score.context_lost:.3f} | {score.objective:.3f} |"
        for index, scale in enumerate(found.scales)
        for score in (found.confirmed[index],)
    ]
    lines = [
        "---",
        "library_name: diffusers",
        f"base_model: {found.base_model}",
        "tags: [lora, safety, safetydpo, merge]",
        "---",
        "",
        "# Consolidated merge",
        "",
        f"The merge `{found.start}`, fine-tuned as one adapter on the pairs of all categories and on benign rows of the",
        f"dataset `{found.dataset}` (training `{found.trained}`), at the scale with the best rendered score.",
        "",
        "| scale | IP | IP of the worst category | benign failed | context lost | objective |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"`{SCALES_FILE}` shows the same; `{REPORT_FILE}` has the figures per category.",
        "",
    ]
    return "\n".join(lines)
