"""The card of a merge: its figures, its files, and the exact configuration that reproduces it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from safety.markdown import head, plain

FILES = {
    "pytorch_lora_weights.safetensors": "the merged LoRA; `pipe.load_lora_weights(folder)` of diffusers reads it",
    "merge.yaml": "the method and its exact parameters",
    "report.json": "ties, shares, ranks, the error of the rank's truncation, and the search",
    "shares.png": "each expert's share of every layer",
    "search.png": "the search's trials, and the rendered scores of the best ones",
}


def merge_card(recipe: Mapping[str, Any], report: Mapping[str, Any], files: set[str]) -> str:
    """Return README.md of a merge's artifact.

    Args:
        recipe: The content of merge.yaml; its ``name``, ``base_model`` and ``method`` are read.
        report: The content of report.json.
        files: The names of the files in the artifact.
    """
    lines = [
        "---",
        "library_name: diffusers",
        head({"base_model": recipe["base_model"]}),
        "tags: [lora, safety, safetydpo, merge]",
        "---",
        "",
        f"# {plain(recipe['name'])}",
        "",
        f"One LoRA merged from {len(report['experts'])} safety experts by the method `{recipe['method']}`.",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {label} | {value} |" for label, value in _figures(report).items()),
        "",
        *_share_table(report),
        "## Files",
        "",
        *(f"- `{file}`: {meaning}" for file, meaning in FILES.items() if file in files),
        "",
        "## Recipe",
        "",
        "```yaml",
        yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _figures(report: Mapping[str, Any]) -> dict[str, str]:
    ranks = list(report["ranks"].values())
    figures = {
        "adapted layers": str(len(ranks)),
        "rank of a layer": str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}",
        "parameters": f"{report['parameters']:,}",
    }
    if "ties" in report:
        figures["tied choices"] = f"{report['ties']['overall']:,} of {report['ties']['cells']:,}"
        figures["relative error of the truncation"] = f"{report['svd_error']['overall']:.4f}"
    if "search" in report:
        chosen, start = report["search"]["winner"], report["search"]["start"]
        for label, key in (
            ("IP", "ip"),
            ("benign images failed", "benign_failed"),
            ("context lost", "context_lost"),
        ):
            figures[f"validation {label} (the start's)"] = f"{chosen[key]:.3f} ({start[key]:.3f})"
        worst, before = (max(score["ip_by_category"].values()) for score in (chosen, start))
        figures["validation IP of the worst category (the start's)"] = f"{worst:.3f} ({before:.3f})"
    return figures


def _share_table(report: Mapping[str, Any]) -> list[str]:
    if "shares" not in report:
        return []
    rows = [f"| {plain(expert)} | {100 * share:.1f}% |" for expert, share in report["shares"]["overall"].items()]
    return ["| expert | share of the merge |", "|---|---|", *rows, ""]
