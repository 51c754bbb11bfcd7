"""Stable Diffusion 3 and 3.5: two CLIP text encoders and perhaps a T5, a joint-attention transformer, flow matching.

What a prompt may hold is what the T5 reads, 256 tokens; the two CLIPs read the first 77 of theirs, as in the stock
pipeline. A folder without the T5 works as it does in stock diffusers: zeros stand for its states, and the CLIPs' limit is
the prompt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safety.families.family import Conditioning, Parts, families
from safety.families.flow_folder import load_flow_pipeline
from safety.families.flow_matching import FlowMatching, FlowSizes, Tokens, clip_limit, expanded
from safety.families.sd3_folder import LAYOUT, folder_sizes

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline

T5_TOKENS = 256
"""Tokens of the T5 that the stock pipeline reads (``max_sequence_length``), a shorter tokenizer's own limit aside."""
WANTED: dict[Parts, tuple[str, ...]] = {
    "all": ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    "denoiser": ("transformer",),
    "text": ("text_encoder", "text_encoder_2", "text_encoder_3"),
}
"""The networks that are loaded."""


class StableDiffusion3(FlowMatching):
    """A loaded Stable Diffusion 3 model (see ``ModelFamily``)."""

    def __init__(self, pipeline: StableDiffusion3Pipeline, sizes: FlowSizes, dtype: torch.dtype) -> None:
        """Freeze a pipeline's networks and read how many tokens each encoder takes."""
        super().__init__(pipeline, sizes, dtype)
        self._clips: list[tuple[Tokens, torch.nn.Module]] = []
        self._t5: Tokens | None = None
        if pipeline.text_encoder is None:
            return
        # The stock pipeline pads both CLIPs' prompts to the first one's limit.
        limit = clip_limit(pipeline.tokenizer, pipeline.text_encoder)
        self._clips = [
            (Tokens(pipeline.tokenizer, limit), pipeline.text_encoder),
            (Tokens(pipeline.tokenizer_2, limit), pipeline.text_encoder_2),
        ]
        if pipeline.text_encoder_3 is not None:
            self._t5 = Tokens(pipeline.tokenizer_3, min(T5_TOKENS, pipeline.tokenizer_3.model_max_length))
        self.max_tokens = self.longest().limit

    def longest(self) -> Tokens:
        """Return the T5's tokenizer, or the first CLIP's where there is no T5."""
        self._loaded("text_encoder")
        return self._clips[0][0] if self._t5 is None else self._t5

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return ``{"states": [B, T, D], "pooled": [B, P]}``.

        The states are those of both CLIPs side by side, filled up with zeros to the T5's width, and then the T5's.
        """
        for prompt in prompts:
            self.check_prompt(prompt)
        with self._tokenizing:
            ids = [tokens.ids(prompts, self.device) for tokens, _ in self._clips]
            ids_3 = None if self._t5 is None else self._t5.ids(prompts, self.device)
        found = [encoder(each, output_hidden_states=True) for each, (_, encoder) in zip(ids, self._clips, strict=True)]
        clips = torch.cat([each.hidden_states[-2].to(self.dtype) for each in found], dim=-1)
        if ids_3 is None:
            shape = (len(prompts), T5_TOKENS, self.sizes.text_width)
            t5 = torch.zeros(shape, device=clips.device, dtype=clips.dtype)
        else:
            t5 = self.pipeline.text_encoder_3(ids_3)[0].to(self.dtype)
        clips = torch.nn.functional.pad(clips, (0, t5.shape[-1] - clips.shape[-1]))
        return {
            "states": torch.cat([clips, t5], dim=-2),
            "pooled": torch.cat([each.text_embeds.to(self.dtype) for each in found], dim=-1),
        }

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the predicted velocity [B, C, h, w]."""
        inputs = self._inputs(conditioning)
        predicted: Tensor = self._loaded("transformer")(
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
        inputs = self._inputs(conditioning)
        against = expanded(self._inputs(self.unconditional() if negative is None else negative), len(noise))
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

    pipelines = LAYOUT.pipelines

    @staticmethod
    def load(path: Path, *, device: str, dtype: torch.dtype, parts: Parts = "all") -> StableDiffusion3:
        """Load a folder; what lies unread beside its safetensors is named in the log."""
        # Slow to import, and not for processes that load no model.
        from diffusers import StableDiffusion3Pipeline

        sizes = folder_sizes(path)
        pipeline = load_flow_pipeline(StableDiffusion3Pipeline, path, LAYOUT, WANTED[parts], dtype)
        return StableDiffusion3(pipeline.to(device), sizes, dtype)
