"""The configuration of the release."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from safety.base import Config

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class ReleaseConfig(Config):
    """The release's name, pointer, licence and check."""

    name: str = Field("aligned", pattern=NAME, description="the aligned model's name, for its card")
    pointer: str = Field("aligned", pattern=NAME, description="named pointer that moves to the new release")
    licence: str = Field(
        "apache-2.0", min_length=1, description="SPDX identifier of the adapter's licence, for its card"
    )
    base_model: str | None = Field(
        None,
        min_length=1,
        description="the base model's id on its hub, such as 'stable-diffusion-v1-5/stable-diffusion-v1-5', for cards; "
        "None: model.path",
    )
    smoke_prompts: tuple[str, ...] = Field(
        (), description="prompts of the check before publishing; none: the first concept of each category"
    )
    signing_key: Path | None = Field(
        None, description="PEM file of an Ed25519 private key that signs the release; None: it is not signed"
    )

    def recipe(self) -> dict[str, object]:
        """Return the settings that the release's files depend on."""
        return self.model_dump(mode="json", exclude={"pointer", "smoke_prompts", "signing_key"})
