"""Names of a model's tensors in the original layout of Stable Diffusion's single files, by their names in diffusers.

The layout is that of the files in which SD 1.x, 2.x and XL were published, and which ComfyUI and other tools read:

    model.diffusion_model.   the UNet: input_blocks, middle_block, output_blocks, counted through all levels
    first_stage_model.       the VAE
    cond_stage_model.        the text encoder of 1.x (``transformer.``, as in transformers) and of 2.x (``model.``, OpenCLIP's)
    conditioner.embedders.N. the two text encoders of XL: 0 as of 1.x, 1 as of 2.x

In a UNet of L layers a level, level i of the way down begins at block 1 + (L + 1) i, level i of the way up at (L + 1) i.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from safety.errors import ConfigError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT_PREFIXES = {
    False: {"text_encoder": ("cond_stage_model.transformer.", "cond_stage_model.model.")},
    True: {
        "text_encoder": ("conditioner.embedders.0.transformer.", "conditioner.embedders.0.model."),
        "text_encoder_2": ("conditioner.embedders.1.transformer.", "conditioner.embedders.1.model."),
    },
}
"""By whether the model is an XL: each text encoder's prefixes as a CLIP of transformers, and as an OpenCLIP."""
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ENDS = {"conv_norm_out": "norm_out"}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    # Of folders that older versions of diffusers wrote.
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_attn": "proj_out",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
LEVEL = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
BLOCK = re.compile(r"(encoder\.layers\.\d+)\.(.+)")
PROJECTION = re.compile(r"(encoder\.layers\.\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the original name of a UNet's tensor.

    Args:
        name: In diffusers, such as ``down_blocks.0.attentions.1.proj_in.weight``.
        config: The UNet's ``config.json``.

    Raises:
        ConfigError: The layout has no place for it.
    """
    owner, _, kind = name.rpartition(".")
    if owner in UNET_ENDS:
        return f"{UNET}{UNET_ENDS[owner]}.{kind}"
    if found := MIDDLE.fullmatch(name):
        part, number, rest = found[1], int(found[2]), found[3]
        if part == "resnets":
            return f"{UNET}middle_block.{2 * number}.{_renamed(rest, UNET_RESNET)}"
        if number == 0:
            return f"{UNET}middle_block.1.{rest}"
    elif found := LEVEL.fullmatch(name):
        return UNET + _level_name(found[1], int(found[2]), found[3], int(found[4]), found[5], config)
    raise _unknown(name)


def _level_name(way: str, level: int, part: str, number: int, rest: str, config: Mapping[str, Any]) -> str:
    """Return the name of a tensor in a level of the way down or up."""
    layers = config.get("layers_per_block", 2)
    if not isinstance(layers, int):
        raise ConfigError(
            "the UNet's levels have different numbers of layers", field="--form", fix="export a fused folder instead"
        )
    if part == "downsamplers":
        return f"input_blocks.{(layers + 1) * (level + 1)}.0.{rest.replace('conv.', 'op.', 1)}"
    if part == "upsamplers":
        # Behind the attention, where the level has one.
        place = 2 if "CrossAttn" in config["up_block_types"][level] else 1
        return f"output_blocks.{(layers + 1) * level + layers}.{place}.{rest}"
    block = f"input_blocks.{1 + (layers + 1) * level + number}"
    if way == "up":
        block = f"output_blocks.{(layers + 1) * level + number}"
    return f"{block}.0.{_renamed(rest, UNET_RESNET)}" if part == "resnets" else f"{block}.1.{rest}"


def vae_tensor(name: str, tensor: Tensor, config: Mapping[str, Any]) -> tuple[str, Tensor]:
    """Return the original name of a VAE's tensor, and the tensor in its original shape.

    Args:
        name: In diffusers, such as ``encoder.down_blocks.0.resnets.1.conv1.weight``.
        tensor: Its value; attention's matrices become convolutions of size 1.
        config: The VAE's ``config.json``.

    Raises:
        ConfigError: The layout has no place for it.
    """
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return VAE + name, tensor
    if found := MIDDLE.fullmatch(rest):
        if found[1] == "resnets":
            return f"{VAE}{side}.mid.block_{int(found[2]) + 1}.{_shortcut(found[3])}", tensor
        layer = _renamed(found[3], VAE_ATTENTION)
        matrix = tensor.ndim == 2
        return f"{VAE}{side}.mid.attn_1.{layer}", tensor[:, :, None, None].contiguous() if matrix else tensor
    if found := LEVEL.fullmatch(rest):
        way, level, part, number, inner = found[1], int(found[2]), found[3], found[4], found[5]
        # The way up is counted from the finest level in the original, and from the coarsest in diffusers.
        place = level if way == "down" else len(config["up_block_types"]) - 1 - level
        layer = f"block.{number}.{_shortcut(inner)}" if part == "resnets" else f"{part.removesuffix('rs')}.{inner}"
        return f"{VAE}{side}.{way}.{place}.{layer}", tensor
    owner, _, kind = rest.rpartition(".")
    return f"{VAE}{side}.{VAE_ENDS.get(owner, owner)}.{kind}", tensor


def text_tensors(part: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, xl: bool) -> dict[str, Tensor]:
    """Return a text encoder's tensors under their original names.

    OpenAI's CLIP (of 1.x, and XL's first) stays as in transformers. OpenCLIP's (of 2.x, and XL's second), which are known by
    their exact GELU, have queries, keys and values in one matrix.

    Args:
        part: "text_encoder" or "text_encoder_2".
        tensors: By their names in transformers, with or without ``text_model.`` before them.
        config: The text encoder's ``config.json``.
        xl: Whether the model is an XL.
    """
    as_clip, as_open_clip = TEXT_PREFIXES[xl][part]
    plain = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items() if "position_ids" not in name}
    if config.get("hidden_act", "quick_gelu") == "quick_gelu":
        # A projection belongs to no model of this kind here: XL's first encoder has none.
        return {
            f"{as_clip}text_model.{name}": tensor for name, tensor in plain.items() if name != "text_projection.weight"
        }
    return {as_open_clip + name: tensor for name, tensor in _open_clip(plain).items()}


def _open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name == "text_projection.weight":
            found["text_projection"] = tensor.T.contiguous()
        elif name in OPEN_CLIP_ENDS:
            found[OPEN_CLIP_ENDS[name]] = tensor
        elif match := PROJECTION.fullmatch(name):
            block, which, kind = match.groups()
            if which == "q":
                joined = [tensors[f"{block}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                found[f"{_block(block)}.attn.in_proj_{kind}"] = torch.cat(joined)
        else:
            match = BLOCK.fullmatch(name)
            if match is None:
                raise _unknown(name)
            found[f"{_block(match[1])}.{_renamed(match[2], OPEN_CLIP)}"] = tensor
    return found


def _block(name: str) -> str:
    return name.replace("encoder.layers.", "transformer.resblocks.")


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """Return ``LAYER.weight`` or ``LAYER.bias`` under the layer's other name."""
    owner, _, kind = name.rpartition(".")
    if owner not in names:
        raise _unknown(name)
    return f"{names[owner]}.{kind}"


def _shortcut(name: str) -> str:
    return name.replace("conv_shortcut", "nin_shortcut")


def _unknown(name: str) -> ConfigError:
    return ConfigError(
        f"the original layout has no place for {name}",
        field="--form",
        fix="export a fused folder instead, or a LoRA",
    )
