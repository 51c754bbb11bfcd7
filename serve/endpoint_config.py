"""The endpoint's settings: the models it offers, its address, its limits and its scaling."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from safety.base import Config
from safety.judges.judge import JudgeConfig

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
BASE = "base"
"""The name of the unaligned model, where it is offered."""
DRAIN_GRACE_S = 5.0
"""How much longer than a request may take the gateway is given to stop."""
CLOSE = "name a file in keys (python -m serve.keys new makes one), or set allow_open"
Example = Annotated[str, Field(min_length=1, max_length=200)]
Pointer = Annotated[str, Field(pattern=NAME)]
Origin = Annotated[str, Field(pattern=r"^(\*|https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?)$")]


class AutoscalingConfig(Config):
    """Bounds of the number of renderers, which follows the number of requests."""

    min: int = Field(1, ge=1, description="replicas kept without requests")
    max: int = Field(ge=1, description="replicas at most")
    target_ongoing: float = Field(
        8.0, gt=0.0, description="requests per replica, rendering and waiting, above which another one is started"
    )

    @model_validator(mode="after")
    def _order(self) -> AutoscalingConfig:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is over max {self.max}; lower it")
        return self


class OutputJudgeConfig(JudgeConfig):
    """The judge that scores finished images, and the action on those that it flags."""

    action: Literal["report", "block"] = Field(
        "report", description="'report' returns scores beside the images; 'block' withholds flagged images as well"
    )


class EndpointConfig(Config):
    """The endpoint's settings.

    This module imports no torch, since the gateway's process reads it.
    """

    app: str = Field("images", pattern=NAME, description="name of the Ray Serve application")
    route_prefix: str = Field("/", pattern=r"^/([A-Za-z0-9._/-]*[A-Za-z0-9._-])?$", description="path it is mounted at")
    pointer: str = Field(
        "aligned", pattern=NAME, description="release pointer to serve; also the model's name in the API"
    )
    models: tuple[Pointer, ...] = Field((), description="further release pointers, served beside the first")
    trusted_keys: tuple[Path, ...] = Field(
        (),
        description="PEM files of Ed25519 public keys: a release that none of them has signed is not loaded; empty: "
        "hashes are enough, and whoever may write to the store may release",
    )
    serve_base: bool = Field(False, description="offer the unaligned base model too, as 'base', in the API")
    page_base: bool = Field(
        False, description="show the unaligned base model on the page too, side by side; needs serve_base"
    )
    reload_poll_s: float | None = Field(
        10.0, gt=0.0, description="how often the pointers are read for a new release; None: never"
    )
    host: str = Field("127.0.0.1", description="address that Serve's proxy binds")
    port: int = Field(8000, ge=1, le=65535)
    keys: Path | None = Field(
        None, description="file of API keys, made by 'python -m serve.keys'; None: no key is asked for"
    )
    allow_open: bool = Field(
        False,
        description="serve without asking for a key where others reach it: by host, and by the address that Serve is "
        "found to listen on (http_options, also of a RayService)",
    )
    allowed_origins: tuple[Origin, ...] = Field(
        (), description="origins of web pages that may use the API from a browser (CORS), or '*'; none: no other page"
    )
    judge: OutputJudgeConfig | None = Field(None, description="judge of finished images; None: they are not judged")
    log_prompts: bool = Field(False, description="put prompts into the log of requests")

    default_steps: int = Field(6, ge=1)
    max_steps: int = Field(50, ge=1)
    default_guidance: float = Field(2.5, ge=0.0)
    max_guidance: float = Field(20.0, ge=0.0)
    max_images: int = Field(4, ge=1, description="most images one request may ask for")
    min_side: int | None = Field(None, ge=1, description="smallest side in pixels; None: half the model's native side")
    max_side: int | None = Field(None, ge=1, description="largest side in pixels; None: twice the model's native side")
    max_pixels: int = Field(2048 * 2048, ge=1, description="most pixels of one image")
    resize: Literal["lanczos", "nearest"] | None = Field(
        None,
        description="how an image is scaled to a size that the model does not draw, from one of its own; None: such "
        "sizes are refused",
    )
    data_urls: bool = Field(
        False,
        description="offer response_format 'url' by data: URLs, and add them where none is named, for clients that read "
        "an image's url alone",
    )
    max_prompt_chars: int = Field(1000, ge=1)
    max_body_bytes: int = Field(65536, ge=1024, description="a longer request body is refused before it is parsed")

    batch_size: int = Field(8, ge=1, description="most images rendered together")
    exact_batch: int | None = Field(
        None,
        ge=1,
        description="images are drawn in batches of exactly this many, filled up, so that an image's bytes do not "
        "depend on what is drawn beside it; 1: each by itself. None: batches as they come, up to rounding",
    )
    batch_wait_s: float = Field(
        0.02, ge=0.0, description="how long a batch that is not full waits for one more image, after each that arrived"
    )
    max_queued_requests: int = Field(32, ge=1, description="requests that may wait; one more is refused with 429")
    retry_after_s: int = Field(
        2,
        ge=1,
        description="least Retry-After of a rejection; each is one to three times it, at random, to spread retries",
    )
    request_timeout_s: float = Field(60.0, gt=0.0, description="a request that takes longer ends with 504")

    replicas: int = Field(1, ge=1, description="processes that hold the models; not used with autoscaling")
    autoscaling: AutoscalingConfig | None = Field(None, description="None: a fixed number of replicas")
    surge: bool = Field(
        True,
        description="a redeploy starts each new renderer before the old one stops, which needs resources for one more",
    )
    health_interval_s: float = Field(
        30.0, gt=0.0, description="a replica that rendered nothing for this long is tested"
    )
    health_timeout_s: float = Field(60.0, gt=0.0, description="a replica whose trial render takes longer is replaced")
    num_cpus: float = Field(1.0, ge=0.0, description="CPUs that a replica reserves")
    num_gpus: float = Field(0.0, ge=0.0, description="GPUs that a replica reserves")
    threads: int | None = Field(None, ge=1, description="torch threads of a replica; None: as many as its CPUs")
    start_timeout_s: float = Field(300.0, gt=0.0, description="longest wait for the endpoint to start")
    examples: tuple[Example, ...] = Field((), description="prompts that the page offers")

    @model_validator(mode="after")
    def _defaults_are_allowed(self) -> EndpointConfig:
        pairs = (("steps", self.default_steps, self.max_steps), ("guidance", self.default_guidance, self.max_guidance))
        for name, default, most in pairs:
            if default > most:
                raise ValueError(f"default_{name} is {default}, over max_{name} {most}; lower it")
        if self.min_side is not None and self.max_side is not None and self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is over max_side {self.max_side}; lower it")
        return self

    @model_validator(mode="after")
    def _page_shows_what_is_offered(self) -> EndpointConfig:
        if self.page_base and not self.serve_base:
            raise ValueError("page_base shows a model that is not offered; set serve_base too, or leave page_base out")
        return self

    @model_validator(mode="after")
    def _models_have_names_of_their_own(self) -> EndpointConfig:
        if BASE in self.pointers:
            raise ValueError(f"{BASE!r} is the base model's name; name release pointers in pointer and models")
        if len(set(self.pointers)) < len(self.pointers):
            raise ValueError("pointer and models name a release pointer twice; name each once")
        return self

    @model_validator(mode="after")
    def _open_only_on_purpose(self) -> EndpointConfig:
        if self.opens(self.host):
            raise ValueError(f"host {self.host!r} can be reached by others and no key is asked for; {CLOSE}")
        return self

    def opens(self, host: str) -> bool:
        """Return whether the endpoint, listening on ``host``, is open to others although nobody has said so."""
        return self.keys is None and not self.allow_open and not is_loopback(host)

    @property
    def pointers(self) -> tuple[str, ...]:
        """Return the release pointers to serve, the default model's first."""
        return (self.pointer, *self.models)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all models served."""
        return (*self.pointers, BASE) if self.serve_base else self.pointers

    @property
    def renderer_slots(self) -> int:
        """Return how many requests a replica accepts.

        One batch renders while the next one gathers; more would only wait outside the bounded queue.
        """
        return 2 * self.batch_size

    @property
    def slots(self) -> int:
        """Return how many requests all replicas accept together.

        While fewer replicas run than the maximum, the rest of these requests wait in Serve's own queue, and Serve
        starts more replicas by its length.
        """
        return (self.replicas if self.autoscaling is None else self.autoscaling.max) * self.renderer_slots

    @property
    def node_drain_s(self) -> float:
        """Return how long a node that is told to stop must drain, so that all it has accepted is answered.

        Serve stops a replica that it cannot move, and with it the renderer that accepted requests still wait for, as
        long before the end of the drain as the replica is given to stop. Until then the requests must be answered.
        """
        return 2 * (self.request_timeout_s + DRAIN_GRACE_S)

    @property
    def max_requests(self) -> int:
        """Return the largest number of requests in flight, waiting ones included."""
        return self.slots + self.max_queued_requests


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from its own machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
