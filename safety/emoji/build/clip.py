"""A small CLIP for the emoji world and its tokenizer (byte-level BPE with ``</w>``), trained on scenes and captions.

The CLIP's contrastive training has label heads, which are dropped afterwards. The heads (left concept, right concept,
background) teach the pooled text state each part of a caption, which the contrastive loss of a small batch learns
slowly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from safety.base import Config
from safety.emoji.build.fitting import Fit, FitConfig
from safety.emoji.build.pool import ScenePool
from safety.emoji.scene import BACKGROUNDS, SCENE_PIXELS
from safety.precision import native_autocast
from safety.seeds import rng

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32


def train_tokenizer(captions: Iterable[str], vocab_size: int = 2048) -> CLIPTokenizer:
    """Learn merges from ``captions`` and lay the vocabulary out as CLIP's: bytes, bytes at word end, merges.

    Every byte is in the vocabulary in both positions, so no text maps to the unknown token.
    """
    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer=trainer)
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *(f"{a}</w>" for a in alphabet), *("".join(pair) for pair in merges)])
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


class ClipConfig(Config):
    """Shape and training of the world's CLIP."""

    width: int = 192
    text_layers: int = 3
    vision_layers: int = 4
    projection: int = 128
    fit: FitConfig = FitConfig(steps=600, batch=128, learning_rate=1e-3)


def build_clip(config: ClipConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return a stock ``CLIPModel`` with random weights for 64-pixel images and 32-token prompts."""
    common = {"hidden_size": config.width, "intermediate_size": 3 * config.width, "num_attention_heads": 4}
    common["projection_dim"] = config.projection
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=config.text_layers,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **common,
    )
    vision = CLIPVisionConfig(image_size=SCENE_PIXELS, patch_size=8, num_hidden_layers=config.vision_layers, **common)
    joined = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=config.projection)
    return CLIPModel(joined)


class _ClipWithHeads(nn.Module):
    """A CLIP with linear heads that name a scene's parts from either tower's embedding."""

    def __init__(self, clip: CLIPModel, concepts: int) -> None:
        super().__init__()
        self.clip = clip
        width = clip.config.projection_dim
        self.text_head = nn.Linear(width, 2 * (concepts + 1) + len(BACKGROUNDS))
        self.image_head = nn.Linear(width, 2 * (concepts + 1) + len(BACKGROUNDS))
        self.sizes = [concepts + 1, concepts + 1, len(BACKGROUNDS)]

    def forward(self, tokens: Tensor, pixels: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and metrics for tokens [B, T], pixels [B, 3, H, W], labels [B, 3]."""
        out = self.clip(input_ids=tokens, pixel_values=pixels)
        text, image = out.text_embeds.float(), out.image_embeds.float()
        logits = self.clip.logit_scale.exp().clamp(max=100.0).float() * text @ image.T
        target = torch.arange(len(tokens))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        named = self._named(self.text_head(8.0 * text), labels), self._named(self.image_head(8.0 * image), labels)
        right = (logits.argmax(1) == target).float().mean().item()
        return contrast + named[0] + named[1], {
            "contrast": contrast.item(),
            "text": named[0].item(),
            "image": named[1].item(),
            "right": right,
        }

    def _named(self, logits: Tensor, labels: Tensor) -> Tensor:
        parts = torch.split(logits, self.sizes, dim=1)
        return torch.stack([F.cross_entropy(p, labels[:, i]) for i, p in enumerate(parts)]).sum()


def train_clip(pool: ScenePool, tokenizer: CLIPTokenizer, config: ClipConfig, folder: Path) -> CLIPModel:
    """Train a CLIP on the pool; resumes from ``folder``."""
    torch.manual_seed(config.fit.seed)
    clip = build_clip(config, tokenizer)
    model = _ClipWithHeads(clip, len(pool.taxonomy.names))

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = rng(config.fit.seed, "clip", step)
        rows = [draw.randrange(len(pool.scenes)) for _ in range(config.fit.batch)]
        captions = [pool.caption(row, config.fit.seed, step) for row in rows]
        tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with native_autocast(torch.device("cpu")):
            out: tuple[Tensor, dict[str, float]] = model(tokens.input_ids, pool.images(rows), pool.labels(rows))
        return out

    Fit(model, config.fit, folder).run(loss)
    return clip.eval()
