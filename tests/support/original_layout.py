"""Models in original layout, made of stock diffusers pipelines: the names that CompVis' and Stability's own code gives.

Written after that code (``ldm/modules/diffusionmodules``), and not after diffusers' converter, which it is held against.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from safety.families.single_file import LAYOUTS

UNET, VAE = "model.diffusion_model.", "first_stage_model."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name: str, layers: int, attended: set[str]) -> str:
    """Return the original name of a weight; ``attended``: the up blocks that have attention."""
    for own, theirs in TOP.items():
        if name.startswith(f"{own}."):
            return theirs + name[len(own) :]
    match = re.fullmatch(
        r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    assert match is not None, name
    side, block, kind, number, rest = match.groups()
    n, b = int(number), int(block or 0)
    if kind == "resnets":
        head, _, tail = rest.partition(".")
        rest = f"{RESNET[head]}.{tail}"
    if side == "mid":
        return f"middle_block.{2 * n if kind == 'resnets' else 1}.{rest}"
    first = b * (layers + 1)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{1 + first + layers}.0.op.{rest.partition('.')[2]}"
        return f"input_blocks.{1 + first + n}.{0 if kind == 'resnets' else 1}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if block in attended else 1}.{rest}"
    return f"output_blocks.{first + n}.{0 if kind == 'resnets' else 1}.{rest}"


def original_unet(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    attended = {name.split(".")[1] for name in weights if name.startswith("up_blocks.") and ".attentions." in name}
    return {UNET + unet_name(name, layers, attended): tensor for name, tensor in weights.items()}


def original_vae(weights: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    found = {}
    for name, tensor in weights.items():
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{blocks - 1 - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample.", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
            for own, theirs in {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
                if f".{own}." in name and name.endswith("weight"):
                    tensor = tensor[:, :, None, None]
                name = name.replace(f".{own}.", f".{theirs}.")
        found[VAE + name] = tensor
    return found


def original_clip(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """CLIP as OpenAI's code in transformers names it."""
    return {f"{prefix}transformer.text_model.{n.removeprefix('text_model.')}": tensor for n, tensor in weights.items()}


def original_open_clip(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """CLIP as open_clip names it: queries, keys and values in one."""
    found: dict[str, Tensor] = {}
    own = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    for name, tensor in own.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "text_projection.weight":
            found[f"{prefix}model.text_projection"] = tensor.T.contiguous()
        elif layer is None:
            known = {
                "embeddings.token_embedding.weight": "token_embedding.weight",
                "embeddings.position_embedding.weight": "positional_embedding",
                "final_layer_norm.weight": "ln_final.weight",
                "final_layer_norm.bias": "ln_final.bias",
            }
            if name in known:
                found[f"{prefix}model.{known[name]}"] = tensor
        else:
            number, part, kind = layer.groups()
            at = f"{prefix}model.transformer.resblocks.{number}"
            if part in OPEN_CLIP:
                found[f"{at}.{OPEN_CLIP[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                every = [own[f"encoder.layers.{number}.self_attn.{each}_proj.{kind}"] for each in "qkv"]
                found[f"{at}.attn.in_proj_{kind}"] = torch.cat(every)
    return found


def original(pipeline: Any, layout: str) -> dict[str, Tensor]:
    """Return a pipeline's weights in the original layout "1", "2" or "xl"."""
    text = pipeline.text_encoder.state_dict()
    if layout == "xl":
        second = original_open_clip(pipeline.text_encoder_2.state_dict(), "conditioner.embedders.1.")
        texts = {**original_clip(text, "conditioner.embedders.0."), **second}
    else:
        texts = {"1": original_clip, "2": original_open_clip}[layout](text, "cond_stage_model.")
    return {
        **original_unet(pipeline.unet.state_dict(), pipeline.unet.config.layers_per_block),
        **original_vae(pipeline.vae.state_dict(), len(pipeline.vae.config.block_out_channels)),
        **texts,
    }


def save_original(
    pipeline: Any, layout: str, file: Path, extra: Mapping[str, Tensor] | None = None, **metadata: str
) -> Path:
    """Write a pipeline as a single file, with what such files have beside their networks."""
    weights = {name: tensor.contiguous().clone() for name, tensor in original(pipeline, layout).items()}
    save_file(
        {**weights, "alphas_cumprod": torch.rand(9), **(extra or {})}, file, metadata={"format": "pt", **metadata}
    )
    return file


def full_size(layout: str) -> tuple[Any, dict[str, nn.Module]]:
    """Return full-size networks without memory, made of the shipped settings by the stock classes."""
    import diffusers
    import transformers

    folder, networks = LAYOUTS / layout, {}
    index = json.loads((folder / "model_index.json").read_text())
    with torch.device("meta"):
        for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
            if name not in index:
                continue
            library, kind = index[name]
            cls = getattr(diffusers if library == "diffusers" else transformers, kind)
            if library == "diffusers":
                networks[name] = cls.from_config(cls.load_config(folder / name))
            else:
                networks[name] = cls(transformers.CLIPTextConfig.from_pretrained(folder / name))
    return type("Networks", (), networks), networks


def sparse_file(tensors: dict[str, Tensor], file: Path, **metadata: str) -> Path:
    """Write a safetensors file of zeros in fp16 that takes no room on the disk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return file
