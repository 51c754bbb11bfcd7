"""Training the world's UNet: resumable, and from another UNet's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from safety.emoji.build.autoencoder import AutoencoderConfig, build_autoencoder, set_encoder
from safety.emoji.build.clip import MAX_TOKENS, train_tokenizer
from safety.emoji.build.fitting import Fit, FitConfig
from safety.emoji.build.pool import ScenePool
from safety.emoji.build.unet import Phase, UnetConfig, build_unet, encode_pool, train_unet

WIDTH = 16
CONFIG = UnetConfig(channels=(32, 32), heads=2, fit=FitConfig(steps=4, batch=4, checkpoint_every=2, warmup=1))


@pytest.fixture(scope="module")
def tokenizer(pool: ScenePool) -> CLIPTokenizer:
    return train_tokenizer([pool.caption(row, 0, 0) for row in range(20)], vocab_size=600)


@pytest.fixture(scope="module")
def text(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, **shape)
    ).requires_grad_(False)


@pytest.fixture(scope="module")
def phase(pool: ScenePool) -> Phase:
    torch.manual_seed(0)
    autoencoder = build_autoencoder(AutoencoderConfig(latent_channels=4)).eval()
    set_encoder(autoencoder, pool.images(range(40)))
    return Phase(100, pool, encode_pool(pool, autoencoder))


def test_a_stopped_training_goes_on_to_the_same_weights(
    phase: Phase, tokenizer: CLIPTokenizer, text: CLIPTextModel, tmp_path: Path
) -> None:
    whole = train_unet([phase], tokenizer, text, CONFIG, tmp_path / "whole")

    saved = Fit._save

    def save_then_stop(self: Fit) -> None:
        saved(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fit, "_save", save_then_stop)
        train_unet([phase], tokenizer, text, CONFIG, tmp_path / "resumed")
    resumed = train_unet([phase], tokenizer, text, CONFIG, tmp_path / "resumed")
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


def test_training_goes_on_from_another_unet(
    phase: Phase, tokenizer: CLIPTokenizer, text: CLIPTextModel, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    start = build_unet(CONFIG, 4, WIDTH)
    start.save_pretrained(tmp_path / "start", safe_serialization=True)
    barely = CONFIG.model_copy(
        update={"start": tmp_path / "start", "fit": FitConfig(steps=1, batch=4, learning_rate=1e-9, warmup=0)}
    )
    trained = train_unet([phase], tokenizer, text, barely, tmp_path / "work")
    for (name, one), other in zip(trained.named_parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)
