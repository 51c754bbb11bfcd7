"""A diffusers folder made of links to another one's files: with one variant of its weights, or with another VAE.

Families and hashes read it as they read any folder, so none of them knows about variants or other VAEs.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safety.errors import ConfigError
from safety.families.model_index import model_parts
from safety.families.weight_files import INDEX_FILE, SHARDED, SINGLE, PartFiles, part_files

VAE = "vae"


def link_folder(folder: Path, variant: str | None, vae: Path | None, cache: Path) -> Path:
    """Return a folder of links to the files that are read.

    Args:
        folder: The model's folder.
        variant: The variant of the weights that are linked, where a part has it; None: the one that is preferred.
        vae: The folder of another VAE; None: the model's own.
        cache: Where such folders lie.

    Raises:
        ConfigError: No part has the variant.
        ArtifactFormatError: A list of shards is damaged.
    """
    parts = {name: folder / name for name in model_parts(folder)}
    if vae is not None:
        parts[VAE] = vae
    files = {name: part_files(part, variant) for name, part in parts.items()}
    if variant is not None:
        _require_variant(folder, variant, files)
    links = {f"{name}/{path.name}": path for name, part in files.items() for path in part.read}
    links |= {path.name: path for path in folder.glob("*.md") if path.is_file()}
    return _linked({INDEX_FILE: folder / INDEX_FILE, **links}, cache)


def _require_variant(folder: Path, variant: str, files: Mapping[str, PartFiles]) -> None:
    if any(part.variant == variant for part in files.values()):
        return
    parts = {path.parent for part in files.values() for path in part.weights}
    names = (SINGLE.fullmatch(path.name) or SHARDED.fullmatch(path.name) for part in parts for path in part.iterdir())
    found = sorted({match["variant"] for match in names if match and match["variant"]})
    raise ConfigError(
        f"{folder} has no weights of the variant {variant!r}",
        field="model.variant",
        fix=f"use one of: {', '.join(found)}; or none" if found else "leave it out: the weights have no variants",
    )


def _linked(links: Mapping[str, Path], cache: Path) -> Path:
    """Return a folder of links by their names in it, made as a whole: another process may make the same."""
    targets = {name: path.absolute() for name, path in sorted(links.items())}
    digest = hashlib.sha256("\n".join(f"{name}\x1f{path}" for name, path in targets.items()).encode()).hexdigest()
    found = cache / digest[:32]
    if found.is_dir():
        return found
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    for name, path in targets.items():
        link = fresh / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(path)
    try:
        fresh.rename(found)
    except OSError:
        if not found.is_dir():
            raise
        shutil.rmtree(fresh)
    return found
