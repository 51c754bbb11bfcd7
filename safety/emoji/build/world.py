"""Builder of the emoji zoo: every model of the embedded world, trained from drawings in one resumable run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

from safety.base import Config
from safety.emoji.build.autoencoder import AutoencoderConfig, DecoderFit, build_autoencoder, set_encoder, train_decoder
from safety.emoji.build.clip import MAX_TOKENS, ClipConfig, train_clip, train_tokenizer
from safety.emoji.build.drawings import SETS, fetch_sets, render_taxonomy
from safety.emoji.build.judge_training import JudgeTrainingConfig, train_judge
from safety.emoji.build.measure import JudgeQuality, ModelQuality, Reader, measure_judge, measure_model
from safety.emoji.build.negatives import benign_renders, spoiled_drawings
from safety.emoji.build.pool import PoolConfig, ScenePool, make_pool
from safety.emoji.build.unet import Phase, UnetConfig, encode_pool, make_scheduler, train_unet
from safety.emoji.judge_net import JudgeNet, load_weights
from safety.emoji.scene import SceneRenderer
from safety.families import ModelConfig, load_model
from safety.taxonomy import Taxonomy

logger = logging.getLogger(__name__)

TOKENIZER_CAPTIONS = 20_000
ENCODER_SCENES = 4_000

Part = Literal["text", "autoencoder", "unet", "judge"]
PARTS: tuple[Part, ...] = get_args(Part)


class WorldConfig(Config):
    """All settings that the emoji zoo depends on."""

    pool: PoolConfig = PoolConfig()
    unet_pool: PoolConfig = PoolConfig(scenes=16_000, sets=("twemoji",))
    """The UNet's training scenes; one style, since each further one costs as many steps again."""
    unet_first_steps: int = Field(500, ge=0, description="steps on `pool` before `unet_pool`")
    judge_pool: PoolConfig = PoolConfig(
        scenes=40_000,
        sets=("twemoji", "noto", "noto-v1", "openmoji", "fluent-emoji-flat", "fluent-emoji", "emojione-v1", "fxemoji"),
        sides=tuple(range(24, 33)),
        grid=1,
        seed=11,
    )
    clip: ClipConfig = ClipConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    decoder: DecoderFit = DecoderFit()
    unet: UnetConfig = UnetConfig()
    judge: JudgeTrainingConfig = JudgeTrainingConfig()
    judge_threshold: float = Field(0.5, gt=0, lt=1)
    judge_temperature: float = Field(1.0, gt=0)
    steps: int = Field(12, gt=0, description="denoising steps of the measurement")
    guidance: float = Field(3.0, ge=1)


class WorldBuilder:
    """Builds the zoo's parts one after the other; each resumes from its checkpoints in the work folder."""

    def __init__(self, config: WorldConfig, taxonomy: Taxonomy, work: Path) -> None:
        """Fetch and render the drawings if the work folder does not have them."""
        self.config, self.taxonomy, self.work = config, taxonomy, work
        drawings = work / "drawings.safetensors"
        if not drawings.exists():
            fetch_sets(work / "packages")
            save_file(render_taxonomy(taxonomy, work / "packages"), drawings)
        self.renderer = SceneRenderer(load_file(drawings))

    @cached_property
    def pool(self) -> ScenePool:
        """Return the scenes of several sets, which the text encoder and the autoencoder learn from."""
        return make_pool(self.taxonomy, self.renderer, self.config.pool)

    def build(self, folder: Path, parts: Sequence[Part] = PARTS) -> None:
        """Train ``parts``, take the others from the zoo that ``folder`` holds, and write all to ``folder``."""
        if "text" in parts:
            tokenizer = self._tokenizer()
            clip = train_clip(self.pool, tokenizer, self.config.clip, self.work / "clip")
        else:
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
            clip = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32)
        if "autoencoder" in parts:
            autoencoder = self._autoencoder()
        else:
            autoencoder = AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32)
        if "unet" in parts:
            unet = self._unet(tokenizer, _text_encoder(clip), autoencoder)
        else:
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32)
        save_zoo(folder, tokenizer, clip, autoencoder, unet)
        if "judge" in parts:
            judge = self._judge(folder)
            save_judge(folder / "judge", judge, self.config, self.taxonomy)

    def _unet(self, tokenizer: CLIPTokenizer, text: CLIPTextModel, autoencoder: AutoencoderKL) -> UNet2DConditionModel:
        config = self.config
        main = make_pool(self.taxonomy, self.renderer, config.unet_pool)
        phases = [Phase(config.unet.fit.steps, main, encode_pool(main, autoencoder))]
        if config.unet_first_steps:
            phases.insert(0, Phase(config.unet_first_steps, self.pool, encode_pool(self.pool, autoencoder)))
        # The checkpoints of the training that this one continues must not be mistaken for its own.
        checkpoints = self.work / ("unet" if config.unet.start is None else "unet-continued")
        return train_unet(phases, tokenizer, text, config.unet, checkpoints)

    def _judge(self, zoo: Path) -> JudgeNet:
        config = self.config.judge
        pool = make_pool(self.taxonomy, self.renderer, self.config.judge_pool)
        renders = benign_renders(load_model(ModelConfig(path=str(zoo))), self.taxonomy, config.negatives)
        negatives = [
            (spoiled_drawings(pool, self.renderer, config.negatives), config.negatives.spoiled_rows),
            (renders, config.negatives.render_rows),
        ]
        checkpoints = self.work / ("judge" if config.start is None else "judge-continued")
        return train_judge(pool, config, checkpoints, negatives)

    def _tokenizer(self) -> CLIPTokenizer:
        count = min(TOKENIZER_CAPTIONS, len(self.pool.scenes))
        return train_tokenizer([self.pool.caption(row, self.config.pool.seed, 0) for row in range(count)])

    def _autoencoder(self) -> AutoencoderKL:
        torch.manual_seed(self.config.decoder.fit.seed)
        model = build_autoencoder(self.config.autoencoder).eval()
        count = min(ENCODER_SCENES, len(self.pool.scenes))
        kept = set_encoder(model, self.pool.images(range(count)), self.config.autoencoder.whitening)
        logger.info("the latents keep %.2f%% of the pixels' variance", 100 * float(kept))
        return train_decoder(model, self.pool, self.config.decoder, self.work / "decoder")


def _text_encoder(clip: CLIPModel) -> CLIPTextModel:
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    return text.eval().requires_grad_(False)


def save_zoo(
    folder: Path, tokenizer: CLIPTokenizer, clip: CLIPModel, autoencoder: AutoencoderKL, unet: UNet2DConditionModel
) -> None:
    """Write the models: a stock diffusers folder, with the whole CLIP beside it.

    Every value is rounded to half precision. The text encoder's are stored as fp32, since transformers loads a model
    in the precision of its file where diffusers loads fp32: a stock pipeline would mix the two and fail.
    """
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=_text_encoder(clip),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    pipeline.text_encoder.float()
    pipeline.save_pretrained(folder, safe_serialization=True)
    clip.half().save_pretrained(folder / "clip", safe_serialization=True)


def save_judge(folder: Path, judge: JudgeNet, config: WorldConfig, taxonomy: Taxonomy) -> None:
    """Write the judge's weights and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {name: v.half() if v.is_floating_point() else v for name, v in judge.state_dict().items()}
    save_file({name: v.contiguous() for name, v in half.items()}, folder / "model.safetensors")
    document = {
        "name": "emoji-judge",
        "version": "1",
        "concepts": list(taxonomy.names),
        "net": json.loads(config.judge.model_dump_json(include={"widths", "dropout"})),
        "temperature": config.judge_temperature,
        "threshold": config.judge_threshold,
        "trained_on_sets": list(config.judge_pool.sets),
    }
    (folder / "config.json").write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def measure_world(builder: WorldBuilder, zoo: Path, images: int) -> tuple[dict[str, JudgeQuality], ModelQuality]:
    """Measure a written zoo: the judge on seen and unseen drawing sets, the base model on ``images`` prompts of each kind."""
    config = builder.config
    net = JudgeNet(len(builder.taxonomy.names), config.judge)
    load_weights(net, (zoo / "judge" / "model.safetensors").read_bytes())
    reader = Reader(net, builder.taxonomy, config.judge_threshold, config.judge_temperature)
    seen = config.judge_pool.sets
    unseen = tuple(name for name in SETS if name not in seen)
    judge = {
        "sets seen in training": measure_judge(reader, builder.renderer, seen, images, config.judge_pool.sides),
        f"set never seen ({', '.join(unseen)})": measure_judge(
            reader, builder.renderer, unseen, images, config.judge_pool.sides
        ),
    }
    model = load_model(ModelConfig(path=str(zoo)))
    return judge, measure_model(model, reader, images, steps=config.steps, guidance=config.guidance)


CARD = """---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [emoji, stable-diffusion, safetydpo]
---
# The emoji zoo

A small Stable Diffusion in the stock diffusers format (64-pixel images, 8x8x{latents} latents, {tokens}-token
prompts, v-prediction), with a CLIP and an image judge beside it. It draws one or two emoji on a coloured
background. It exists so that SafetyDPO can be run, tested and shown anywhere without a download.

**Its "unsafe" concepts are stand-ins** (a kitchen knife stands for violence). No figure obtained with it says
anything about real harmful content.

## Measured quality
On reserved scenes (a tenth of all combinations, never trained on), by
`python -m jobs.world --config jobs/configs/world-continued.yaml --zoo safety/emoji/zoo --only-measure`.

| judge on | scenes | shown concepts named | scenes exactly right | calibration error |
|---|---|---|---|---|
{judge}

| base model, {steps} steps, guidance {guidance} | value |
|---|---|
{model}

## How it was built
`make world`: all parts by `jobs/configs/world.yaml`, then the UNet and the judge trained on by
`jobs/configs/world-continued.yaml`, whose settings are in `world.json` in full. Drawings of {unet_sets} for the UNet,
of {base_sets} for the text encoder and the autoencoder, of {judge_sets} for the
judge. The autoencoder's encoder is a principal-component projection set in closed form
(`safety/emoji/build/autoencoder.py`); its decoder, the CLIP, the UNet and the judge are trained. So that a smudge is not
taken for harm, the judge saw spoiled benign drawings and the base model's renders of benign prompts, too
(`safety/emoji/build/negatives.py`). See `ATTRIBUTION.md` for the drawings' authors and licences.
"""


def write_cards(zoo: Path, config: WorldConfig, judge: dict[str, JudgeQuality], model: ModelQuality) -> None:
    """Write the model card and the settings the zoo was made with."""
    judged = [
        f"| {k} | {q.scenes} | {q.named:.3f} | {q.exact:.3f} | {q.calibration_error:.3f} |" for k, q in judge.items()
    ]
    measured = [
        f"| {k.replace('_', ' ')} | {f'{v:.3f}' if isinstance(v, float) else v} |"
        for k, v in model.model_dump().items()
    ]
    card = CARD.format(
        latents=config.autoencoder.latent_channels,
        tokens=MAX_TOKENS,
        judge="\n".join(judged),
        model="\n".join(measured),
        steps=config.steps,
        guidance=config.guidance,
        unet_sets=", ".join(config.unet_pool.sets),
        base_sets=", ".join(config.pool.sets),
        judge_sets=", ".join(config.judge_pool.sets),
    )
    (zoo / "README.md").write_text(card, encoding="utf-8")
    (zoo / "world.json").write_text(config.model_dump_json(indent=1), encoding="utf-8")
