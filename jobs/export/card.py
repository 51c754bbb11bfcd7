"""The model card of a fused model."""

from __future__ import annotations

from jobs.release.card import CAUTION
from safety.exports.fused_weights import Rounding
from safety.markdown import code, head, plain
from safety.release import ReleaseInfo

TYPES = {"float16": "torch.float16", "bfloat16": "torch.bfloat16", "float32": "torch.float32"}


def fused_card(info: ReleaseInfo, pipeline: str, licence: str, rounding: Rounding) -> str:
    """Return README.md of a fused folder.

    Args:
        info: Of the release.
        pipeline: The class of the base model's pipeline in diffusers.
        licence: SPDX identifier of the adapter.
        rounding: What the base's type has cost.
    """
    dtype = next((kind for name, kind in TYPES.items() if name in rounding.dtypes), TYPES["float32"])
    entries = {
        "license": licence,
        "base_model": info.base.id,
        "base_model_relation": "merge",
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
        f'pipeline = {pipeline}.from_pretrained("PATH_OF_THIS_FOLDER", torch_dtype={dtype})\n```',
        f"The sums were made in fp32 and stored in the base's own type, {', '.join(sorted(rounding.dtypes))}: rounding lost "
        f"{100 * rounding.error:.3g}% of the adapter's change (Frobenius norms).",
        f"## Licence\n\nThe adapter: {plain(licence)}. The base model, whose weights are in here, and the data it was trained "
        "on have their own licences.",
    ]
    return "\n\n".join(parts) + "\n"
