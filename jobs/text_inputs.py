"""The moments of a dataset's prompts as an artifact: whoever needs them first makes them, and all others read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.errors import AlreadyPublished
from cluster.store.artifacts import ArtifactStore
from jobs.stage import ArtifactRef, StageContext, artifact_ref, finished
from safety.families import ModelFamily
from safety.prompts.files import PROMPTS_FILE, read_prompt_file
from safety.text_inputs import PromptTexts, TextInputs, gather_text_inputs, load_text_inputs, training_texts

KIND, FILE = "text-inputs", "text_inputs.safetensors"


@dataclass(frozen=True)
class TextInputsTask:
    """What the layers that read the prompt see, of all experts that will be added up; travels to workers."""

    categories: tuple[str, ...]
    ref: ArtifactRef
    dataset: ArtifactRef
    settings: dict[str, Any]
    seed: int
    store: ArtifactStore
    work: Path
    """Where a node keeps its copies of artifacts."""

    def texts(self) -> PromptTexts:
        """Return the prompts; raise EmptyDatasetError when a category has none for training."""
        folder = self.store.fetch(self.dataset.kind, self.dataset.id, self.work / self.dataset.kind / self.dataset.id)
        return training_texts(read_prompt_file(folder / PROMPTS_FILE), self.categories)

    def read(self, model: ModelFamily) -> TextInputs:
        """Return the moments; they are gathered and published when nobody did so before."""
        if self.store.manifest(self.ref.kind, self.ref.id) is None:
            self._publish(gather_text_inputs(model, self.texts()))
        folder = self.store.fetch(self.ref.kind, self.ref.id, self.work / self.ref.kind / self.ref.id)
        return load_text_inputs(folder / FILE)

    def _publish(self, found: TextInputs) -> None:
        with TemporaryDirectory(prefix="safetydpo-text-inputs-") as scratch:
            found.save(Path(scratch) / FILE)
            parents = [f"{self.dataset.kind}/{self.dataset.id}"]
            try:
                self.store.put(
                    self.ref.kind, self.ref.id, Path(scratch), config=self.settings, seed=self.seed, parents=parents
                )
            except AlreadyPublished:
                # Another kind of processor rounds otherwise and was first: all go by what is published.
                return


def text_inputs_task(context: StageContext, dataset: ArtifactRef, categories: tuple[str, ...]) -> TextInputsTask:
    """Name the moments of a run's prompts; a damaged artifact of that name is discarded."""
    settings = {"model": context.run.model.model_dump(mode="json"), "categories": list(categories)}
    ref = artifact_ref(context, KIND, settings, [dataset])
    finished(context, ref)
    return TextInputsTask(
        categories=categories,
        ref=ref,
        dataset=dataset,
        settings=settings,
        seed=context.run.run.seed,
        store=context.store,
        work=context.work.resolve(),
    )
