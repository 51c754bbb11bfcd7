"""The endpoint's HTTP application over a backend in the same process, and a client that asks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from safety.judges.judge import JudgeIdentity, Verdict
from serve.access import Access
from serve.api import make_api
from serve.endpoint_config import EndpointConfig
from serve.errors import busy
from serve.request_log import JsonLog, Observers, RequestRecord
from serve.schema import Job, ModelInfo, RenderedImage

CONFIG = EndpointConfig(max_prompt_chars=50, max_images=3, max_steps=20, max_body_bytes=4096, request_timeout_s=0.5)
PATH = "/v1/images/generations"
JUDGE = JudgeIdentity(name="emoji", version="1", threshold=0.5)


class EchoBackend:
    """A backend whose images state the job's seed."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.error: Exception | None = None
        self.delay = 0.0
        self.cancelled = False
        self.flagged: list[bool] | None = None
        self.block = False
        self.full = False

    def require_capacity(self) -> None:
        if self.full:
            raise busy(3)

    async def generate(self, job: Job) -> list[RenderedImage]:
        self.jobs.append(job)
        if self.error is not None:
            raise self.error
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return [self._image(job, i) for i in range(job.n)]

    def _image(self, job: Job, i: int) -> RenderedImage:
        flagged = None if self.flagged is None else self.flagged[i]
        return RenderedImage(
            png=None if flagged and self.block else f"{job.seed + i}".encode(),
            seed=job.seed + i,
            width=job.width or 16,
            height=job.height or 16,
            release="release-1",
            batch=job.n,
            judge=None if flagged is None else JUDGE,
            verdict=None if flagged is None else Verdict({"violence": 0.9 if flagged else 0.1}, flagged, None, None),
        )

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(id="aligned", created=5, release="release-1", size="16x16", aligned=True)]

    async def healthy(self) -> bool:
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.delay)
        return True


Ask = Callable[..., httpx.Response]


class Records:
    """An observer that keeps the records."""

    def __init__(self) -> None:
        self.seen: list[RequestRecord] = []

    def observe(self, record: RequestRecord) -> None:
        self.seen.append(record)


def caller(config: EndpointConfig, backend: EchoBackend, access: Access, records: Records) -> Ask:
    """Return a function that sends a request to the application."""
    api = make_api(config, backend, access, Observers([records, JsonLog()]))
    transport = httpx.ASGITransport(api, raise_app_exceptions=True)

    def send(method: str = "POST", path: str = PATH, **kwargs: Any) -> httpx.Response:
        async def go() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(go())

    return send


def failure(response: httpx.Response) -> dict[str, Any]:
    """Return a response's error after checking that its body is the envelope and nothing else."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert len(response.content) < 2048
    error: dict[str, Any] = body["error"]
    return error
