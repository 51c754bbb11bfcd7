"""FLUX.1: a CLIP for the pooled state and a T5 for the prompt's tokens, a transformer of dual and single stream blocks.

What a prompt may hold is what the T5 reads, 512 tokens; the CLIP reads the first 77 of its own, as in the stock pipeline.

Guidance is one number of strength, and there are three cases:

* "dev" has learned guided pictures: the number is an input of the network (``guidance_scale`` in the stock pipeline), and
  no second prediction is made.
* "schnell" has no such input: without a negative prompt the number has no effect.
* with a negative prompt, both are led away from it by a second prediction at every step (``true_cfg_scale``): the number is
  its strength, and dev's input is 1, its value for no guidance. The two would add up otherwise.

In training, dev's input is 3.5: the stock pipeline's own default, at which an expert will be used, and that of diffusers'
train_dreambooth_lora_flux.py. Policy and reference get the same, so that their errors differ by the expert alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from safety.families.family import Conditioning, ModelFamily, Parts, families
from safety.families.flow_matching import FlowMatching, FlowSizes, expanded, t5_reader
from safety.families.flux_folder import LAYOUT, check_folder
from safety.families.latent_model import PromptReader, token_limit
from safety.families.pipeline import load_stock_pipeline

if TYPE_CHECKING:
    from diffusers import FluxPipeline

T5_TOKENS = 512
"""Tokens of the T5 that the stock pipeline reads (``max_sequence_length``), a shorter tokenizer's own limit aside."""
TRAINING_GUIDANCE = 3.5
NO_GUIDANCE = 1.0
TIME_UNIT = 1000
"""The network multiplies times by it itself."""


class Flux(FlowMatching):
    """A loaded FLUX.1 model (see ``ModelFamily``); latents are packed two by two inside ``predict`` and ``sample`` alone."""

    def __init__(self, pipeline: FluxPipeline, sizes: FlowSizes, dtype: torch.dtype) -> None:
        """Freeze a pipeline's networks and read how many tokens each encoder takes."""
        readers: tuple[PromptReader, ...] = ()
        if pipeline.text_encoder is not None:
            limit = token_limit(pipeline.tokenizer, pipeline.text_encoder)
            self._clip = PromptReader(pipeline.tokenizer, limit)
            readers = (t5_reader(pipeline.tokenizer_2, T5_TOKENS),)
        super().__init__(pipeline, readers, sizes, dtype)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return ``{"states": [B, T, D], "pooled": [B, P]}``: the T5's states and the CLIP's pooled one."""
        for prompt in prompts:
            self.check_prompt(prompt)
        clip, t5 = self.part("text_encoder"), self.part("text_encoder_2")
        [reader] = self._readers
        return {
            "states": t5(self.token_ids(reader, prompts))[0].to(self.dtype),
            "pooled": clip(self.token_ids(self._clip, prompts)).pooler_output.to(self.dtype),
        }

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted velocity [B, C, h, w], unpacked."""
        denoiser, inputs = self.part("transformer"), self.inputs(conditioning)
        packed, image_ids = self._pack(noisy.to(self.dtype))
        guidance = None
        if denoiser.config.guidance_embeds:
            guidance = torch.full((len(noisy),), TRAINING_GUIDANCE, device=noisy.device)
        predicted = denoiser(
            hidden_states=packed,
            timestep=(self.sigmas(timesteps) * self.train_timesteps).to(self.dtype) / TIME_UNIT,
            guidance=guidance,
            pooled_projections=inputs["pooled"],
            encoder_hidden_states=inputs["states"],
            txt_ids=torch.zeros(inputs["states"].shape[1], 3, device=noisy.device, dtype=self.dtype),
            img_ids=image_ids,
        ).sample
        return self._unpack(predicted, noisy.shape)

    @torch.no_grad()
    def sample(
        self,
        conditioning: Conditioning,
        noise: Tensor,
        *,
        steps: int,
        guidance: float,
        negative: Conditioning | None = None,
    ) -> Tensor:
        """Return images [B, 3, H, W] in [-1, 1] by the stock pipeline, from initial noise [B, C, h, w]."""
        inputs = self.inputs(conditioning)
        settings: dict[str, Any] = {"guidance_scale": guidance}
        if negative is not None:
            against = expanded(self.inputs(negative), len(noise))
            settings = {
                "guidance_scale": NO_GUIDANCE,
                "true_cfg_scale": guidance,
                "negative_prompt_embeds": against["states"],
                "negative_pooled_prompt_embeds": against["pooled"],
            }
        packed, _ = self._pack(noise.to(self.device, self.dtype))
        height, width = (side * self.sizes.factor for side in noise.shape[-2:])
        latents: Tensor = self.pipeline(
            prompt_embeds=inputs["states"],
            pooled_prompt_embeds=inputs["pooled"],
            latents=packed,
            height=height,
            width=width,
            num_inference_steps=steps,
            output_type="latent",
            **settings,
        ).images
        return self.decode_latents(self._unpack(latents, noise.shape))

    def _pack(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents [B, C, h, w] as tokens [B, hw / 4, 4C], and the tokens' places [hw / 4, 3]."""
        count, channels, height, width = latents.shape
        packed: Tensor = self.pipeline._pack_latents(latents.contiguous(), count, channels, height, width)
        places: Tensor = self.pipeline._prepare_latent_image_ids(
            count, height // 2, width // 2, latents.device, latents.dtype
        )
        return packed, places

    def _unpack(self, packed: Tensor, shape: Sequence[int]) -> Tensor:
        """Return tokens [B, hw / 4, 4C] as latents of ``shape``, [B, C, h, w]."""
        latents: Tensor = self.pipeline._unpack_latents(packed, *shape[-2:], 1)
        return latents


@families.register("flux")
class FluxLoader:
    """Loads FLUX.1 from a diffusers-format folder."""

    pipelines: ClassVar[tuple[str, ...]] = LAYOUT.classes
    model_class: ClassVar[type[ModelFamily]] = Flux
    pipeline_class: ClassVar[str] = LAYOUT.pipeline_class
    component: ClassVar[str] = LAYOUT.denoiser

    @staticmethod
    def load(path: Path, *, device: str, dtype: torch.dtype, parts: Parts = "all") -> Flux:
        """Load a folder; what lies unread beside its safetensors is named in the log."""
        files, sizes = check_folder(path)
        pipeline = load_stock_pipeline(LAYOUT, files, path, dtype, parts)
        return Flux(pipeline.to(device), sizes, dtype)
