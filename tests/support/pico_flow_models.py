"""Small random models of the flow-matching families, in the folders that stock diffusers writes.

Their T5s read as many tokens as the stock pipelines have them read by default: what is drawn depends on the padding.
"""

from __future__ import annotations

import string
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from tests.support.pico_parts import (
    FACTOR,
    SIZE,
    PicoModel,
    clip_config,
    make_tokenizer,
    make_vae,
    open_clip_tokenizer,
)

CHANNELS, T5_WIDTH = 16, 32
WORDS = ("knife", "house", "spoon", "skull", "kitchen", "picture", "very", "shocking", "violence")


def make_t5_tokenizer(limit: int = 512) -> T5Tokenizer:
    """Return a unigram tokenizer of single characters and a few words."""
    pieces = dict.fromkeys([f"▁{word}" for word in WORDS], -1.0)
    pieces |= dict.fromkeys(["▁", *string.ascii_letters, *string.digits, *string.punctuation], -4.0)
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*marks, *pieces.items()], extra_ids=0, model_max_length=limit)


def make_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Return a T5 encoder, gated as those of version 1.1."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer) + 4,
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=2 * T5_WIDTH,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def flow_vae() -> Any:
    """Return a VAE with a shift and without the convolutions at its latents, as both families have it."""
    return make_vae(
        latent_channels=CHANNELS,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_sd3(folder: Path, *, t5: bool = True, seed: int = 4, **transformer: Any) -> None:
    """Write the layout of Stable Diffusion 3.

    Args:
        folder: Where it is written.
        t5: Whether it has the T5.
        seed: That of the weights.
        transformer: Further settings of the transformer, as 3.5 has them.
    """
    torch.manual_seed(seed)
    tokenizer, tokenizer_2, tokenizer_3 = make_tokenizer(), open_clip_tokenizer(), make_t5_tokenizer()
    clip = clip_config(tokenizer, 8, num_hidden_layers=2, projection_dim=8)
    clip_2 = clip_config(tokenizer_2, 16, num_hidden_layers=3, hidden_act="gelu", projection_dim=16)
    net = SD3Transformer2DModel(
        **{
            "sample_size": SIZE // FACTOR,
            "patch_size": 2,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": T5_WIDTH,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8 + 16,
            "pos_embed_max_size": 8,
            **transformer,
        }
    )
    StableDiffusion3Pipeline(
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=flow_vae(),
        text_encoder=CLIPTextModelWithProjection(clip),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(clip_2),
        tokenizer_2=tokenizer_2,
        text_encoder_3=make_t5(tokenizer_3) if t5 else None,
        tokenizer_3=tokenizer_3 if t5 else None,
    ).save_pretrained(folder)


def build_flux(folder: Path, *, guidance: bool = True) -> None:
    """Write the layout of FLUX.1: "dev", with an input for guidance and a shift by size, or "schnell" with neither."""
    torch.manual_seed(5 if guidance else 6)
    tokenizer, tokenizer_2 = make_tokenizer(), make_t5_tokenizer()
    net = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if guidance else {"shift": 1.0}
    FluxPipeline(
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
        vae=flow_vae(),
        text_encoder=CLIPTextModel(clip_config(tokenizer, 16)),
        tokenizer=tokenizer,
        text_encoder_2=make_t5(tokenizer_2),
        tokenizer_2=tokenizer_2,
    ).save_pretrained(folder)


def _open(kind: Any, folder: Path, **parts: Any) -> Any:
    pipeline = kind.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


PICO_FLOW_MODELS: dict[str, PicoModel] = {
    "sd3": PicoModel("sd3", build_sd3, partial(_open, StableDiffusion3Pipeline)),
    "sd3-without-t5": PicoModel(
        "sd3",
        partial(build_sd3, t5=False),
        partial(_open, StableDiffusion3Pipeline, text_encoder_3=None, tokenizer_3=None),
    ),
    "sd35": PicoModel(
        "sd3",
        partial(build_sd3, seed=7, dual_attention_layers=(0,), qk_norm="rms_norm"),
        partial(_open, StableDiffusion3Pipeline),
    ),
    "flux-dev": PicoModel("flux", build_flux, partial(_open, FluxPipeline)),
    "flux-schnell": PicoModel("flux", partial(build_flux, guidance=False), partial(_open, FluxPipeline)),
}
"""Models by name, a part of ``PICO_MODELS``."""
