"""The moments of a dataset's prompts as an artifact: the first worker that needs them publishes them for all."""

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

    def dataset_folder(self) -> Path:
        """Return a local, verified copy of the dataset."""
        return fetch_artifact(self.store, self.work, self.dataset)

    def prompts(self) -> GatePrompts:
        """Return the prompts; raise EmptyDatasetError when a category has none for training."""
        return gate_prompts(read_prompt_file(self.dataset_folder() / PROMPTS_FILE), self.categories)

    def read(self, model: ModelFamily) -> PromptMoments:
        """Return the moments, gathered and published when they are not in the store yet."""
        if self.store.manifest(self.ref.kind, self.ref.id) is None:
            self._publish(gather_prompt_moments(model, self.prompts()))
        return load_prompt_moments(fetch_artifact(self.store, self.work, self.ref) / FILE)

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
                # Another worker, whose processor rounds differently, was first: all use the published moments.
                return


def gate_moments_task(context: StageContext, dataset: ArtifactRef, categories: tuple[str, ...]) -> GateMomentsTask:
    """Return the task of a run's prompt moments; call ``finished`` on its ref first, which discards a corrupt artifact."""
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
