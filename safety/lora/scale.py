"""The scale alpha / rank of each layer, as peft computes it from an adapter's metadata, and the settings that are refused.

An adapter is read as plain matrices, dW = scale * B @ A. Whatever else peft can write (DoRA, biases, changed base
weights) is no such product: reading the matrices alone would apply another adapter than the one that was trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

ANCHORED_NAME = re.compile(r"\^[\w.]+")
"""A pattern that names one layer in full, as ``save_lora`` and diffusers write them."""
DEFAULT_RANK, DEFAULT_ALPHA = 8, 8.0
"""peft's own, for metadata that leaves them out."""
NO_SETTING = (None, False, 0, "", "none")
SCALING = frozenset({"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"})
WITHOUT_EFFECT = frozenset(
    {
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *(
            "inference_mode",
            "lora_dropout",
            "megatron_core",
            "runtime_config",
            "qalora_group_size",
            "ensure_weight_tying",
        ),
        # Which layers are adapted is read off the tensors, as peft does when it is given them.
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        # peft resets it for linear layers, the only ones that are read.
        "fan_in_fan_out",
        # Parameters of a start; the start itself is ``init_lora_weights``.
        *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
    }
)
"""Settings that steer the training or select layers: finished matrices do not depend on them."""
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base weights alone; others ("pissa", "olora") change them."""


class LoraScale:
    """The scale of each layer, by the metadata of one component ("unet")."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Read the settings, none in a file without metadata; raise ValueError for one that plain matrices cannot meet."""
        self.settings = settings
        for name, value in settings.items():
            _require_plain(name, value)
        self.rank, self.alpha = int(settings.get("r", DEFAULT_RANK)), float(settings.get("lora_alpha", DEFAULT_ALPHA))
        self.ranks: dict[str, Any] = dict(settings.get("rank_pattern") or {})
        self.alphas: dict[str, Any] = dict(settings.get("alpha_pattern") or {})
        self.rank_stabilized = bool(settings.get("use_rslora", False))

    def of(self, layer: str, rank: int, own: float | None) -> float:
        """Return a layer's scale.

        Args:
            layer: Its name in the denoiser.
            rank: The rank of its matrices.
            own: The alpha that is stored beside them, in older files.

        Raises:
            ValueError: The metadata give another rank, or a second alpha.
        """
        if not self.settings:
            return 1.0 if own is None else own / rank
        if own is not None:
            raise ValueError(f"{layer} has an alpha of its own, and the metadata give one too")
        named = int(self.ranks.get(pattern_of(self.ranks, layer), self.rank))
        if named != rank:
            raise ValueError(f"{layer} has rank {rank}, and {named} by the metadata (r, rank_pattern)")
        alpha = float(self.alphas.get(pattern_of(self.alphas, layer), self.alpha))
        return alpha / (rank**0.5 if self.rank_stabilized else rank)


def pattern_of(patterns: Iterable[str], layer: str) -> str:
    """Return the key that holds for a layer: a full name, a suffix or a regular expression, the first that matches."""
    keys = list(patterns)
    if all(ANCHORED_NAME.fullmatch(key) for key in keys):
        return f"^{layer}"
    # Slow to import, and most files have no such pattern.
    from peft.utils.other import get_pattern_key

    return str(get_pattern_key(keys, layer))


def _require_plain(name: str, value: Any) -> None:
    """Raise ValueError for a setting that changes what the matrices mean."""
    if name in SCALING | WITHOUT_EFFECT or (name != "init_lora_weights" and (value in NO_SETTING or value in ([], {}))):
        return
    if name == "init_lora_weights":
        if value not in HARMLESS_STARTS:
            raise ValueError(f"init_lora_weights is {value!r}, a start that changes the base model's own weights")
        return
    raise ValueError(f"{name} is {value!r}, which is more than plain LoRA matrices")
