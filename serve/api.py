"""The HTTP application over a backend: parsing, limits, time-outs and the error envelope. No Ray, no torch."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response

from cluster.endpoint import EndpointConfig
from serve.errors import INTERNAL, ApiError, invalid, timed_out
from serve.page import PAGE_HEADERS, render_page
from serve.schema import (
    ImageData,
    ImageRequest,
    ImageResponse,
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


class Backend(Protocol):
    """What renders for the application: replicas behind Ray Serve, or an engine in the same process in tests."""

    async def generate(self, job: Job) -> list[RenderedImage]:
        """Return a job's images in order; raise ApiError."""

    async def models(self) -> list[ModelInfo]:
        """Return what is served; raise ApiError."""

    async def healthy(self) -> bool:
        """Say whether renders can be expected to succeed."""


def make_api(config: EndpointConfig, backend: Backend) -> FastAPI:
    """Return the application: the images API, the list of models, health, and the page."""
    # FastAPI's own documentation pages load scripts from elsewhere; the schema stays.
    api = FastAPI(title="SafetyDPO images", version="1", docs_url=None, redoc_url=None)
    _add_error_handlers(api)
    body = {"required": True, "content": {"application/json": {"schema": ImageRequest.model_json_schema()}}}

    @api.post("/v1/images/generations", response_model=ImageResponse, openapi_extra={"requestBody": body})
    async def generate(request: Request) -> Response:
        return await _guarded(lambda: _generate(request, config, backend))

    @api.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        async def listed() -> Response:
            found = ModelList(data=await asyncio.wait_for(backend.models(), config.request_timeout_s))
            return JSONResponse(found.model_dump(), headers=API_HEADERS)

        return await _guarded(listed)

    @api.get("/healthz")
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


async def _guarded(answer: Callable[[], Awaitable[Response]]) -> Response:
    """Return an answer, or the envelope of what went wrong; what is not the caller's business goes to the log."""
    try:
        return await answer()
    except ApiError as error:
        return error.failure.response()
    except Exception:
        logger.exception("a request failed")
        return INTERNAL.response()


async def _generate(request: Request, config: EndpointConfig, backend: Backend) -> Response:
    try:
        # The body's arrival counts too: a sender who dawdles must not hold a slot.
        async with asyncio.timeout(config.request_timeout_s):
            job = resolve(parse_request(await read_body(request, config.max_body_bytes)), config)
            images = await backend.generate(job)
    except TimeoutError:
        raise timed_out(config.request_timeout_s) from None
    answer = ImageResponse(
        created=int(time.time()),
        model=job.model,
        size=f"{images[0].width}x{images[0].height}",
        data=[ImageData(b64_json=base64.b64encode(image.png).decode(), seed=image.seed) for image in images],
    )
    return JSONResponse(answer.model_dump(), headers=API_HEADERS)


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body; raise ApiError 413 as soon as it is known to be over ``limit`` bytes, 415 for no JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # This also keeps other sites' plain forms from spending this machine's time.
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
    return bytes(received)


def _add_error_handlers(api: FastAPI) -> None:
    """Put the framework's own refusals (no such path, wrong method) into the envelope."""

    async def refuse(_: Request, error: Any) -> Response:
        message = {404: "there is no such path", 405: "this path does not take that method"}.get(
            error.status_code, "the request is refused"
        )
        code = HTTP_CODES.get(error.status_code, "refused")
        response = invalid(message, code=code, status=error.status_code).failure.response()
        response.headers.update(error.headers or {})
        return response

    api.add_exception_handler(HTTPException, refuse)
