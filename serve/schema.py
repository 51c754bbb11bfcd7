"""Request and response bodies, those of OpenAI's images API, and the conversion of a request into a job."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from safety.judges.judge import JudgeIdentity, Verdict
from serve.endpoint_config import EndpointConfig
from serve.errors import from_validation, invalid

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
LARGEST_SEED = 2**63 - 1
DRAWN_SEEDS = 2**32
"""Seeds drawn by the server stay below this, so that any JSON reader keeps them exact."""


class ImageRequest(BaseModel):
    """The body of ``POST /v1/images/generations``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, description="description of the images")
    model: str | None = Field(
        None, min_length=1, max_length=128, description="a name from /v1/models; default: the aligned model"
    )
    n: int | None = Field(None, ge=1, description="number of images; default 1")
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, or 'auto' for the model's native size")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="only b64_json is offered")
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="image i is drawn from seed + i; default: random")
    steps: int | None = Field(None, ge=1, description="denoising steps")
    guidance: float | None = Field(None, ge=0.0, description="classifier-free guidance scale")
    user: str | None = Field(None, max_length=256, description="accepted for compatibility; not used")


class ItemError(BaseModel):
    """The reason why an image is withheld, while others of its request are not."""

    code: str
    message: str


class ImageData(BaseModel):
    """One image of a response; the fields that do not apply are left out."""

    b64_json: str | None = Field(None, description="a PNG file in base64; left out when the image is withheld")
    seed: int = Field(description="the seed that draws this image alone")
    flagged: bool | None = Field(None, description="whether the output judge, where there is one, flags the image")
    scores: dict[str, float] | None = Field(None, description="the output judge's unsafe score by category")
    error: ItemError | None = Field(None, description="why the image is withheld")


class ImageResponse(BaseModel):
    """The answer to ``POST /v1/images/generations``."""

    created: int = Field(description="Unix time in seconds")
    model: str
    release: str | None = Field(None, description="the release that rendered the images; left out for the base model")
    size: str
    output_format: Literal["png"] = "png"
    judge: JudgeIdentity | None = Field(
        None, description="the output judge, where there is one; a score from its threshold on flags an image"
    )
    data: list[ImageData]


class ModelInfo(BaseModel):
    """One entry of ``GET /v1/models``."""

    model_config = ConfigDict(frozen=True)

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time in seconds of the release; 0 for the base model")
    owned_by: str = "safetydpo"
    release: str | None = Field(None, description="the release artifact's id; None for the base model")
    size: str = Field(description="native size, WIDTHxHEIGHT")
    aligned: bool


class ModelList(BaseModel):
    """The answer to ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


@dataclass(frozen=True)
class Job:
    """A request within the endpoint's limits: ``n`` images, image i from ``seed + i``. Sides None: native."""

    prompt: str
    model: str
    n: int
    seed: int
    steps: int
    guidance: float
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class RenderedImage:
    """A finished image: a PNG file, the seed that draws it alone, and its sides in pixels.

    Also the release that drew it, the number of images in its batch, and the output judge with its verdict, where there
    is one. ``png`` is None when the image is withheld.
    """

    png: bytes | None
    seed: int
    width: int
    height: int
    release: str | None = None
    batch: int = 1
    judge: JudgeIdentity | None = None
    verdict: Verdict | None = None


def parse_request(body: bytes) -> ImageRequest:
    """Read a body; raise ApiError that names the field and never repeats the body's values."""
    try:
        return ImageRequest.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error, tuple(ImageRequest.model_fields)) from None


def resolve(request: ImageRequest, config: EndpointConfig) -> Job:
    """Fill in the defaults and check the endpoint's limits; raise ApiError that names the field."""
    if not request.prompt.strip():
        raise invalid("prompt is empty", param="prompt")
    if len(request.prompt) > config.max_prompt_chars:
        raise invalid(
            f"prompt is longer than {config.max_prompt_chars} characters", param="prompt", code="prompt_too_long"
        )
    if request.response_format == "url":
        raise invalid("response_format 'url' is not offered; use 'b64_json'", param="response_format")
    job = Job(
        prompt=request.prompt,
        model=request.model or config.pointer,
        n=request.n or 1,
        seed=secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
        steps=request.steps or config.default_steps,
        guidance=config.default_guidance if request.guidance is None else request.guidance,
    )
    limits: tuple[tuple[str, float, float], ...] = (
        ("n", job.n, config.max_images),
        ("steps", job.steps, config.max_steps),
        ("guidance", job.guidance, config.max_guidance),
        ("seed", job.seed + job.n - 1, LARGEST_SEED),
    )
    for name, value, most in limits:
        if value > most:
            raise invalid(f"{name} is over the limit of {most}", param=name)
    return _sized(job, request.size)


def _sized(job: Job, size: str | None) -> Job:
    """Return the job with the sides that ``size`` asks for."""
    if size in (None, "auto"):
        return job
    match = SIZE.fullmatch(size or "")
    if match is None:
        raise invalid("size must be WIDTHxHEIGHT in pixels, such as 64x64, or 'auto'", param="size")
    return Job(job.prompt, job.model, job.n, job.seed, job.steps, job.guidance, int(match[1]), int(match[2]))
