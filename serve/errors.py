"""Errors of the endpoint in OpenAI's envelope ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse

ErrorType = Literal["invalid_request_error", "rate_limit_error", "server_error"]
PARAMETER = re.compile(r"[a-z_]{1,40}")
SHOULD_RETRY_HEADER = "x-should-retry"
RETRIED_BY_CLIENTS = (408, 409, 429)
SPREAD = 3
"""The longest Retry-After of a rejection, as a multiple of the shortest."""


class ErrorBody(BaseModel):
    """The error itself, inside the envelope."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(BaseModel):
    """The body of every error response."""

    error: ErrorBody


@dataclass(frozen=True)
class Failure:
    """An error response as a value, so that it crosses process borders without a traceback."""

    status: int
    message: str
    type: ErrorType
    code: str
    param: str | None = None
    retry_after_s: int | None = None

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """Return the response's body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response, with Retry-After where trying again may help.

        OpenAI's clients try 408, 409, 429 and every 5xx again unless the answer says that they should not.
        """
        headers = {"Cache-Control": "no-store"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        elif self.status in RETRIED_BY_CLIENTS or self.status >= 500:
            headers[SHOULD_RETRY_HEADER] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.envelope(), status_code=self.status, headers=headers)


class ApiError(Exception):
    """A request that ends with a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


def invalid(message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400) -> ApiError:
    """Return the error of a request that its sender must fix."""
    return ApiError(Failure(status, message, "invalid_request_error", code, param))


def jittered_delay(least_s: int) -> int:
    """Return seconds to wait, drawn uniformly from ``least_s`` to ``SPREAD`` times as many.

    Without the spread, requests that were rejected together would return together, and the last of them would wait long
    even for its next rejection.
    """
    return random.randint(least_s, SPREAD * least_s)


def busy(least_s: int) -> ApiError:
    """Return the error of a full queue."""
    wait_s = jittered_delay(least_s)
    message = f"the server is at its limit of waiting requests; try again in {wait_s} s"
    return ApiError(Failure(429, message, "rate_limit_error", "queue_full", retry_after_s=wait_s))


def limited(kind: str, per_minute: int, retry_after_s: int) -> ApiError:
    """Return the error of a key that has used up its requests or images per minute."""
    message = f"this key is limited to {per_minute} {kind} per minute; try again in {retry_after_s} s"
    return ApiError(Failure(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after_s=retry_after_s))


def unavailable(least_s: int) -> ApiError:
    """Return the error of a model that is starting, or whose process has just died."""
    wait_s = jittered_delay(least_s)
    message = f"the model is not available at the moment; try again in {wait_s} s"
    return ApiError(Failure(503, message, "server_error", "unavailable", retry_after_s=wait_s))


def timed_out(seconds: float) -> ApiError:
    """Return the error of a request that took longer than the endpoint allows."""
    message = f"the request took longer than {seconds:g} s; ask for fewer images or steps, or try again later"
    return ApiError(Failure(504, message, "server_error", "timeout"))


def model_not_found(known: Sequence[str]) -> ApiError:
    """Return the error of a model that is not served."""
    message = f"no such model; the models are: {', '.join(known)}"
    return invalid(message, param="model", code="model_not_found", status=404)


def content_filtered() -> ApiError:
    """Return the error of a request whose images are all withheld."""
    return invalid("every image of this request was flagged by the output judge and is withheld", code=FILTERED)


FILTERED = "content_filtered"
FILTERED_MESSAGE = "the image was flagged by the output judge and is withheld"
KEY_MISSING = Failure(
    401, "no API key; send it as 'Authorization: Bearer KEY'", "invalid_request_error", "missing_api_key"
)
KEY_UNKNOWN = Failure(401, "the API key is not known here", "invalid_request_error", "invalid_api_key")
KEY_REVOKED = Failure(403, "the API key is revoked", "invalid_request_error", "revoked_api_key")
INTERNAL = Failure(500, "internal error; the server's log has the details", "server_error", "internal_error")


def from_validation(error: ValidationError, known: tuple[str, ...]) -> ApiError:
    """Return the error of a body's first problem; it names the field and never repeats the body's values.

    The name of an unknown parameter is the only part of the body that is repeated, and only when it looks like a name.
    """
    problem: Any = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = str(problem["loc"][0]) if problem["loc"] else None
    if problem["type"] == "json_invalid":
        return invalid("the body is not valid JSON in UTF-8", code="invalid_json")
    if problem["type"] == "extra_forbidden":
        shown = name if name and PARAMETER.fullmatch(name) else None
        return invalid(
            f"unknown parameter; the known ones are: {', '.join(known)}", param=shown, code="unknown_parameter"
        )
    if problem["type"] == "missing":
        return invalid(f"{name} is required", param=name, code="missing_parameter")
    if name not in known:
        return invalid("the body must be a JSON object", code="invalid_json")
    return invalid(f"{name}: {problem['msg']}", param=name)
