"""The artifacts that a run merges, and what is calibrated and scored on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.merge.config import MergeConfig
from jobs.run.artifacts import ArtifactRef, StageContext
from safety.dataset.layout import latents_file
from safety.dataset.preferences import PreferenceSet, load_preferences
from safety.errors import ConfigError
from safety.lora.files import load_lora
from safety.lora.weights import LoraWeights
from safety.taxonomy import Taxonomy


@dataclass(frozen=True)
class MergeSource:
    """The experts of a run's categories, and the dataset on which their merge is calibrated and scored."""

    context: StageContext
    taxonomy: Taxonomy
    dataset: ArtifactRef
    experts: dict[str, ArtifactRef]
    """By category, in the taxonomy's order."""

    @property
    def config(self) -> MergeConfig:
        """Return the run's settings of the merge."""
        return self.context.run.merge

    @property
    def parents(self) -> list[ArtifactRef]:
        """Return the artifacts that every merge depends on."""
        return [self.dataset, *self.experts.values()]

    def weights(self) -> dict[str, LoraWeights]:
        """Load the experts' adapters."""
        return {name: load_lora(self.context.folder(ref)) for name, ref in self.experts.items()}

    def sets(self) -> dict[str, PreferenceSet]:
        """Load the preference pairs of the experts' categories."""
        folder = self.context.folder(self.dataset)
        return {name: load_preferences(folder / latents_file(name)) for name in self.experts}


def merge_source(context: StageContext, dataset: ArtifactRef, experts: Mapping[str, ArtifactRef]) -> MergeSource:
    """Return the source of a run's merges; raise ConfigError when there is no expert of any category."""
    taxonomy = context.run.load_taxonomy()
    chosen = {name: experts[name] for name in taxonomy.categories if name in experts}
    if not chosen:
        raise ConfigError(
            f"there is no expert of any category among: {', '.join(experts) or 'none'}",
            field="train",
            fix="train at least one category's expert first",
        )
    return MergeSource(context, taxonomy, dataset, chosen)
