"""The released form of an aligned model: a folder with an adapter, and ``release.json`` about it and its base."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from safety.base import Config
from safety.errors import ArtifactFormatError
from safety.families import ModelFamily
from safety.families.identity import file_hash, model_hash
from safety.judges.judge import JudgeIdentity
from safety.lora.files import LORA_FILE, check_fits, load_lora
from safety.lora.weights import LoraWeights

__all__ = [
    "RELEASE_FILE",
    "BaseModelIdentity",
    "ReleaseInfo",
    "file_hash",
    "load_release",
    "model_hash",
    "read_release",
]

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
    info, weights = read_verified(folder, base_folder)
    check_fits(weights, model)
    return info, weights


def read_verified(folder: Path, base_folder: Path) -> tuple[ReleaseInfo, LoraWeights]:
    """Read a release and its adapter, and check by their hashes that it is whole and for the base model in a folder.

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
    return info, load_lora(adapter)
