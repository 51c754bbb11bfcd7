"""FID's reference from a folder of pictures: its moments, measured once per folder and features and kept in the store."""

from __future__ import annotations

from pathlib import Path

from cluster.hashing import config_hash
from jobs.run.artifacts import ArtifactRef, StageContext
from jobs.run.placement import placed, placed_unless_cheap
from jobs.run.places import evaluate_place
from jobs.run.work_area import WorkArea
from safety.errors import ConfigError
from safety.evaluation.moments import Moments, dump_moments, parse_moments
from safety.evaluation.picture_folder import FIELD, PictureFolder, folder_moments, identify_folder
from safety.features.extractor import load_features

KIND, PIECE = "moments", "moments.safetensors"
DIGITS = 24


def reference_folder(context: StageContext) -> PictureFolder | None:
    """Return the identity of the folder that the run names, looked at where evaluation runs; None without one."""
    folder = context.run.evaluate.fid_reference
    return None if folder is None else placed_unless_cheap(evaluate_place(context.run), identify_folder, folder)


def reference_moments(context: StageContext, folder: PictureFolder | None, features: str | None) -> Moments | None:
    """Return the moments of the run's reference by FID's features; None without either.

    Args:
        context: The run.
        folder: The identity of its folder.
        features: The name of FID's features, with their weights' hash.

    Raises:
        ConfigError: A picture cannot be read, or the folder has changed since it was identified.
        ClusterError: It takes longer than ``evaluate.timeout_s``.
    """
    config = context.run.evaluate
    named = config.fid_features or config.features
    if folder is None or features is None or named is None or config.fid_reference is None:
        return None
    key = config_hash({"folder": folder.sha256, "features": features})[:DIGITS]
    area = WorkArea(context.store, ArtifactRef(KIND, key))
    found = area.load(PIECE, parse_moments)
    if found is not None:
        return found
    context.console.print(f"FID's reference: {folder.title}")
    place = evaluate_place(context.run)
    moments = placed(place, measure_folder, config.fid_reference, named, context.run.model.device)
    if moments.images != folder.title:
        raise ConfigError(
            f"the folder {config.fid_reference} has changed while it was read", field=FIELD, fix="run again"
        )
    area.write_once(PIECE, dump_moments(moments), parse_moments)
    return moments


def measure_folder(folder: Path, features: str, device: str) -> Moments:
    """Return the moments of a folder's pictures, in this process."""
    return folder_moments(folder, load_features(features, device))
