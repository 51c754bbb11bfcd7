"""ComfyUI's map of LoRA names (comfy/lora.py, comfy/utils.py), restated from its rules: name -> the weight it changes.

Of a UNet ComfyUI knows the original layout and derives diffusers' names for it, by counting blocks. Each linear layer has
two names: ``lora_unet_`` before the original name or before diffusers' one, with underscores for dots. Of SD3 and FLUX it
knows ``lora_transformer_`` before diffusers' names; several of them are slices of one original weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INNER = (
    *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    *("ff.net.0.proj", "ff.net.2"),
)
Target = str | tuple[str, int]
"""A weight, or a weight and which of its equal slices."""


def of_unet(config: Mapping[str, Any]) -> dict[str, Target]:
    """Return the map for a UNet by its config in diffusers."""
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    depths = config["transformer_layers_per_block"]
    depths = [depths] * levels if isinstance(depths, int) else list(depths)
    found: dict[str, Target] = {}

    def attention(block: str, diffusers: str, depth: int) -> None:
        names = ["proj_in", "proj_out", *(f"transformer_blocks.{n}.{layer}" for n in range(depth) for layer in INNER)]
        for name in names:
            for known in (f"{diffusers}.{name}", f"{block}.{name}"):
                found["lora_unet_" + known.replace(".", "_")] = f"diffusion_model.{block}.{name}.weight"

    count = 1  # block 0 is the first convolution
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers):
            if "CrossAttn" in kind:
                attention(f"input_blocks.{count}.1", f"down_blocks.{level}.attentions.{layer}", depths[level])
            count += 1
        count += 1  # the level's downsampler
    attention("middle_block.1", "mid_block.attentions.0", depths[-1])
    count = 0
    for level, kind in enumerate(config["up_block_types"]):
        for layer in range(layers + 1):
            if "CrossAttn" in kind:
                attention(f"output_blocks.{count}.1", f"up_blocks.{level}.attentions.{layer}", depths[::-1][level])
            count += 1
    return found


def of_sd3(blocks: int) -> dict[str, Target]:
    """Return the map for a Stable Diffusion 3 of so many blocks."""
    found: dict[str, Target] = {"lora_transformer_context_embedder": "diffusion_model.context_embedder.weight"}
    for block in range(blocks):
        to = f"diffusion_model.joint_blocks.{block}"
        names: dict[str, Target] = {"attn.to_out.0": f"{to}.x_block.attn.proj.weight"}
        names["attn.to_add_out"] = f"{to}.context_block.attn.proj.weight"
        names["attn2.to_out.0"] = f"{to}.x_block.attn2.proj.weight"
        for number, letter in enumerate("qkv"):
            names[f"attn.to_{letter}"] = (f"{to}.x_block.attn.qkv.weight", number)
            names[f"attn2.to_{letter}"] = (f"{to}.x_block.attn2.qkv.weight", number)
            names[f"attn.add_{letter}_proj"] = (f"{to}.context_block.attn.qkv.weight", number)
        for side, own in (("ff", "x_block"), ("ff_context", "context_block")):
            names[f"{side}.net.0.proj"] = f"{to}.{own}.mlp.fc1.weight"
            names[f"{side}.net.2"] = f"{to}.{own}.mlp.fc2.weight"
        found |= _named(f"transformer_blocks.{block}", names)
    return found


def of_flux(double: int, single: int) -> dict[str, Target]:
    """Return the map for a FLUX of so many dual and single stream blocks."""
    found: dict[str, Target] = {"lora_transformer_context_embedder": "diffusion_model.txt_in.weight"}
    for block in range(double):
        to = f"diffusion_model.double_blocks.{block}"
        names: dict[str, Target] = {"attn.to_out.0": f"{to}.img_attn.proj.weight"}
        names["attn.to_add_out"] = f"{to}.txt_attn.proj.weight"
        for number, letter in enumerate("qkv"):
            names[f"attn.to_{letter}"] = (f"{to}.img_attn.qkv.weight", number)
            names[f"attn.add_{letter}_proj"] = (f"{to}.txt_attn.qkv.weight", number)
        for side, own in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
            names[f"{side}.net.0.proj"] = f"{to}.{own}.0.weight"
            names[f"{side}.net.2"] = f"{to}.{own}.2.weight"
        found |= _named(f"transformer_blocks.{block}", names)
    for block in range(single):
        to = f"diffusion_model.single_blocks.{block}"
        names = {"proj_out": f"{to}.linear2.weight", "proj_mlp": (f"{to}.linear1.weight", 3)}
        names |= {f"attn.to_{letter}": (f"{to}.linear1.weight", number) for number, letter in enumerate("qkv")}
        found |= _named(f"single_transformer_blocks.{block}", names)
    return found


def _named(block: str, names: Mapping[str, Target]) -> dict[str, Target]:
    return {f"lora_transformer_{block}_{name}".replace(".", "_"): target for name, target in names.items()}
