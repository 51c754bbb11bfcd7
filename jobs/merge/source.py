"""The artifacts that a run merges, and what is calibrated and scored on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.store.artifacts import ArtifactStore
from jobs.merge.config import MergeConfig
from jobs.run.artifacts import ArtifactRef, StageContext, fetch_artifact
from safety.dataset.latents import load_preferences, training_files
from safety.errors import ArtifactFormatError, ConfigError
from safety.lora.files import LORA_FILE, load_lora
from safety.lora.weights import LoraWeights
from safety.merge.probes import Probes, gather_probes
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

    @property
    def probe_source(self) -> ProbeSource:
        """Return the pairs that merges are calibrated and scored on."""
        return ProbeSource(self.context.store, self.context.work.resolve(), self.dataset, tuple(self.experts))

    def weights(self) -> dict[str, LoraWeights]:
        """Load the experts' adapters; raise ArtifactFormatError when two were trained on different base models."""
        self._require_one_base()
        return {name: load_lora(self.context.folder(ref, LORA_FILE)) for name, ref in self.experts.items()}

    def _require_one_base(self) -> None:
        """Compare the base models that the experts' own manifests name: shapes alone do not tell two models of a kind apart."""
        bases: dict[str, Any] = {}
        for name, ref in self.experts.items():
            manifest = self.context.store.manifest(ref.kind, ref.id)
            if manifest is not None:
                bases[name] = manifest.config.get("model")
        for name, base in bases.items():
            first = next(iter(bases))
            if base != bases[first]:
                raise ArtifactFormatError(
                    f"{first!r} and {name!r} were trained on different base models ({bases[first]} and {base})",
                    field=f"experts.{name}",
                    fix="train all experts on the same base model",
                )


@dataclass(frozen=True)
class ProbeSource:
    """The pairs of the experts' categories, of which a worker gathers probes: their latents never go through the driver."""

    store: ArtifactStore
    work: Path
    """The folder of a node's copies of artifacts."""
    dataset: ArtifactRef
    categories: tuple[str, ...]

    def gather(self, split: str, pairs: int, benign: int) -> Probes:
        """Return the probes of one split; raises as ``gather_probes`` does."""
        folder = fetch_artifact(self.store, self.work, self.dataset, training_files(self.categories))
        sets = {name: load_preferences(folder, name) for name in self.categories}
        return gather_probes(sets, split, pairs, benign)


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
