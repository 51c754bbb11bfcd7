"""The calibration of a merge: gathered by a Ray task, published, and read back."""

from __future__ import annotations

import time

import torch

from jobs.merge.source import MergeSource, ProbeSource
from jobs.run.artifacts import ArtifactRef, artifact_ref, finished, publish
from jobs.run.placement import placed
from jobs.run.places import merge_place
from jobs.train.gate_moments import GateMomentsTask, gate_moments_task, gather_missing
from safety.families import ModelConfig, load_model
from safety.gates import no_moments
from safety.lora.files import check_fits
from safety.lora.weights import LoraWeights
from safety.merge.calibration import Calibration, CalibrationConfig, calibrate, load_calibration

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
        "model": context.model.model_dump(mode="json"),
        "calibration": config.calibration.model_dump(mode="json"),
    }
    ref = artifact_ref(context, KIND, settings, source.parents)
    if not finished(context, ref):
        started = time.monotonic()
        moments = gate_moments_task(context, source.dataset, tuple(source.experts))
        place = merge_place(context.run, "the calibration")
        gather_missing(context, moments, place, config.threads)
        statistics = placed(
            place,
            calibrate_task,
            context.run.model,
            weights,
            source.probe_source,
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
    source: ProbeSource,
    moments: GateMomentsTask,
    config: CalibrationConfig,
    seed: int,
    threads: int,
) -> Calibration:
    """Gather the calibration's statistics in a worker; raise ArtifactFormatError when an expert is for another base."""
    torch.set_num_threads(threads)
    probes = source.gather("train", config.pairs_per_category, 0)
    loaded = load_model(model, "denoiser")
    for expert in experts.values():
        check_fits(expert, loaded)
    gated = any(name.endswith(loaded.text_targets) for expert in experts.values() for name in expert)
    found = moments.read() if gated else no_moments(len(experts))
    return calibrate(loaded, experts, probes, found, config, seed)
