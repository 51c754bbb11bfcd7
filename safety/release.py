"""The released form of an aligned model: a folder with an adapter, and ``release.json`` about it and its base."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import Field, ValidationError

from safety.base import Config
from safety.errors import ArtifactFormatError
from safety.families import ModelFamily
from safety.families.model_index import model_parts
from safety.families.weight_files import INDEX_FILE, LEFT_OUT, part_files
from safety.judges.judge import JudgeIdentity
from safety.lora.files import LORA_FILE, check_fits, load_lora
from safety.lora.weights import LoraWeights

RELEASE_FILE = "release.json"


class BaseModelIdentity(Config):
    """The base model that a release is for."""

    id: str = Field(description="the model's name or folder in the run's config")
    family: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="hash of the model's files, by ``model_hash``")


class ReleaseInfo(Config):
    """``release.json``: the machine-readable description of a release."""

    format: int = 1
    name: str
    base: BaseModelIdentity
    adapter_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    judge: JudgeIdentity | None = Field(description="None when the release was not measured")
    provenance: dict[str, str] = Field(description="ids of the run and of the artifacts the release was made from")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_hash(folder: Path) -> str:
    """Return the SHA-256 of a diffusers folder: of the names and contents of the files that are loaded from it.

    Others (cards, judges, the safety checker, pickles, other variants of the weights) do not count: they do not change
    the model's images.

    Raises:
        ConfigError: The folder holds no diffusers-format model.
        ArtifactFormatError: One of its files is damaged, or names a file outside the folder.
    """
    read = {path for part in model_parts(folder) if part not in LEFT_OUT for path in part_files(folder / part).read}
    files = sorted(path.relative_to(folder).as_posix() for path in read)
    digest = hashlib.sha256()
    for name in [INDEX_FILE, *files]:
        digest.update(f"{name}\x1f{file_hash(folder / name)}\n".encode())
    return digest.hexdigest()


def read_release(folder: Path) -> ReleaseInfo:
    """Read ``release.json``; raise ArtifactFormatError when it is missing or not of this format."""
    path = folder / RELEASE_FILE
    fix = "serve a release that jobs.release has published"
    try:
        return ReleaseInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ArtifactFormatError(f"no {RELEASE_FILE} in {folder}", field="release", fix=fix) from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ArtifactFormatError(f"{RELEASE_FILE}: {where}: {problem['msg']}", field="release", fix=fix) from None


def load_release(folder: Path, model: ModelFamily, base_folder: Path) -> tuple[ReleaseInfo, LoraWeights]:
    """Read a release and its adapter, and check both against the loaded base model.

    Raises:
        ArtifactFormatError: A file is missing, changed or of the wrong form, or the release is for another base.
    """
    info = read_release(folder)
    if (found := model_hash(base_folder)) != info.base.sha256:
        raise ArtifactFormatError(
            f"the release {info.name!r} is for the base {info.base.id!r} ({info.base.sha256[:12]}), not {found[:12]}",
            field="model.path",
            fix="name the base model that the release was made from",
        )
    adapter = folder / LORA_FILE
    if not adapter.is_file() or file_hash(adapter) != info.adapter_sha256:
        raise ArtifactFormatError(
            f"{LORA_FILE} is not the one that {RELEASE_FILE} names", field="release", fix="publish the release again"
        )
    weights = load_lora(adapter)
    check_fits(weights, model)
    return info, weights
