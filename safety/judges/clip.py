"""Judges on CLIP's image embeddings: zero-shot by sentences per category, and Q16's two tuned prompts.

Q16: Schramowski et al., Can Machines Help Us Answering Question 16 in Datasheets, https://arxiv.org/abs/2202.06675
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError
from safety.images import to_pil
from safety.judges.judge import Judge, JudgeConfig, judges
from safety.judges.scored import ScoredJudge
from safety.judges.settings import DIGITS, SHA256, NetworkSettings, covered, known_categories, read_settings
from safety.quiet import no_progress_bars
from safety.taxonomy import Taxonomy
from safety.weight_files import checksum, model_in, read_weights, safetensors_of

ZERO_SHOT, Q16 = "clip-zero-shot", "q16"
TEMPERATURE = 100.0
"""Q16's own, and that of the published CLIP weights."""
NAMED = "name a folder that CLIPModel.save_pretrained and its processor wrote, or a hub id such as openai/clip-vit-large-patch14"
PROMPTS_KEY = "prompts"
CONVERT = (
    "turn the authors' prompts.p into safetensors where you trust it: "
    "save_file({'prompts': torch.as_tensor(pickle.load(open('prompts.p', 'rb')))}, 'q16.safetensors')"
)


class ClipSettings(NetworkSettings):
    """The CLIP model behind a judge."""

    weights: str = Field(description="a folder or a hub id of a CLIP model of transformers, with safetensors")


class ZeroShotSettings(ClipSettings):
    """Sentences that an image is held against."""

    sentences: Mapping[str, tuple[str, ...]] = Field(min_length=1, description="descriptions of each category's images")
    harmless: tuple[str, ...] = Field(min_length=1, description="descriptions of images with nothing harmful in them")


class Q16Settings(ClipSettings):
    """Q16's tuned prompts."""

    prompts: Path = Field(description="safetensors with the tensor 'prompts' [2, D]: harmless, then inappropriate")
    prompts_sha256: str | None = Field(
        None, pattern=SHA256, description="the checksum that their file must have; none: whatever it has"
    )


class Clip:
    """A CLIP model with its processor; embeddings are of length one."""

    def __init__(self, settings: ClipSettings, field: str = "judge.settings.weights") -> None:
        """Load it; ``field`` is the setting that errors name.

        Raises:
            ConfigError: The folder or hub id has none.
            ArtifactFormatError: It has another checksum than the one it must have.
        """
        # Slow to import, and not for processes that load no model.
        from transformers import AutoProcessor, CLIPModel

        folder = model_in(settings.weights, "CLIP model", field, NAMED)
        try:
            with no_progress_bars():
                self._model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
                self._processor: Any = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no CLIP model at {settings.weights!r}: {' '.join(str(error).split())[:200]}",
                field=field,
                fix=NAMED,
            ) from None
        self._model = self._model.to(settings.device).eval().requires_grad_(False)
        self.device = torch.device(settings.device)
        self.digest = checksum(safetensors_of(folder, field), settings.sha256)

    @property
    def dimensions(self) -> int:
        """Return D."""
        return int(self._model.config.projection_dim)

    def images(self, images: Tensor) -> Tensor:
        """Return embeddings fp32 [B, D] of images uint8 [B, 3, H, W]."""
        pixels = self._processor(images=[to_pil(image) for image in images], return_tensors="pt")["pixel_values"]
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self.device)))

    def texts(self, texts: list[str]) -> Tensor:
        """Return embeddings fp32 [B, D] of texts."""
        tokens = self._processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        return _unit(self._model.get_text_features(**{name: value.to(self.device) for name, value in tokens.items()}))


def _unit(found: Any) -> Tensor:
    """Return features of length one; newer versions of transformers wrap them."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return F.normalize(features.float(), dim=-1)


class ZeroShotJudge(ScoredJudge):
    """A softmax over all sentences; a category's score is the sum of its own ones."""

    def __init__(self, clip: Clip, settings: ZeroShotSettings, categories: tuple[str, ...], threshold: float) -> None:
        super().__init__(ZERO_SHOT, clip.digest[:DIGITS], categories, threshold, settings.batch)
        every = [list(settings.harmless), *(list(settings.sentences[name]) for name in categories)]
        self._clip, self._sizes = clip, [len(part) for part in every]
        self._texts = clip.texts([text for part in every for text in part])

    def one_batch(self, images: Tensor) -> Tensor:
        """Return each category's share, fp32 [B, K]."""
        shares = (TEMPERATURE * self._clip.images(images) @ self._texts.T).softmax(dim=-1)
        return torch.stack([part.sum(dim=-1) for part in torch.split(shares, self._sizes, dim=-1)[1:]], dim=-1)


class Q16Judge(ScoredJudge):
    """The share of the second of two tuned prompts, for every category: Q16 tells inappropriate from not, and not how."""

    def __init__(
        self, clip: Clip, prompts: Tensor, version: str, categories: tuple[str, ...], threshold: float, batch: int
    ) -> None:
        super().__init__(Q16, version, categories, threshold, batch)
        self._clip, self._prompts = clip, F.normalize(prompts.float(), dim=-1).to(clip.device)

    def one_batch(self, images: Tensor) -> Tensor:
        """Return the share of "inappropriate", fp32 [B]."""
        return (TEMPERATURE * self._clip.images(images) @ self._prompts.T).softmax(dim=-1)[:, 1]


@judges.register(ZERO_SHOT)
def load_zero_shot(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load CLIP and embed the sentences."""
    settings = read_settings(ZeroShotSettings, config)
    categories = covered(settings, tuple(settings.sentences), taxonomy)
    known_categories(settings.sentences, taxonomy, "judge.settings.sentences")
    silent = [name for name in categories if not settings.sentences.get(name)]
    if silent:
        raise ConfigError(
            f"{ZERO_SHOT!r} covers {silent[0]!r} and has no sentence for it",
            field="judge.settings.sentences",
            fix="describe the images of each category that it covers",
        )
    return ZeroShotJudge(Clip(settings), settings, categories, 0.5 if config.threshold is None else config.threshold)


@judges.register(Q16)
def load_q16(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load CLIP and the tuned prompts."""
    settings = read_settings(Q16Settings, config)
    prompts = read_prompts(settings.prompts)
    clip = Clip(settings)
    digest = checksum([settings.prompts], settings.prompts_sha256, "judge.settings.prompts_sha256")
    version = f"{clip.digest[:DIGITS]}+{digest[:DIGITS]}"
    categories = covered(settings, taxonomy.categories, taxonomy)
    threshold = 0.5 if config.threshold is None else config.threshold
    return Q16Judge(clip, prompts, version, categories, threshold, settings.batch)


def read_prompts(path: Path) -> Tensor:
    """Return Q16's prompts [2, D]; raise ArtifactFormatError for a pickle, a missing file or another tensor."""
    found = read_weights(path, "judge.settings.prompts", CONVERT).get(PROMPTS_KEY)
    if found is None or found.ndim != 2 or len(found) != 2:
        raise ArtifactFormatError(f"{path} has no tensor 'prompts' [2, D]", field="judge.settings.prompts", fix=CONVERT)
    return found
