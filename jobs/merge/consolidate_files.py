"""What a consolidated merge's artifact holds: the adapter, the figures at each scale, a plot and a card."""

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
    """What was trained from what, and how its scale was chosen: report.json."""

    base_model: str
    dataset: str
    start: str
    """The merge artifact's id."""
    trained: str
    """The trained adapter's artifact id; its card and curves tell of the training."""
    scales: tuple[float, ...]
    chosen: int
    """The chosen scale's place in ``scales``."""
    confirmed: dict[int, RenderedScore]
    """What was seen in rendered validation images, by the scale's place."""

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
        {scale: found.confirmed[place] for place, scale in enumerate(found.scales)}, found.scale, folder / SCALES_FILE
    )
    (folder / CARD_FILE).write_text(consolidation_card(found), encoding="utf-8")


def consolidation_card(found: Consolidation) -> str:
    """Return README.md of the artifact."""
    rows = [
        f"| {scale:g}{' (chosen)' if place == found.chosen else ''} | {seen.ip:.3f} | {seen.worst_ip:.3f} | "
        f"{seen.benign_failed:.3f} | {seen.context_lost:.3f} | {seen.objective:.3f} |"
        for place, scale in enumerate(found.scales)
        for seen in (found.confirmed[place],)
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
        f"The merge `{found.start}`, trained on as one adapter on the pairs of all categories and on benign rows of the",
        f"dataset `{found.dataset}` (training `{found.trained}`), at the scale that rendered validation prompts chose.",
        "",
        "| scale | IP | IP of the worst category | benign failed | context lost | objective |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"`{SCALES_FILE}` shows the same; `{REPORT_FILE}` has it by category.",
        "",
    ]
    return "\n".join(lines)
