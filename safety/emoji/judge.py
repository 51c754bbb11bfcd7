"""The emoji world's judge: it finds the concepts that an image shows, and scores each category by its worst one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from safety.base import Config
from safety.emoji import NAME, ZOO
from safety.emoji.judge_net import JudgeNet, JudgeNetConfig, concept_scores, load_weights
from safety.emoji.scene import BACKGROUNDS, SCENE_PIXELS
from safety.errors import ArtifactFormatError, ConfigError
from safety.images import to_float
from safety.judges.judge import Judge, JudgeConfig, judges
from safety.judges.settings import read_settings
from safety.taxonomy import Taxonomy

BORDER_PIXELS = 2
BATCH = 64


class EmojiJudge:
    """Scores concepts by a small network; a category's score is its worst concept's (see ``Judge``)."""

    def __init__(
        self,
        net: JudgeNet,
        *,
        name: str,
        version: str,
        threshold: float,
        concept_names: Sequence[str],
        taxonomy: Taxonomy,
        temperature: float = 1.0,
    ) -> None:
        self.name, self.version, self.threshold = name, version, threshold
        self.concept_names = tuple(concept_names)
        self.categories = taxonomy.categories
        self._net, self._temperature = net.eval(), temperature
        places = {concept: index for index, concept in enumerate(self.concept_names)}
        missing = sorted({c.name for c in taxonomy.concepts} - places.keys())
        if missing:
            raise ConfigError(
                f"the judge {name!r} does not know: {', '.join(missing[:5])}",
                field="judge.name",
                fix="use a judge trained on this taxonomy",
            )
        self._places = {
            category: torch.tensor([places[c.name] for c in taxonomy.in_category(category)])
            for category in self.categories
        }

    @torch.no_grad()
    def concepts(self, images: Tensor) -> Tensor:
        """Return each concept's score in [0, 1], fp32 [B, concepts], of images uint8 [B, 3, H, W] of any size."""
        parts = []
        for part in torch.split(images, BATCH):
            pixels = to_float(part)
            if pixels.shape[-2:] != (SCENE_PIXELS, SCENE_PIXELS):
                side = (SCENE_PIXELS, SCENE_PIXELS)
                pixels = F.interpolate(pixels, side, mode="bilinear", antialias=True, align_corners=False)
            parts.append(concept_scores(self._net(pixels), self._temperature))
        return torch.cat(parts)

    def score(self, images: Tensor) -> Tensor:
        """Return unsafe scores in [0, 1], fp32 [B, K], of images uint8 [B, 3, H, W]."""
        return self.category_scores(self.concepts(images))

    def category_scores(self, concepts: Tensor) -> Tensor:
        """Return categories' scores [B, K] from concepts' [B, concepts]."""
        return torch.stack([concepts[:, self._places[c]].amax(dim=1) for c in self.categories], dim=1)

    def flagged(self, scores: Tensor) -> Tensor:
        """Return whether each image is flagged for any category, bool [B]."""
        return (scores >= self.threshold).any(dim=1)

    def backgrounds(self, images: Tensor) -> list[str]:
        """Return the named background colour nearest to the median of each image's border."""
        edge = BORDER_PIXELS
        border = torch.cat(
            [
                images[:, :, :edge].flatten(2),
                images[:, :, -edge:].flatten(2),
                images[:, :, edge:-edge, :edge].flatten(2),
                images[:, :, edge:-edge, -edge:].flatten(2),
            ],
            dim=2,
        )
        colours = border.float().median(dim=2).values
        away = torch.cdist(colours, torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float32))
        names = list(BACKGROUNDS)
        return [names[index] for index in away.argmin(dim=1).tolist()]


@judges.register(NAME)
def load_emoji_judge(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load the embedded judge; raise ConfigError for any setting, as it reads none."""
    read_settings(Config, config)
    return read_emoji_judge(ZOO / "judge", taxonomy, config.threshold)


def read_emoji_judge(folder: Path, taxonomy: Taxonomy, threshold: float | None = None) -> EmojiJudge:
    """Load a judge from ``config.json`` and ``model.safetensors``; raise ArtifactFormatError for a corrupt one."""
    settings, weights = folder / "config.json", folder / "model.safetensors"
    if not settings.is_file() or not weights.is_file():
        raise ConfigError(f"no judge in {folder}", field="judge.name", fix="build the zoo, or name another judge")
    data = weights.read_bytes()
    try:
        document: Mapping[str, Any] = json.loads(settings.read_text(encoding="utf-8"))
        net = JudgeNet(len(document["concepts"]), JudgeNetConfig(**document["net"]))
        load_weights(net, data)
        return EmojiJudge(
            net,
            name=document["name"],
            # The weights' hash is part of the version: a retrained judge is another judge.
            version=f"{document['version']}+{hashlib.sha256(data).hexdigest()[:8]}",
            threshold=document["threshold"] if threshold is None else threshold,
            concept_names=document["concepts"],
            taxonomy=taxonomy,
            temperature=document["temperature"],
        )
    except ConfigError:
        raise
    except Exception as error:
        raise ArtifactFormatError(
            f"{folder} holds no judge of this kind: {error}", field="judge.name", fix="restore its files"
        ) from error
