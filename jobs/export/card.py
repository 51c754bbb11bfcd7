"""The model card of a fused model."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.release.card import CAUTION
from safety.exports.fused_weights import Rounding
from safety.markdown import code, head, plain
from safety.release import ReleaseInfo

TYPES = {"float16": "torch.float16", "bfloat16": "torch.bfloat16", "float32": "torch.float32"}


def fused_card(
    info: ReleaseInfo,
    pipeline: str,
    licence: str,
    rounding: Rounding,
    hub_id: str | None = None,
    absent: Sequence[str] = (),
    *,
    attributed: bool = False,
) -> str:
    """Return README.md of a fused folder.

    Args:
        info: Of the release.
        pipeline: The class of the base model's pipeline in diffusers.
        licence: SPDX identifier of the adapter.
        rounding: What the base's type has cost.
        hub_id: The base model's id on its hub; None: it is a folder or file of the user's.
        absent: Parts of that pipeline which the model does without.
        attributed: Whether ``ATTRIBUTION.md`` lies beside the card.
    """
    dtype = next((kind for name, kind in TYPES.items() if name in rounding.dtypes), TYPES["float32"])
    lost = "".join(f", {name}=None" for name in absent)
    entries = {
        "license": licence,
        **({"base_model": hub_id, "base_model_relation": "finetune"} if hub_id else {}),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["safety", "safetydpo", "text-to-image"],
    }
    parts = [
        f"---\n{head(entries)}\n---",
        f"# {plain(info.name)}, fused",
        f"{code(info.base.id)} with the release {code(info.name)} (adapter `{info.adapter_sha256}`) added to its weights, "
        "which aligns it away from harmful images.",
        CAUTION,
        f"## Use\n\n```python\nimport torch\nfrom diffusers import {pipeline}\n\n"
        f'pipeline = {pipeline}.from_pretrained("PATH_OF_THIS_FOLDER", torch_dtype={dtype}{lost})\n```',
        f"The sums were made in fp32 and stored in the base's own type, {', '.join(sorted(rounding.dtypes))}: rounding lost "
        f"{100 * rounding.error:.3g}% of the adapter's change (Frobenius norms).",
        f"## Licence\n\nThe adapter: {plain(licence)}. The base model, whose weights are in here, and the data it was trained "
        f"on have their own licences{'; see `ATTRIBUTION.md`' if attributed else ''}.",
    ]
    return "\n\n".join(parts) + "\n"
