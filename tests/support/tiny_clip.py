"""A tiny random CLIP with the embedded tokenizer, as transformers saves one."""

from __future__ import annotations

from pathlib import Path

import torch

from safety.embedded import EMBEDDED_MODEL_FOLDER


def write_clip(folder: Path) -> Path:
    """Write the model and its processor, and return the folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED_MODEL_FOLDER / "tokenizer")
    config = CLIPConfig(
        text_config={**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    reader = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(reader, tokenizer).save_pretrained(folder)
    return folder
