"""The drawings of the emoji world, read from openly licensed npm packages and rendered.

Only the world's build job needs this; the repository ships the weights trained on the drawings, not the
drawings. Packages: ``@iconify-json/<set>`` at the versions in ``SETS``, all under open licences (see
``ATTRIBUTION.md``).
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safety.emoji.scene import KEY_SEPARATOR
from safety.taxonomy import BenignConcept, Taxonomy

RENDERED_PIXELS = 64


class EmojiSet(NamedTuple):
    """One vendor's drawings: the npm package's version, and its licence (SPDX)."""

    version: str
    licence: str


SETS: dict[str, EmojiSet] = {
    "twemoji": EmojiSet("1.2.5", "CC-BY-4.0"),
    "noto": EmojiSet("1.2.9", "Apache-2.0"),
    "noto-v1": EmojiSet("1.2.5", "Apache-2.0"),
    "openmoji": EmojiSet("1.2.29", "CC-BY-SA-4.0"),
    "fluent-emoji-flat": EmojiSet("1.2.6", "MIT"),
    "fluent-emoji": EmojiSet("1.2.7", "MIT"),
    "emojione": EmojiSet("1.2.3", "CC-BY-4.0"),
    "emojione-v1": EmojiSet("1.2.3", "CC-BY-SA-4.0"),
    "fxemoji": EmojiSet("1.2.2", "Apache-2.0"),
}


def fetch_sets(folder: Path) -> None:
    """Fetch the sets' npm packages into ``folder`` (skips those already there); needs npm and a registry."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, emoji_set in SETS.items():
        package = f"@iconify-json/{name}@{emoji_set.version}"
        if not _archive(folder, name).exists():
            subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True, timeout=600)


def _archive(folder: Path, name: str) -> Path:
    return folder / f"iconify-json-{name}-{SETS[name].version}.tgz"


def _read_json(archive: Path, member: str) -> dict[str, Any]:
    with tarfile.open(archive) as tar:
        if f"package/{member}" not in tar.getnames():
            return {}
        handle = tar.extractfile(f"package/{member}")
        return {} if handle is None else dict(json.load(handle))


def code_point(emoji: str) -> str:
    """Return the emoji's code points as iconify spells them, without variation selectors."""
    return "-".join(f"{ord(c):x}" for c in emoji if ord(c) != 0xFE0F)


def _icon_names(concept: BenignConcept, slugs: dict[str, set[str]]) -> list[str]:
    """Return the names that a set may have the concept's drawing under, most reliable first."""
    found = sorted(slugs.get(code_point(concept.symbol or ""), set()))
    own = concept.name.replace(" ", "-").replace("'", "")
    return list(dict.fromkeys([*found, own, *(name.replace("-", "") for name in [*found, own])]))


def render_svg(body: str, left: float, top: float, width: float, height: float) -> Tensor:
    """Render an SVG body to RGBA, uint8 [64, 64, 4], with premultiplied alpha."""
    import resvg_py

    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="256" height="256">{body}</svg>'
    )
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    box = image.getbbox() or (0, 0, *image.size)
    side = max(box[2] - box[0], box[3] - box[1])
    centred = Image.new("RGBA", (side, side))
    centred.paste(image.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
    pixels = np.asarray(centred, dtype=np.float32) / 255.0
    pixels[..., :3] *= pixels[..., 3:]
    channels = [
        Image.fromarray(pixels[..., i]).resize((RENDERED_PIXELS, RENDERED_PIXELS), Image.Resampling.BOX)
        for i in range(4)
    ]
    stacked = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return torch.from_numpy((stacked * 255).round().clip(0, 255).astype(np.uint8))


def render_taxonomy(taxonomy: Taxonomy, folder: Path) -> dict[str, Tensor]:
    """Render each concept's drawing in each set that has it.

    Returns:
        ``{"<concept>|<set>": uint8 [64, 64, 4]}``, RGBA with premultiplied alpha.
    """
    icons = {name: _read_json(_archive(folder, name), "icons.json") for name in SETS}
    slugs: dict[str, set[str]] = {}
    for name in SETS:
        for point, slug in _read_json(_archive(folder, name), "chars.json").items():
            slugs.setdefault(point.replace("-fe0f", "").lstrip("0"), set()).add(slug)
    rendered = {}
    for concept in (*taxonomy.concepts, *taxonomy.benign):
        names = _icon_names(concept, slugs)
        for set_name, data in icons.items():
            icon = next((i for i in (_icon(data, n) for n in names) if i is not None), None)
            if icon is not None:
                rendered[f"{concept.name}{KEY_SEPARATOR}{set_name}"] = render_svg(**icon)
    return rendered


def _icon(data: dict[str, Any], name: str) -> dict[str, Any] | None:
    name = data.get("aliases", {}).get(name, {}).get("parent", name)
    icon = data["icons"].get(name)
    if icon is None:
        return None
    width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
    return {
        "body": icon["body"],
        "left": icon.get("left", 0),
        "top": icon.get("top", 0),
        "width": width,
        "height": height,
    }
