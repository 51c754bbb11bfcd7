"""The moments of a dataset's prompts as an artifact: whoever needs them first makes them, and all others read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.errors import AlreadyPublished
from cluster.store.artifacts import ArtifactStore
from jobs.run.artifacts import ArtifactRef, StageContext, artifact_ref, fetch_artifact, put_artifact
from safety.families import ModelFamily
from safety.gates import GatePrompts, PromptMoments, gate_prompts, gather_prompt_moments, load_prompt_moments
from safety.prompts.files import PROMPTS_FILE, read_prompt_file

KIND, FILE = "text-inputs", "text_inputs.safetensors"


@dataclass(frozen=True)
class GateMomentsTask:
    """What the layers that read the prompt see, of all experts that will be added up; travels to workers."""

    categories: tuple[str, ...]
    ref: ArtifactRef
    dataset: ArtifactRef
    settings: dict[str, Any]
    seed: int
    store: ArtifactStore
    work: Path
    """Where a node keeps its copies of artifacts."""

    def dataset_folder(self) -> Path:
        """Return a local, verified copy of the dataset."""
        return fetch_artifact(self.store, self.work, self.dataset)

    def texts(self) -> GatePrompts:
        """Return the prompts; raise EmptyDatasetError when a category has none for training."""
        return gate_prompts(read_prompt_file(self.dataset_folder() / PROMPTS_FILE), self.categories)

    def read(self, model: ModelFamily) -> PromptMoments:
        """Return the moments; they are gathered and published when nobody did so before."""
        if self.store.manifest(self.ref.kind, self.ref.id) is None:
            self._publish(gather_prompt_moments(model, self.texts()))
        return load_prompt_moments(fetch_artifact(self.store, self.work, self.ref) / FILE)

    def _publish(self, found: PromptMoments) -> None:
        with TemporaryDirectory(prefix="safetydpo-text-inputs-") as scratch:
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
                # Another kind of processor rounds otherwise and was first: all go by what is published.
                return


def gate_moments_task(context: StageContext, dataset: ArtifactRef, categories: tuple[str, ...]) -> GateMomentsTask:
    """Name the moments of a run's prompts; ``finished`` on the name discards a damaged artifact before workers read."""
    settings = {"model": context.run.model.model_dump(mode="json"), "categories": list(categories)}
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
