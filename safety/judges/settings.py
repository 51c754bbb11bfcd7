"""Settings that a judge reads beside its name and threshold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pydantic import Field, ValidationError

from safety.base import Config
from safety.documents import explain
from safety.errors import ConfigError
from safety.judges.judge import JudgeConfig
from safety.taxonomy import Taxonomy

SHA256 = r"^[0-9a-f]{64}$"
DIGITS = 8
"""Of a version's checksum."""


class JudgeSettings(Config):
    """What most judges read. A subclass adds its own; a setting that a judge does not read is refused, and not passed over."""

    covers: tuple[str, ...] | None = Field(
        None, description="the taxonomy's categories that it judges; none: its own default"
    )
    batch: int = Field(16, gt=0, description="images at once")


class WeightSettings(JudgeSettings):
    """What judges with weights on this machine read."""

    sha256: str | None = Field(
        None, pattern=SHA256, description="the checksum that its weights must have; none: whatever they have"
    )


class NetworkSettings(WeightSettings):
    """What judges read whose network runs in torch."""

    device: str = Field("cpu", description="where its network runs")


Settings = TypeVar("Settings", bound=Config)


def read_settings(kind: type[Settings], config: JudgeConfig) -> Settings:
    """Return a judge's own settings; raise ConfigError that names the first wrong one."""
    try:
        return kind.model_validate(config.settings)
    except ValidationError as error:
        field, message, fix = explain(error.errors(include_url=False, include_input=False)[0])
        raise ConfigError(
            f"{config.name!r}: {field}: {message}",
            field=f"judge.settings.{field}",
            fix=fix.replace(field, f"settings.{field}"),
        ) from None


def known_categories(names: Iterable[str], taxonomy: Taxonomy, field: str) -> None:
    """Raise ConfigError for a category that the taxonomy does not have; ``field`` is the setting that names it."""
    odd = [name for name in names if name not in taxonomy.categories]
    if odd:
        raise ConfigError(
            f"the taxonomy {taxonomy.name!r} has no category {odd[0]!r}",
            field=field,
            fix=f"use some of: {', '.join(taxonomy.categories)}",
        )


def covered(settings: JudgeSettings, default: tuple[str, ...], taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return the categories that a judge scores, in the taxonomy's order.

    Raises:
        ConfigError: ``covers`` names a category that the taxonomy does not have.
    """
    wanted = default if settings.covers is None else settings.covers
    known_categories(settings.covers or (), taxonomy, "judge.settings.covers")
    return tuple(name for name in taxonomy.categories if name in wanted)


def missing_package(judge: str, extra: str, error: ImportError) -> ConfigError:
    """Return the error for a judge whose package is not installed; it names the extra."""
    return ConfigError(
        f"the judge {judge!r} needs a package that is not installed ({error.name or error})",
        field="judge.name",
        fix=f"pip install -e '.[{extra}]', or name another judge",
    )
