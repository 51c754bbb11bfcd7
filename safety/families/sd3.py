"""Stable Diffusion 3 and 3.5: two CLIP text encoders and perhaps a T5, a joint-attention transformer, flow matching.

What a prompt may hold is what the T5 reads, 256 tokens; the two CLIPs read the first 77 of theirs, as in the stock
pipeline. A folder without the T5 works as it does in stock diffusers: zeros stand for its states, and the CLIPs' limit is
the prompt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from safety.families.family import Conditioning, ModelFamily, Parts, families
from safety.families.flow_matching import FlowMatching, FlowSizes, expanded, t5_reader
from safety.families.latent_model import PromptReader, token_limit
from safety.families.pipeline import load_stock_pipeline
from safety.families.sd3_folder import LAYOUT, check_folder

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

T5_TOKENS = 256
"""Tokens of the T5 that the stock pipeline reads (``max_sequence_length``), a shorter tokenizer's own limit aside."""


class StableDiffusion3(FlowMatching):
    """A loaded Stable Diffusion 3 model (see ``ModelFamily``)."""

    def __init__(self, pipeline: StableDiffusion3Pipeline, sizes: FlowSizes, dtype: torch.dtype) -> None:
        """Freeze a pipeline's networks and read how many tokens each encoder takes."""
        self._clips: tuple[PromptReader, ...] = ()
        self._t5: PromptReader | None = None
        if pipeline.text_encoder is not None:
            # The stock pipeline pads both CLIPs' prompts to the first one's limit.
            limit = token_limit(pipeline.tokenizer, pipeline.text_encoder)
            self._clips = (PromptReader(pipeline.tokenizer, limit), PromptReader(pipeline.tokenizer_2, limit))
        if pipeline.text_encoder_3 is not None:
            self._t5 = t5_reader(pipeline.tokenizer_3, T5_TOKENS)
        readers = self._clips[:1] if self._t5 is None else (self._t5,)
        super().__init__(pipeline, readers, sizes, dtype)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return ``{"states": [B, T, D], "pooled": [B, P]}``.

        The states are those of both CLIPs side by side, filled up with zeros to the T5's width, and then the T5's.
        """
        for prompt in prompts:
            self.check_prompt(prompt)
        encoders = (self.part("text_encoder"), self.part("text_encoder_2"))
        found = [
            encoder(self.token_ids(reader, prompts), output_hidden_states=True)
            for reader, encoder in zip(self._clips, encoders, strict=True)
        ]
        clips = torch.cat([each.hidden_states[-2].to(self.dtype) for each in found], dim=-1)
        clips = torch.nn.functional.pad(clips, (0, self.sizes.text_width - clips.shape[-1]))
        return {
            "states": torch.cat([clips, self._t5_states(prompts)], dim=-2),
            "pooled": torch.cat([each.text_embeds.to(self.dtype) for each in found], dim=-1),
        }

    def _t5_states(self, prompts: Sequence[str]) -> Tensor:
        """Return the T5's states [B, T, D], or zeros for a model without one."""
        if self._t5 is None:
            shape = (len(prompts), T5_TOKENS, self.sizes.text_width)
            return torch.zeros(shape, device=self.device, dtype=self.dtype)
        states: Tensor = self.pipeline.text_encoder_3(self.token_ids(self._t5, prompts))[0]
        return states.to(self.dtype)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted velocity [B, C, h, w]."""
        inputs = self.inputs(conditioning)
        predicted: Tensor = self.part("transformer")(
            hidden_states=noisy.to(self.dtype),
            timestep=self.sigmas(timesteps) * self.train_timesteps,
            encoder_hidden_states=inputs["states"],
            pooled_projections=inputs["pooled"],
        ).sample
        return predicted

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
        against = expanded(self.inputs(self.unconditional() if negative is None else negative), len(noise))
        height, width = (side * self.sizes.factor for side in noise.shape[-2:])
        latents: Tensor = self.pipeline(
            prompt_embeds=inputs["states"],
            pooled_prompt_embeds=inputs["pooled"],
            negative_prompt_embeds=against["states"],
            negative_pooled_prompt_embeds=against["pooled"],
            latents=noise.to(self.device, self.dtype),
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            output_type="latent",
        ).images
        return self.decode_latents(latents)


@families.register("sd3")
class StableDiffusion3Loader:
    """Loads Stable Diffusion 3 from a diffusers-format folder."""

    pipelines: ClassVar[tuple[str, ...]] = LAYOUT.classes
    model_class: ClassVar[type[ModelFamily]] = StableDiffusion3
    pipeline_class: ClassVar[str] = LAYOUT.pipeline_class
    component: ClassVar[str] = LAYOUT.denoiser

    @staticmethod
    def load(path: Path, *, device: str, dtype: torch.dtype, parts: Parts = "all") -> StableDiffusion3:
        """Load a folder; what lies unread beside its safetensors is named in the log."""
        files, sizes = check_folder(path)
        pipeline = load_stock_pipeline(LAYOUT, files, path, dtype, parts)
        return StableDiffusion3(pipeline.to(device), sizes, dtype)
