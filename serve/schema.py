"""Request and response bodies, those of OpenAI's images API, and the conversion of a request into a job."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field, replace
from types import MappingProxyType
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
    """The body of ``POST /v1/images/generations``.

    Beside the fields that are used, it takes those that clients of OpenAI's API send, as far as they ask for nothing
    else than what is done. Null stands for an absent field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, description="description of the images")
    negative_prompt: str | None = Field(None, description="description of what the images should not show")
    model: str | None = Field(
        None, min_length=1, max_length=128, description="a name from /v1/models; default: the aligned model"
    )
    n: int | None = Field(None, ge=1, description="number of images; default 1")
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, or 'auto' for the model's native size")
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="b64_json; url where the endpoint says so"
    )
    seed: int | None = Field(None, ge=0, le=LARGEST_SEED, description="image i is drawn from seed + i; default: random")
    steps: int | None = Field(None, ge=1, description="denoising steps")
    num_inference_steps: int | None = Field(None, ge=1, description="another name of steps")
    guidance: float | None = Field(None, ge=0.0, description="classifier-free guidance scale")
    guidance_scale: float | None = Field(None, ge=0.0, description="another name of guidance")
    user: str | None = Field(None, max_length=256, description="accepted for compatibility; not used")
    quality: Literal["auto", "standard", "hd", "low", "medium", "high"] | None = Field(
        None, description="accepted for compatibility; not used: steps decides"
    )
    style: Literal["vivid", "natural"] | None = Field(
        None, description="accepted for compatibility; not used: the prompt decides"
    )
    moderation: Literal["auto", "low"] | None = Field(
        None, description="accepted for compatibility; not used: the endpoint's policy holds for everyone"
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        None, description="images are opaque: 'auto' or 'opaque'"
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="only png is offered")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="accepted for compatibility; not used: PNG loses nothing"
    )
    stream: bool | None = Field(None, description="only false is offered")
    partial_images: int | None = Field(None, ge=0, description="only 0 is offered")


OFFERED: MappingProxyType[str, tuple[object, ...]] = MappingProxyType(
    {
        "response_format": ("b64_json",),
        "background": ("auto", "opaque"),
        "output_format": ("png",),
        "stream": (False,),
        "partial_images": (0,),
    }
)
"""The values that are served, of fields whose other values ask for something else."""
OTHER_NAMES = MappingProxyType({"num_inference_steps": "steps", "guidance_scale": "guidance"})


class ItemError(BaseModel):
    """The reason why an image is withheld, while others of its request are not."""

    code: str
    message: str


class ImageData(BaseModel):
    """One image of a response; the fields that do not apply are left out."""

    b64_json: str | None = Field(None, description="a PNG file in base64; left out when the image is withheld")
    url: str | None = Field(None, description="the same as a data: URL, where it is offered and asked for")
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
    """A request within the endpoint's limits: ``n`` images, image i from ``seed + i``. Sides None: native.

    ``id`` names the job to the renderer that draws it when its caller has given up; ``forms`` are the fields in which the
    answer holds the images.
    """

    prompt: str
    model: str
    n: int
    seed: int
    steps: int
    guidance: float
    width: int | None = None
    height: int | None = None
    negative: str | None = None
    id: str = field(default="", compare=False)
    forms: frozenset[str] = field(default=frozenset({"b64_json"}), compare=False)


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
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or "")):
        if len(text) > config.max_prompt_chars:
            raise invalid(
                f"{name} is longer than {config.max_prompt_chars} characters", param=name, code="prompt_too_long"
            )
    if not request.prompt.strip():
        raise invalid("prompt is empty", param="prompt")
    _require_offered(request, config)
    (steps_name, steps), (guidance_name, guidance) = (_either(request, name) for name in OTHER_NAMES)
    job = Job(
        prompt=request.prompt,
        model=request.model or config.pointer,
        n=request.n or 1,
        seed=secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
        steps=config.default_steps if steps is None else int(steps),
        guidance=config.default_guidance if guidance is None else guidance,
        negative=(request.negative_prompt or "").strip() or None,
        id=secrets.token_hex(8),
        forms=_forms(request, config),
    )
    limits: tuple[tuple[str, float, float], ...] = (
        ("n", job.n, config.max_images),
        (steps_name, job.steps, config.max_steps),
        (guidance_name, job.guidance, config.max_guidance),
        ("seed", job.seed + job.n - 1, LARGEST_SEED),
    )
    for name, value, most in limits:
        if value > most:
            raise invalid(f"{name} is over the limit of {most}", param=name)
    return _sized(job, request.size, config.max_pixels)


def _require_offered(request: ImageRequest, config: EndpointConfig) -> None:
    """Refuse what is not done, and say what is."""
    for name, offered in OFFERED.items():
        value = getattr(request, name)
        if name == "response_format" and config.data_urls:
            continue
        if value is not None and value not in offered:
            choices = " or ".join(json.dumps(choice) for choice in offered)
            raise invalid(f"{name} {json.dumps(value)} is not offered; use {choices}", param=name)


def _forms(request: ImageRequest, config: EndpointConfig) -> frozenset[str]:
    """Return the fields in which the answer holds the images; without data URLs always base64."""
    if request.response_format is not None:
        return frozenset({request.response_format})
    return frozenset({"b64_json", "url"} if config.data_urls else {"b64_json"})


def _either(request: ImageRequest, other: str) -> tuple[str, float | None]:
    """Return a setting that has two names, and the name by which the request gives it."""
    name = OTHER_NAMES[other]
    value, same = getattr(request, name), getattr(request, other)
    if value is not None and same is not None and value != same:
        raise invalid(f"{other} is another name of {name}, and the two differ; send one of them", param=other)
    return (name, value) if same is None else (other, same)


def _sized(job: Job, size: str | None, max_pixels: int) -> Job:
    """Return the job with the sides that ``size`` asks for."""
    if size in (None, "auto"):
        return job
    match = SIZE.fullmatch(size or "")
    if match is None:
        raise invalid("size must be WIDTHxHEIGHT in pixels, such as 64x64, or 'auto'", param="size")
    width, height = int(match[1]), int(match[2])
    if width * height > max_pixels:
        raise invalid(f"size is over {max_pixels} pixels; ask for a smaller one, or for 'auto'", param="size")
    return replace(job, width=width, height=height)
