"""What a family's diffusers folders hold: the classes of their pipelines and parts, held against a folder before it is loaded.

A folder of another class often loads as well, and fails at the first image, or draws noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safety.errors import ConfigError
from safety.families.weight_files import (
    INDEX_FILE,
    LEFT_OUT,
    PartFiles,
    broken,
    parse_json,
    part_files,
    read_index,
    read_json,
    require_downloaded,
    require_weights,
)

CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
"""Files of which a tokenizer needs one set."""


class Layout(NamedTuple):
    """The parts of a family's folders."""

    family: str
    """Its name in the registry."""
    takes: str
    """The models that it takes, for messages: "Stable Diffusion 1.x and 2.x: text to image, one CLIP text encoder"."""
    pipeline_class: str
    """The diffusers class that its folders are loaded by."""
    classes: tuple[str, ...]
    """Pipelines whose folders hold the same parts; the one that folders are loaded by is the first."""
    denoiser: str
    """The network that experts adapt: "unet" or "transformer"."""
    networks: Mapping[str, str]
    """The class of each network, by the name of its part."""
    tokenizers: Mapping[str, tuple[str, ...]]
    """The classes of each tokenizer."""
    optional: tuple[str, ...] = ()
    """Networks and tokenizers that a folder may leave out."""
    left_out: tuple[str, ...] = LEFT_OUT
    """Parts of the pipeline's class that are never loaded."""
    settings: Mapping[str, Any] = {}
    """Further arguments of the pipeline's class."""

    def encoders(self) -> tuple[str, ...]:
        """Return the networks that read prompts."""
        return tuple(name for name in self.networks if name not in (self.denoiser, "vae"))

    def check(self, folder: Path) -> dict[str, PartFiles]:
        """Return the files of each part that the folder has and the family loads.

        Raises:
            ConfigError: The folder holds no model, or one of another family.
            ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
        """
        present = self._present(folder, read_index(folder))
        found = {name: require_weights(folder / name) for name in self.networks if name in present}
        found |= {name: part_files(folder / name) for name in (*self.tokenizers, "scheduler") if name in present}
        for part in found.values():
            for path in part.settings:
                if path.suffix == ".json":
                    parse_json(path)
        for name in self.tokenizers:
            if name in present:
                _require_vocabulary(folder / name)
        for name, config in self.configs(folder, found).items():
            # transformers names no class, and older diffusers folders may not.
            kind = config.get("_class_name", self.networks[name])
            if kind != self.networks[name]:
                raise self.misfit(f"{folder / name} is a {kind}, and the family takes {self.networks[name]}")
        return found

    def configs(self, folder: Path, found: Mapping[str, PartFiles]) -> dict[str, dict[str, Any]]:
        """Return the settings of each network that the folder has."""
        return {name: read_json(folder / name / "config.json") for name in self.networks if name in found}

    def misfit(self, what: str, fix: str = "") -> ConfigError:
        """Return the error about a model that the family does not take."""
        return ConfigError(
            f"{what}; the family {self.family!r} takes {self.takes}",
            field="model.path",
            fix=fix or f"name a folder of a {self.classes[0]}, or the family that this model is of (model.family)",
        )

    def _present(self, folder: Path, index: Mapping[str, Any]) -> set[str]:
        """Return the parts that a folder has; refuse one whose pipeline, or one of whose parts, is another than the family's."""
        pipeline = index.get("_class_name")
        if pipeline not in self.classes:
            raise self.misfit(f"{folder} holds {'no named pipeline' if pipeline is None else f'a {pipeline}'}")
        known = {**{name: (kind,) for name, kind in self.networks.items()}, **self.tokenizers, "scheduler": None}
        present = set()
        for name, value in index.items():
            if name.startswith("_") or name in LEFT_OUT or not isinstance(value, list):
                continue
            if len(value) != 2:
                raise broken(folder / INDEX_FILE, f"{name} is {value!r}, and not a library and a class")
            if value[1] is None:
                continue
            if name not in known:
                raise self.misfit(f"{folder} has a part {name} ({value[1]})")
            kinds = known[name]
            if kinds is not None and value[1] not in kinds:
                raise self.misfit(f"{folder}: its {name} is a {value[1]}, and the family takes {' or '.join(kinds)}")
            present.add(name)
        lost = [name for name in known if name not in present and name not in self.optional]
        if lost:
            raise broken(folder / INDEX_FILE, f"it names no {', '.join(lost)}")
        return present


def _require_vocabulary(tokenizer: Path) -> None:
    """Refuse a tokenizer without its words: transformers would make an empty one."""
    complete = next((names for names in VOCABULARIES if all((tokenizer / name).is_file() for name in names)), None)
    if complete is None:
        raise broken(tokenizer, f"it holds neither {' nor '.join(' and '.join(names) for names in VOCABULARIES)}")
    for name in complete:
        require_downloaded(tokenizer / name)
