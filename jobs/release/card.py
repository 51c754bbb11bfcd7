"""The model card of a release: its purpose and limits, its use, its figures and its provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict

from safety.evaluation.bootstrap import Estimate
from safety.evaluation.ip import OVERALL
from safety.evaluation.plan import BASE, MERGED
from safety.lora.kohya import KOHYA_FILE
from safety.markdown import code, head, plain, quoted
from safety.release import ReleaseInfo

CAUTION = (
    "A lower share of flagged images is a measurement by one judge on one set of prompts. It is no guarantee: "
    "other prompts, and attacks made to get round the alignment, may still bring harmful images."
)


SELECTED = "This is the judge that selected: it also filters the training data or chooses the merge, so its figures flatter the result."
SECOND: dict[bool | None, str] = {
    True: ", which filters the data or chooses the merge as well",
    False: ", which chose neither the data nor the merge",
    None: "",
}
"""What is said of a second judge by whether it has chosen, which reports of earlier versions do not say."""


class BenignFigures(BaseModel):
    """Figures of the images of benign prompts."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    objects_present: float | None
    clip_score: float | None
    fid: float | None
    fid_to_base: float | None = None
    cmmd_to_base: float | None = None
    lpips_to_base: float | None = None
    flagged: float
    n: int


class Measured(BaseModel):
    """The part of ``metrics.json`` that a card shows; the rest of the file is the report's own."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    ip: dict[str, dict[str, Estimate]]
    ip_second: dict[str, dict[str, Estimate]] = {}
    """By a second judge; empty where the report has none."""
    benign: dict[str, BenignFigures]
    context_kept: Estimate | None
    provenance: dict[str, Any]


class Usage(NamedTuple):
    """How a release is used with its base model."""

    pipeline: str = "StableDiffusionPipeline"
    """The class of the base model's pipeline in diffusers."""
    hub_id: str | None = None
    """The base model's id on its hub; None: it is a folder or file of the user's."""
    single_file: bool = False
    """Whether the base model is one file of the user's, and no folder."""
    load: Mapping[str, str | None] = {}
    """Further arguments that the base model is loaded with: its revision on a hub, None for a part that it does without."""
    sampler: str | None = None
    """The class of the base model's own scheduler."""
    steps: int | None = None
    guidance: float | None = None
    """Of the images that were measured."""
    truncation: float | None = None
    """The relative error with which the merge was cut to its rank, before any consolidation."""


def write_card(
    info: ReleaseInfo,
    licence: str,
    config: Mapping[str, Any],
    measured: Measured | None,
    notice: str | None,
    use: Usage | None = None,
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
        use: How it is used with its base model; None: as a Stable Diffusion 1.x or 2.x.
        attributed: Whether ``ATTRIBUTION.md`` lies beside the card.
    """
    use = use or Usage()
    entries = {
        "license": licence,
        # Hubs take it for an id of theirs, which a path on the user's machine is not.
        **({"base_model": use.hub_id} if use.hub_id else {}),
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
        _usage(info, use),
        "## Figures\n\n"
        + (_figures(measured) if measured else "This release was published without a report: it is not measured."),
        f"## Settings\n\n```yaml\n{yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)}```",
        "## Provenance\n\n" + _table(("what", "which"), provenance),
        f"## Licence\n\nThe adapter: {plain(licence)}. The base model and the data it was trained on have their own licences"
        + ("; see `ATTRIBUTION.md`." if attributed else "."),
    ]
    return "\n\n".join(parts) + "\n"


def _usage(info: ReleaseInfo, use: Usage) -> str:
    base = use.hub_id or "PATH_OF_THE_BASE_MODEL"
    method = "from_single_file" if use.single_file and use.hub_id is None else "from_pretrained"
    # The pipelines of SD 1.x and 2.x alone have a safety checker, which this project's folders leave out.
    checker = ", safety_checker=None" if use.pipeline == "StableDiffusionPipeline" else ""
    load = "".join(f", {name}={json.dumps(value) if value else None}" for name, value in use.load.items())
    parts = [
        f"## Use\n\n```python\nfrom diffusers import {use.pipeline}\n\n"
        f'pipeline = {use.pipeline}.{method}("{base}"{load}{checker})\n'
        'pipeline.load_lora_weights("PATH_OF_THIS_FOLDER")\n```',
        f"`{KOHYA_FILE}` is the same adapter in kohya's form, for ComfyUI (in `models/loras`) and other tools.",
        "There is no trigger word: it acts on every prompt. Use it at strength 1, at which it was made; a lower strength "
        "weakens the alignment.",
        _sampling(use),
        *(
            [
                f"The merge of the experts was cut to its rank with a relative error of {use.truncation:.4f} (Frobenius norm)."
            ]
            if use.truncation
            else []
        ),
        f"It fits the base model whose files hash to `{info.base.sha256}` and no other.",
    ]
    return "\n\n".join(part for part in parts if part)


def _sampling(use: Usage) -> str:
    own = f" The base model's own is `{use.sampler}`." if use.sampler else ""
    drawn = (
        f" The images behind the figures were drawn with {use.steps} steps at guidance {use.guidance:g}."
        if use.steps is not None and use.guidance is not None
        else ""
    )
    return f"Any sampler of the base model works, since weights alone are changed.{own}{drawn}"


def _figures(measured: Measured) -> str:
    names: list[str] = [name for name in (BASE, MERGED) if name in measured.ip]
    rows: list[tuple[str, ...]] = [
        (plain(category), *(_percent(measured.ip[name].get(category)) for name in names))
        for category in measured.ip[names[-1]]
    ]
    parts = [
        f"IP is the share in % of images from unsafe test prompts that the judge {_judge(measured, 'judge')} flags, with 95% "
        "intervals; lower is better.",
        _table(("IP, %", *names), rows),
        *_selected(measured),
        *_second(measured, names),
        "On benign prompts:",
        _table(("model", "every object present", "CLIPScore", "FID", "flagged", "n"), _benign_rows(measured, names)),
    ]
    if measured.context_kept is not None:
        parts.append(f"Aligned images that keep what was harmless in the prompt: {_percent(measured.context_kept)} %.")
    return "\n\n".join(parts)


def _judge(measured: Measured, which: str) -> str:
    judge = measured.provenance.get(which) or {}
    version = plain(str(judge.get("version")))
    return f"{code(str(judge.get('name')))} (version {version}, threshold {judge.get('threshold')})"


def _second(measured: Measured, names: list[str]) -> list[str]:
    """Return the same figures by the second judge, of the categories that it covers; [] without one."""
    found = measured.ip_second
    if not found:
        return []
    covered = next(iter(found.values()))
    rows = [(plain(category), *(_percent(found.get(name, {}).get(category)) for name in names)) for category in covered]
    others = [plain(name) for name in measured.ip[names[-1]] if name not in covered and name != OVERALL]
    silent = f" It does not judge {', '.join(others)}." if others else ""
    text = f"By a second judge, {_judge(measured, 'second_judge')}{SECOND.get(measured.provenance.get('second_chose'), '')}.{silent}"
    return [text, _table(("IP, %", *names), rows)]


def _selected(measured: Measured) -> list[str]:
    """Return that the judge has chosen what it measures; [] where it has not, or where that is not known."""
    return [SELECTED] if measured.provenance.get("judge_chose") is True else []


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
