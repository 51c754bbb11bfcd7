"""Exports a release: checks it against its base model and writes the chosen form. It needs no Ray."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.store.artifacts import NAME, ArtifactStore
from cluster.store.pointer import read_pointer
from cluster.store.signatures import TrustedKeys
from jobs.export.card import fused_card
from jobs.export.form import Form
from jobs.release.stage import KIND
from jobs.run.base_model import ATTRIBUTION_FILE
from jobs.run.config import RunConfig
from safety.errors import ConfigError
from safety.exports.fused_file import write_fused_file
from safety.exports.fused_folder import write_fused_folder
from safety.exports.fused_weights import Rounding
from safety.families.family import configured_family, model_folder
from safety.families.model_index import absent_parts
from safety.families.source import hub_id
from safety.lora.files import LORA_FILE
from safety.lora.kohya import KOHYA_FILE, write_kohya
from safety.lora.weights import LoraWeights
from safety.release import RELEASE_FILE, ReleaseInfo, read_verified

CARD_FILE = "README.md"
RELEASED = (LORA_FILE, KOHYA_FILE, RELEASE_FILE, CARD_FILE, ATTRIBUTION_FILE)
"""The files of a release: all that its card speaks of."""
FILE_ENDING = ".safetensors"


def run(config: RunConfig, form: Form, output: Path, release: str | None = None) -> list[str]:
    """Write a release in a form; return lines that say what was written.

    Args:
        config: Names the base model, the store and the pointer.
        form: The form.
        output: A file that is not there yet, or a folder that is empty or not there.
        release: A release's id or its folder; None: what the run's pointer names.

    Raises:
        ConfigError: The output is in the way, there is no such release, or no such form of this model.
        ArtifactFormatError: The release or the base model is damaged, or the release is for another base.
        CorruptArtifact: The store's copy does not match its manifest.
        UntrustedArtifact: Trusted keys are configured, and none has signed the store's copy. A folder has no signature.
    """
    _require_free(form, output)
    base = model_folder(config.model)
    with _opened(config, release) as folder, _cleared_on_failure(output):
        info, weights = read_verified(folder, base)
        lines = [f"release {info.name!r} ({info.adapter_sha256[:12]}): {form} -> {output}"]
        if form is Form.DIFFUSERS:
            _copy(folder, output, RELEASED)
        elif form is Form.KOHYA:
            write_kohya(folder / LORA_FILE, output, {"release": info.name})
        elif form is Form.FUSED_FILE:
            title = {"modelspec.title": info.name, "safetydpo.adapter_sha256": info.adapter_sha256}
            lines.append(_rounded(write_fused_file(base, weights, output, title)))
        else:
            lines.append(_rounded(_write_fused_model(config, base, info, weights, folder, output)))
    return lines


def _write_fused_model(
    config: RunConfig, base: Path, info: ReleaseInfo, weights: LoraWeights, release: Path, output: Path
) -> Rounding:
    """Write a fused folder with its card, and the notice that the base's licence asks for."""
    rounding = write_fused_folder(base, weights, output)
    _copy(release, output, (ATTRIBUTION_FILE,))
    card = fused_card(
        info,
        configured_family(config.model).pipeline_class,
        config.release.licence,
        rounding,
        config.release.base_model or hub_id(config.model),
        absent_parts(base),
        attributed=(output / ATTRIBUTION_FILE).is_file(),
    )
    (output / CARD_FILE).write_text(card, encoding="utf-8")
    return rounding


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the named files that there are."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextmanager
def _cleared_on_failure(output: Path) -> Iterator[None]:
    """Take away what the block has written of a folder when it fails: no half of a model is left, nor in the next one's way."""
    made = not output.exists()
    try:
        yield
    except BaseException:
        if output.is_dir():
            for path in output.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if made:
                output.rmdir()
        raise


def _rounded(rounding: Rounding) -> str:
    return f"stored as {', '.join(sorted(rounding.dtypes))}; rounding lost {100 * rounding.error:.3g}% of the adapter"


def _require_free(form: Form, output: Path) -> None:
    """Raise ConfigError when writing would overwrite something, or a file has another ending."""
    if form.is_file and output.suffix != FILE_ENDING:
        raise ConfigError(
            f"{output} is no name of a safetensors file", field="--output", fix=f"end it with {FILE_ENDING}"
        )
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"{above} is a file, and no folder", field="--output", fix="name a path in a folder")
    taken = output.exists() if form.is_file else output.is_file() or (output.is_dir() and any(output.iterdir()))
    if taken:
        raise ConfigError(f"{output} is there already", field="--output", fix="name another one, or remove it")


@contextmanager
def _opened(config: RunConfig, release: str | None) -> Iterator[Path]:
    """Open a release's folder: a local one, or one that is fetched from the store and deleted afterwards."""
    if release is not None and (Path(release) / RELEASE_FILE).is_file():
        yield Path(release)
        return
    if release is not None and not NAME.fullmatch(release):
        raise ConfigError(
            f"there is no {RELEASE_FILE} in {release}",
            field="--release",
            fix="name the folder of a release, such as out/demo/release, or its id in the store",
        )
    store = ArtifactStore(config.store)
    found = release or read_pointer(store, config.release.pointer)
    if found is None or store.manifest(KIND, found) is None:
        named = f"no release {release!r}" if release else f"nothing behind the pointer {config.release.pointer!r}"
        raise ConfigError(
            f"the store has {named}",
            field="--release",
            fix="name the folder or the id of a release that jobs.release has published",
        )
    keys = config.serve.trusted_keys
    trusted = TrustedKeys.read(keys, "serve.trusted_keys") if keys else None
    with TemporaryDirectory(prefix="safetydpo-export-") as scratch:
        yield store.fetch(KIND, found, Path(scratch), trusted)
