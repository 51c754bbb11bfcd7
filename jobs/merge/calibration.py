"""The calibration of a merge: gathered by a Ray task, published, and read back."""

from __future__ import annotations

import time

import torch

from jobs.merge.source import MergeSource
from jobs.run.artifacts import ArtifactRef, artifact_ref, finished, publish
from jobs.run.placement import placed
from jobs.run.places import merge_place
from jobs.train.gate_moments import GateMomentsTask, gate_moments_task
from safety.families import ModelConfig, load_model
from safety.lora.files import check_fits
from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration, CalibrationConfig, calibrate, load_calibration
from safety.merge.probes import Probes, gather_probes

KIND = "calibration"
CALIBRATION_FILE = "calibration.safetensors"


def calibrated(source: MergeSource, weights: dict[str, LoraWeights]) -> tuple[ArtifactRef, Calibration]:
    """Return the published calibration of a run's experts, and its statistics; a worker gathers it when it is not published yet.

    Raises:
        ArtifactFormatError: The experts do not fit each other or the base model.
        ClusterError: It was not gathered in time.
    """
    context, config = source.context, source.config
    settings = {
        "model": context.run.model.model_dump(mode="json"),
        "calibration": config.calibration.model_dump(mode="json"),
    }
    ref = artifact_ref(context, KIND, settings, source.parents)
    if not finished(context, ref):
        started = time.monotonic()
        probes = gather_probes(source.sets(), "train", config.calibration.pairs_per_category, 0)
        moments = gate_moments_task(context, source.dataset, tuple(source.experts))
        # A corrupt copy is discarded before the worker reads it.
        finished(context, moments.ref)
        place = merge_place(context.run, "the calibration")
        statistics = placed(
            place,
            calibrate_task,
            context.run.model,
            weights,
            probes,
            moments,
            config.calibration,
            context.run.run.seed,
            config.threads,
        )
        publish(context, ref, settings, source.parents, lambda folder: statistics.save(folder / CALIBRATION_FILE))
        context.console.print(f"calibration {ref.id}: {time.monotonic() - started:.0f} s")
    return ref, load_calibration(context.folder(ref) / CALIBRATION_FILE)


def calibrate_task(
    model: ModelConfig,
    experts: dict[str, LoraWeights],
    probes: Probes,
    moments: GateMomentsTask,
    config: CalibrationConfig,
    seed: int,
    threads: int,
) -> Calibration:
    """Gather the calibration's statistics in a worker; raise ArtifactFormatError when an expert is for another base."""
    torch.set_num_threads(threads)
    loaded = load_model(model)
    for expert in experts.values():
        check_fits(expert, loaded)
    return calibrate(loaded, experts, probes, moments.read(loaded), config, seed)
