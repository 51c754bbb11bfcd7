"""The HTTP application over a backend: keys, parsing, limits, time-outs and the error envelope. No Ray, no torch."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from serve.access import Access
from serve.admission import CAPACITY_HEADER, Capacity
from serve.draining import Drain
from serve.endpoint_config import EndpointConfig
from serve.errors import (
    FILTERED,
    FILTERED_MESSAGE,
    INTERNAL,
    SHOULD_RETRY_HEADER,
    ApiError,
    ErrorEnvelope,
    content_filtered,
    invalid,
    model_not_found,
    timed_out,
)
from serve.keys import KeyEntry
from serve.page import PAGE_HEADERS, render_page
from serve.request_log import REQUEST_ID_HEADER, Observer, RequestRecord, given_id, new_id
from serve.schema import (
    ImageData,
    ImageRequest,
    ImageResponse,
    ItemError,
    Job,
    ModelInfo,
    ModelList,
    RenderedImage,
    parse_request,
    resolve,
)

logger = logging.getLogger(__name__)

HEALTH_TIMEOUT_S = 5.0
API_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}
GONE = "client_gone"
REFUSALS = (400, 401, 403, 404, 413, 415, 429, 500, 503, 504)


class Backend(Protocol):
    """The renderer behind the application: replicas of Ray Serve, or in tests an engine in the same process."""

    def require_capacity(self) -> None:
        """Raise ApiError 429 when ``generate`` is known to raise it; costs nothing."""

    async def generate(self, job: Job) -> list[RenderedImage]:
        """Return a job's images in order; raise ApiError.

        A backend whose call is cancelled says later how much of the job is not rendered (``Access.settle_images``).
        """

    async def models(self) -> list[ModelInfo]:
        """Return the models that are served; raise ApiError."""

    async def healthy(self) -> bool:
        """Return whether renders can be expected to succeed."""


Answer = Callable[[Request, RequestRecord, KeyEntry | None], Awaitable[Response]]


class ImagesApi:
    """Answers requests, and passes a record of each to an observer."""

    def __init__(
        self, config: EndpointConfig, backend: Backend, access: Access, observer: Observer, drain: Drain
    ) -> None:
        self._config, self._backend, self._access, self._observer = config, backend, access, observer
        self._drain = drain

    async def answer(
        self, request: Request, answer: Answer, admitted_headers: Mapping[str, str] = MappingProxyType({})
    ) -> Response:
        """Admit a request, return its answer or the error envelope, and pass the record to the observer.

        Internal errors go to the log only. The answer to an admitted caller carries ``admitted_headers``, whatever its
        status.
        """
        given = given_id(request.scope["headers"])
        record = RequestRecord(given or new_id(), request.url.path)
        started = time.perf_counter()
        # A caller that hangs up cancels this coroutine, and these values stay.
        record.status, record.code = 499, GONE
        try:
            response = await self._answered(request, record, answer, admitted_headers)
            record.status = response.status_code
        finally:
            record.latency_s = time.perf_counter() - started
            self._observer.observe(record)
        if given is None:
            response.headers[REQUEST_ID_HEADER] = record.request_id
        return response

    async def _answered(
        self, request: Request, record: RequestRecord, answer: Answer, admitted_headers: Mapping[str, str]
    ) -> Response:
        admitted, key = False, None
        try:
            key = self._access.admit(request.headers.get("authorization"))
            record.key, admitted = None if key is None else key.name, True
            response = await answer(request, record, key)
            record.code = "ok"
        except ApiError as error:
            if admitted and error.failure.retry_after_s is not None:
                # Refused for want of capacity or images: nothing was done for it.
                self._access.refund_request(key)
            record.code, response = error.failure.code, error.failure.response()
        except Exception:
            logger.exception("the request %s failed", record.request_id)
            record.code, response = INTERNAL.code, INTERNAL.response()
        if admitted:
            response.headers.update(admitted_headers)
        return response

    async def models(self, *_: object) -> Response:
        """Answer with the models that are served."""
        return JSONResponse(ModelList(data=await self._models()).model_dump(), headers=API_HEADERS)

    async def model(self, request: Request, *_: object) -> Response:
        """Answer with one of the models that are served."""
        models = {model.id: model for model in await self._models()}
        found = models.get(request.path_params["name"])
        if found is None:
            raise model_not_found(list(models))
        return JSONResponse(found.model_dump(), headers=API_HEADERS)

    async def _models(self) -> list[ModelInfo]:
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                return await self._backend.models()
        except TimeoutError:
            raise timed_out(self._config.request_timeout_s) from None

    async def generate(self, request: Request, record: RequestRecord, key: KeyEntry | None) -> Response:
        """Answer with the images that a request asks for."""
        config = self._config
        # Before the body is read: under load, the cost of a rejection delays the requests that wait for an image.
        self._backend.require_capacity()
        try:
            with self._drain.request():
                # The body's arrival counts too: a slow sender must not hold a slot.
                async with asyncio.timeout(config.request_timeout_s):
                    job = resolve(parse_request(await read_body(request, config.max_body_bytes)), config)
                    self._note_job(record, job)
                    images = await self._rendered(job, key)
        except TimeoutError:
            raise timed_out(config.request_timeout_s) from None
        _note_images(record, images)
        if all(image.png is None for image in images):
            raise content_filtered()
        body = _image_response(job, images).model_dump(exclude_none=True)
        return JSONResponse(body, headers=API_HEADERS)

    async def _rendered(self, job: Job, key: KeyEntry | None) -> list[RenderedImage]:
        """Return a job's images; the key is charged for those that are rendered, whether the caller waits or not."""
        self._access.charge_images(key, job.n, job.id)
        try:
            images = await self._backend.generate(job)
        except Exception:
            self._access.settle_images(job.id, job.n)
            raise
        # A caller that gives up raises CancelledError: the backend then settles the charge by what is rendered.
        self._access.settle_images(job.id, 0)
        return images

    def _note_job(self, record: RequestRecord, job: Job) -> None:
        # A caller can put anything into the model's name, so only the names of served models are recorded.
        record.model = job.model if job.model in self._config.names else None
        record.n, record.seed, record.steps, record.guidance = job.n, job.seed, job.steps, job.guidance
        record.size = f"{job.width}x{job.height}" if job.width else None
        record.prompt = job.prompt if self._config.log_prompts else None


def _note_images(record: RequestRecord, images: Sequence[RenderedImage]) -> None:
    record.size = f"{images[0].width}x{images[0].height}"
    record.release, record.batch = images[0].release, images[0].batch
    record.images = sum(image.png is not None for image in images)
    record.withheld = len(images) - record.images
    record.flagged = sum(image.verdict is not None and image.verdict.flagged for image in images)


def _image_response(job: Job, images: Sequence[RenderedImage]) -> ImageResponse:
    first = images[0]
    return ImageResponse(
        created=int(time.time()),
        model=job.model,
        release=first.release,
        size=f"{first.width}x{first.height}",
        judge=first.judge,
        data=[_image_data(image, job.forms) for image in images],
    )


def _image_data(image: RenderedImage, forms: Set[str]) -> ImageData:
    verdict = image.verdict
    encoded = None if image.png is None else base64.b64encode(image.png).decode()
    return ImageData(
        b64_json=encoded if "b64_json" in forms else None,
        url=f"data:image/png;base64,{encoded}" if encoded is not None and "url" in forms else None,
        seed=image.seed,
        flagged=None if verdict is None else verdict.flagged,
        scores=None if verdict is None else {name: round(score, 4) for name, score in verdict.scores.items()},
        error=ItemError(code=FILTERED, message=FILTERED_MESSAGE) if image.png is None else None,
    )


def make_api(
    config: EndpointConfig, backend: Backend, access: Access, observer: Observer, drain: Drain | None = None
) -> FastAPI:
    """Return the application: the images API, the list of models, health, and the page.

    Health and page ask for no key. ``drain`` lets its owner wait for the requests in flight.
    """
    # FastAPI's own documentation pages load scripts from elsewhere; the schema stays.
    api = FastAPI(title="SafetyDPO images", version="1", docs_url=None, redoc_url=None)
    _add_error_handlers(api)
    if config.allowed_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=["GET", "POST"],
            # OpenAI's browser client sends headers of its own, under many names.
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, "Retry-After", SHOULD_RETRY_HEADER],
        )
    images = ImagesApi(config, backend, access, observer, drain or Drain())
    capacity = {CAPACITY_HEADER: Capacity(config.max_requests, config.retry_after_s).header()}
    body = {"required": True, "content": {"application/json": {"schema": ImageRequest.model_json_schema()}}}
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": ErrorEnvelope} for status in REFUSALS}

    @api.post(
        "/v1/images/generations",
        response_model=ImageResponse,
        response_model_exclude_none=True,
        responses=refusals,
        openapi_extra={"requestBody": body},
    )
    async def generate(request: Request) -> Response:
        return await images.answer(request, images.generate, capacity)

    @api.get("/v1/models", response_model=ModelList, responses=refusals)
    async def models(request: Request) -> Response:
        return await images.answer(request, images.models)

    @api.get("/v1/models/{name}", response_model=ModelInfo, responses=refusals)
    async def model(request: Request) -> Response:
        return await images.answer(request, images.model)

    @api.get("/healthz", responses={503: {"description": "no renderer runs"}})
    async def health() -> Response:
        try:
            healthy = await asyncio.wait_for(backend.healthy(), HEALTH_TIMEOUT_S)
        except Exception:
            logger.exception("the health check failed")
            healthy = False
        return JSONResponse({"status": "ok" if healthy else "unhealthy"}, 200 if healthy else 503, API_HEADERS)

    @api.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        return HTMLResponse(render_page(config), headers=PAGE_HEADERS)

    return api


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body; raise ApiError 413 as soon as it is known to be over ``limit`` bytes, 415 when it is no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # This also stops plain forms of other web sites from using this machine.
        raise invalid("the body must be sent as application/json", code="unsupported_media_type", status=415)
    too_large = invalid(f"the body is over {limit} bytes", code="body_too_large", status=413)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > limit:
                raise too_large
    except ClientDisconnect:
        raise invalid("the body did not arrive whole", code="body_cut_short") from None
    if not received and "upgrade" in request.headers:
        # Without this project's middlewares (serve/admission.py), Serve's HTTP server loses such a body.
        raise invalid("the body did not arrive; send the request without the header Upgrade", code="body_cut_short")
    return bytes(received)


def _add_error_handlers(api: FastAPI) -> None:
    """Put the framework's own errors (no such path, wrong method) into the envelope."""

    async def refuse(_: Request, error: Any) -> Response:
        message = {404: "there is no such path", 405: "this path does not take that method"}.get(
            error.status_code, "the request is refused"
        )
        code = HTTP_CODES.get(error.status_code, "refused")
        response = invalid(message, code=code, status=error.status_code).failure.response()
        response.headers.update(error.headers or {})
        return response

    api.add_exception_handler(HTTPException, refuse)
