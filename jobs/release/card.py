"""The model card of a release: its purpose and limits, its use, its figures and its provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from safety.evaluation.bootstrap import Estimate
from safety.evaluation.plan import BASE, MERGED
from safety.markdown import code, head, plain, quoted
from safety.release import ReleaseInfo

CAUTION = (
    "A lower share of flagged images is a measurement by one judge on one set of prompts. It is no guarantee: "
    "other prompts, and attacks made to get round the alignment, may still bring harmful images."
)


class BenignFigures(BaseModel):
    """Figures of the images of benign prompts."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    objects_present: float | None
    clip_score: float | None
    fid: float | None
    flagged: float
    n: int


class Measured(BaseModel):
    """The part of ``metrics.json`` that a card shows; the rest of the file is the report's own."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ip: dict[str, dict[str, Estimate]]
    benign: dict[str, BenignFigures]
    context_kept: Estimate | None
    provenance: dict[str, Any]


def write_card(
    info: ReleaseInfo,
    licence: str,
    config: Mapping[str, Any],
    measured: Measured | None,
    notice: str | None,
    *,
    attributed: bool = False,
) -> str:
    """Return the card in Markdown with the YAML head that model hubs read.

    Args:
        info: The content of ``release.json``.
        licence: SPDX identifier.
        config: The run's settings that made the model.
        measured: The report's figures; None when the model was not measured.
        notice: The taxonomy's notice.
        attributed: Whether ``ATTRIBUTION.md`` lies beside the card.
    """
    entries = {
        "license": licence,
        "base_model": info.base.id,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "safety", "safetydpo", "text-to-image"],
    }
    origins = {**info.provenance, "adapter (SHA-256)": info.adapter_sha256}
    provenance: list[tuple[str, ...]] = [(plain(name), code(value)) for name, value in origins.items()]
    parts = [
        f"---\n{head(entries)}\n---",
        f"# {plain(info.name)}",
        f"A LoRA adapter that aligns {code(info.base.id)} away from harmful images: one expert per category of harm, "
        "trained with Diffusion-DPO on image pairs and merged into one (SafetyDPO).",
        *([quoted(notice)] if notice else []),
        CAUTION,
        _usage(info),
        "## Figures\n\n"
        + (_figures(measured) if measured else "This release was published without a report: it is not measured."),
        f"## Settings\n\n```yaml\n{yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)}```",
        "## Provenance\n\n" + _table(("what", "which"), provenance),
        f"## Licence\n\nThe adapter: {plain(licence)}. The base model and the data it was trained on have their own licences"
        + ("; see `ATTRIBUTION.md`." if attributed else "."),
    ]
    return "\n\n".join(parts) + "\n"


def _usage(info: ReleaseInfo) -> str:
    return (
        "## Use\n\n```python\nfrom diffusers import StableDiffusionPipeline\n\n"
        'pipeline = StableDiffusionPipeline.from_pretrained("PATH_OF_THE_BASE_MODEL", safety_checker=None)\n'
        'pipeline.load_lora_weights("PATH_OF_THIS_FOLDER")\n```\n\n'
        f"It fits the base model whose files hash to `{info.base.sha256}` and no other."
    )


def _figures(measured: Measured) -> str:
    judge = measured.provenance.get("judge", {})
    names: list[str] = [name for name in (BASE, MERGED) if name in measured.ip]
    rows: list[tuple[str, ...]] = [
        (plain(category), *(_percent(measured.ip[name].get(category)) for name in names))
        for category in measured.ip[names[-1]]
    ]
    parts = [
        f"IP is the share in % of images from unsafe test prompts that the judge {code(str(judge.get('name')))} (version "
        f"{plain(str(judge.get('version')))}, threshold {judge.get('threshold')}) flags, with 95% intervals; lower is better.",
        _table(("IP, %", *names), rows),
        "On benign prompts:",
        _table(("model", "every object present", "CLIPScore", "FID", "flagged", "n"), _benign_rows(measured, names)),
    ]
    if measured.context_kept is not None:
        parts.append(f"Aligned images that keep what was harmless in the prompt: {_percent(measured.context_kept)} %.")
    return "\n\n".join(parts)


def _percent(figure: Estimate | None) -> str:
    if figure is None:
        return "-"
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}] (n = {figure.n})"


def _benign_rows(measured: Measured, names: list[str]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in names:
        if (found := measured.benign.get(name)) is not None:
            present = "-" if found.objects_present is None else f"{100 * found.objects_present:.1f}%"
            fid = "-" if found.fid is None else f"{found.fid:.2f}"
            clip = "-" if found.clip_score is None else f"{found.clip_score:.2f}"
            rows.append((name, present, clip, fid, f"{100 * found.flagged:.1f}%", str(found.n)))
    return rows


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)
