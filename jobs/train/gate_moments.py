"""The moments of a dataset's prompts as an artifact, gathered by one task that loads the text encoder alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from cluster.errors import AlreadyPublished
from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, fetch_artifact, finished, put_artifact
from jobs.run.placement import Place, placed
from safety.families import ModelConfig, ModelFamily, load_model
from safety.gates import GatePrompts, PromptMoments, gate_prompts, gather_prompt_moments, load_prompt_moments
from safety.prompts.files import PROMPTS_FILE, read_prompt_file

KIND, FILE = "prompt-moments", "prompt_moments.safetensors"


@dataclass(frozen=True)
class GateMomentsTask:
    """The gathering of prompt moments for the gates of experts that will be added up; travels to workers."""

    categories: tuple[str, ...]
    ref: ArtifactRef
    dataset: ArtifactRef
    settings: dict[str, Any]
    seed: int
    store: ArtifactStore
    work: Path
    """The folder of a node's copies of artifacts."""

    def dataset_folder(self, *files: str) -> Path:
        """Return a local folder with the dataset's files of some patterns, verified."""
        return fetch_artifact(self.store, self.work, self.dataset, files)

    def prompts(self) -> GatePrompts:
        """Return the prompts; raise EmptyDatasetError when a category has none for training."""
        return gate_prompts(read_prompt_file(self.dataset_folder(PROMPTS_FILE) / PROMPTS_FILE), self.categories)

    def read(self) -> PromptMoments:
        """Return the published moments; see ``gather_missing``."""
        return load_prompt_moments(fetch_artifact(self.store, self.work, self.ref) / FILE)

    def gather(self, model: ModelFamily) -> None:
        """Gather and publish the moments unless they are in the store."""
        if self.store.manifest(self.ref.kind, self.ref.id) is None:
            self._publish(gather_prompt_moments(model, self.prompts()))

    def _publish(self, found: PromptMoments) -> None:
        with TemporaryDirectory(prefix="safetydpo-prompt-moments-") as scratch:
            found.save(Path(scratch) / FILE)
            try:
                put_artifact(
                    self.store,
                    self.ref,
                    Path(scratch),
                    config=self.settings,
                    seed=self.seed,
                    parents=[self.dataset],
                )
            except AlreadyPublished:
                # Another run, whose processor rounds differently, was first: all use the published moments.
                return


def gate_moments_task(context: StageContext, dataset: ArtifactRef, categories: tuple[str, ...]) -> GateMomentsTask:
    """Return the task of a run's prompt moments."""
    settings = {"model": context.model.model_dump(mode="json"), "categories": list(categories)}
    ref = artifact_ref(context, KIND, settings, [dataset])
    return GateMomentsTask(
        categories=categories,
        ref=ref,
        dataset=dataset,
        settings=settings,
        seed=context.run.run.seed,
        store=context.store,
        work=context.work.resolve(),
    )


def gather_missing(context: StageContext, moments: GateMomentsTask, place: Place, threads: int) -> None:
    """Have the moments gathered at a place unless they are published; a corrupt artifact is discarded first."""
    if not finished(context, moments.ref):
        placed(place, _gather, moments, context.run.model, threads)


def _gather(moments: GateMomentsTask, model: ModelConfig, threads: int) -> None:
    """Load the text encoder and gather, in a worker."""
    torch.set_num_threads(threads)
    moments.gather(load_model(model, "text"))
