"""What a diffusers folder must be for a flow-matching family, and how its pipeline is loaded.

It is read before anything is loaded: a folder of another class often loads as well, and fails at the first image, or
draws noise. What the sizes must be to each other is a family's own (``sd3_folder``, ``flux_folder``).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from safety.errors import ConfigError
from safety.families.network import load_part, loaded
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
    unread_weights,
)
from safety.quiet import no_progress_bars

logger = logging.getLogger(__name__)

CLIP_TOKENIZERS, T5_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast"), ("T5Tokenizer", "T5TokenizerFast")
VOCABULARIES = {
    CLIP_TOKENIZERS: (("tokenizer.json",), ("vocab.json", "merges.txt")),
    T5_TOKENIZERS: (("tokenizer.json",), ("spiece.model",)),
}
"""Files of which a tokenizer needs one set."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
OTHER_SCHEDULES = ("stochastic_sampling", "invert_sigmas")
"""Settings of the scheduler under which sampling is not deterministic, or noise levels run the other way."""
DENOISER, VAE = "transformer", "vae"


class FlowLayout(NamedTuple):
    """The parts of a family's folder."""

    family: str
    what: str
    """What the family takes, for messages."""
    pipelines: tuple[str, ...]
    """Pipelines whose folders hold the same parts; the first is the one that is loaded."""
    networks: Mapping[str, str]
    """The class of each network."""
    readers: Mapping[str, tuple[str, tuple[str, ...]]]
    """Each text encoder's tokenizer and the classes that it may have."""
    optional: tuple[str, ...] = ()
    """Text encoders that a folder may leave out, with their tokenizers."""

    def misfit(self, what: str) -> ConfigError:
        """Return the error about a folder that is not the family's."""
        return ConfigError(
            f"{what}; the family {self.family!r} takes {self.what}",
            field="model.path",
            fix=f"name a folder of a {self.pipelines[0]}, or the family that this model is of (model.family)",
        )


class FlowFolder(NamedTuple):
    """A folder that has been looked through."""

    files: dict[str, PartFiles]
    """The files of each part that is loaded."""
    configs: dict[str, dict[str, Any]]
    """The settings of each network."""


def check_layout(folder: Path, layout: FlowLayout) -> FlowFolder:
    """Return a folder's files and the settings of its networks.

    Raises:
        ConfigError: The folder holds no model, or one of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    index = read_index(folder)
    absent = {part for name in layout.optional if _is_absent(index, name) for part in (name, layout.readers[name][0])}
    _require_classes(folder, index, layout, absent)
    networks = [name for name in layout.networks if name not in absent]
    tokenizers = {part: kinds for part, kinds in layout.readers.values() if part not in absent}
    files = {name: require_weights(folder / name) for name in networks}
    files |= {name: part_files(folder / name) for name in (*tokenizers, "scheduler")}
    for part in files.values():
        for path in part.settings:
            if path.suffix == ".json":
                parse_json(path)
    for name, kinds in tokenizers.items():
        _require_vocabulary(folder / name, VOCABULARIES[kinds])
    configs = {name: read_json(folder / name / "config.json") for name in networks}
    for name in networks:
        # transformers names no class.
        found = configs[name].get("_class_name", layout.networks[name])
        if found != layout.networks[name]:
            raise layout.misfit(f"{folder / name} is a {found}, and the family takes {layout.networks[name]}")
    _require_schedule(read_json(folder / "scheduler" / "scheduler_config.json"), folder, layout)
    _require_latents(configs[VAE], folder)
    return FlowFolder(files, configs)


def require_equal(layout: FlowLayout, folder: Path, pairs: Sequence[tuple[str, Any, str, Any]]) -> None:
    """Raise ConfigError for the first pair of sizes that differ: (what one is, its value, what the other is, its value)."""
    for first, one, second, other in pairs:
        if one != other:
            raise layout.misfit(f"{folder}: {first} is {one}, and {second} is {other}")


def latent_factor(vae: Mapping[str, Any]) -> int:
    """Return the pixels of an image's side to one of its latents."""
    return int(2 ** (len(vae.get("block_out_channels", (0,))) - 1))


def load_flow_pipeline(kind: Any, path: Path, layout: FlowLayout, wanted: Sequence[str], dtype: torch.dtype) -> Any:
    """Return a folder's pipeline on the CPU, with None for the networks that are not wanted or not there.

    Raises:
        ConfigError: The folder holds a model of another family.
        ArtifactFormatError: A file is missing or damaged, or a part has no safetensors.
    """
    # Slow to import, and not for processes that load no model.
    import diffusers
    import transformers

    files = check_layout(path, layout).files
    unread = list(unread_weights(path, {file for part in files.values() for file in part.read}))
    if unread:
        logger.warning("%s: safetensors alone are read; ignored: %s", path, ", ".join(unread))
    taken = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = dict.fromkeys(name for name in (*layout.networks, *LEFT_OUT) if name in taken)
    with no_progress_bars():
        for name in files.keys() & set(wanted):
            network = layout.networks[name]
            library = diffusers if hasattr(diffusers, network) else transformers
            parts[name] = load_part(getattr(library, network), path / name, files[name].variant, dtype)
        for encoder, (tokenizer, _) in layout.readers.items():
            if parts[encoder] is None:
                parts[tokenizer] = None
        pipeline = loaded(lambda: kind.from_pretrained(path, **parts, local_files_only=True), path)
    for encoder, (tokenizer, _) in layout.readers.items():
        if parts[encoder] is not None:
            _require_words(getattr(pipeline, tokenizer), parts[encoder], path / tokenizer)
    return pipeline


def _is_absent(index: Mapping[str, Any], name: str) -> bool:
    """Return whether an index leaves a part out, by no entry or by one without a class."""
    value = index.get(name)
    return value is None or (isinstance(value, list) and value[-1:] == [None])


def _require_classes(folder: Path, index: Mapping[str, Any], layout: FlowLayout, absent: set[str]) -> None:
    """Refuse a folder whose pipeline, or one of whose parts, is another than the family's."""
    pipeline = index.get("_class_name")
    if pipeline not in layout.pipelines:
        raise layout.misfit(f"{folder} holds {'no named pipeline' if pipeline is None else f'a {pipeline}'}")
    known: dict[str, tuple[str, ...] | None] = {name: (kind,) for name, kind in layout.networks.items()}
    known |= {**dict(layout.readers.values()), "scheduler": None}
    for name, value in index.items():
        if name.startswith("_") or name in LEFT_OUT or name in absent or not isinstance(value, list):
            continue
        if len(value) != 2:
            raise broken(folder / INDEX_FILE, f"{name} is {value!r}, and not a library and a class")
        if name not in known and value[1] is not None:
            raise layout.misfit(f"{folder} has a part {name} ({value[1]})")
        kinds = known.get(name)
        if kinds is not None and value[1] not in kinds:
            raise layout.misfit(f"{folder}: its {name} is a {value[1]}, and the family takes {' or '.join(kinds)}")
    lost = [name for name in known if name not in absent and not isinstance(index.get(name), list)]
    if lost:
        raise broken(folder / INDEX_FILE, f"it names no {', '.join(lost)}")


def _require_vocabulary(tokenizer: Path, sets: Sequence[tuple[str, ...]]) -> None:
    """Refuse a tokenizer without its words: transformers would make an empty one."""
    complete = next((names for names in sets if all((tokenizer / name).is_file() for name in names)), None)
    if complete is None:
        raise broken(tokenizer, f"it holds neither {' nor '.join(' and '.join(names) for names in sets)}")
    for name in complete:
        require_downloaded(tokenizer / name)


def _require_schedule(scheduler: Mapping[str, Any], folder: Path, layout: FlowLayout) -> None:
    """Refuse a scheduler of another kind, and one that draws noise while it samples."""
    kind = scheduler.get("_class_name")
    odd = [name for name in OTHER_SCHEDULES if scheduler.get(name)]
    if kind != SCHEDULER or odd:
        found = f"a {kind}" if kind != SCHEDULER else f"one with {' and '.join(odd)}"
        raise layout.misfit(f"{folder / 'scheduler'} is {found}, and the family takes a plain {SCHEDULER}")


def _require_latents(vae: Mapping[str, Any], folder: Path) -> None:
    """Refuse a VAE that does not say how its latents are scaled and shifted: the stock pipeline needs both."""
    for name in ("scaling_factor", "shift_factor"):
        if vae.get(name) is None:
            raise broken(folder / VAE / "config.json", f"it states no {name}")


def _require_words(tokenizer: Any, encoder: Any, folder: Path) -> None:
    """Refuse a tokenizer with words that its text encoder does not know."""
    words, known = len(tokenizer), encoder.config.vocab_size
    if words > known:
        raise broken(folder, f"it has {words} words, and the text encoder knows {known}")
