"""Which base model a run aligns: what it is called or where it lies, and how it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from safety.base import Config
from safety.embedded import EMBEDDED_MODEL
from safety.errors import ConfigError
from safety.precision import DtypeName

Prediction = Literal["epsilon", "v_prediction"]
Quantize = Literal["none", "int8", "nf4"]
CACHE = Path("~/.cache/safetydpo")


class ModelConfig(Config):
    """The base model that is aligned."""

    family: str | None = Field(
        None, description="a name in the families' registry; none: the one that takes the model's own pipeline class"
    )
    path: str = Field(
        EMBEDDED_MODEL,
        description=f"{EMBEDDED_MODEL!r}; a diffusers folder, or a hub's snapshot or cache folder; a `.safetensors` file in "
        "original layout (Stable Diffusion 1.x, 2.x, XL); a hub id (`org/name`); or `s3://bucket/prefix` of a folder or file",
    )
    revision: str | None = Field(
        None,
        description="branch, tag or commit of a hub id or cache folder; none: `main`, as it is in the cache if it is",
    )
    variant: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_]+$",
        description="weights that are read where a part has several, such as fp16; none: those without a variant's name, "
        "then fp16, then bf16",
    )
    vae: str | None = Field(
        None,
        description="another VAE than the model's own, in any form of `path`; its latents must be of the same kind",
    )
    prediction: Prediction | None = Field(
        None,
        description="what a single file's denoiser predicts, where the file does not say it (Stable Diffusion 2.x)",
    )
    settings: str | None = Field(
        None,
        description="a diffusers folder whose settings and tokenizers a single file is read with; none: those of Stable "
        "Diffusion 1.x, 2.x or XL, as the file's keys say",
    )
    cache: Path = Field(
        CACHE, description="each machine's folder for what is fetched from S3 or unpacked from a single file"
    )
    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+/?$",
        description="URL of the S3 endpoint of `s3://` paths; none: the store's, or else AWS's",
    )
    region: str | None = Field(None, description="of the bucket of `s3://` paths; none: the store's")
    device: str = "cpu"
    dtype: DtypeName = Field(
        "auto",
        description="the weights' type: auto is float32 on a CPU, and bfloat16 on a GPU that computes it, else float32; "
        "errors, losses, adapters and optimizer states are float32 in any case",
    )
    quantize: Quantize = Field(
        "none",
        description="store the denoiser's linear layers in 8 or 4 bits, for a card that does not hold them; adapters are "
        "trained and applied beside them. Needs the extra 'quantized' (bitsandbytes)",
    )

    def cache_folder(self, kind: str) -> Path:
        """Return the folder of a kind of things in the cache, made when it is not there; raise ConfigError if it cannot be."""
        try:
            folder = self.cache.expanduser().absolute() / kind
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"{self.cache / kind} cannot be made ({error})", field="model.cache", fix="name a folder of yours"
            ) from None
        return folder
