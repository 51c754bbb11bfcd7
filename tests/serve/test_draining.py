"""Requests in flight are awaited, and later ones refused, before the endpoint goes."""

from __future__ import annotations

import asyncio

import pytest

from serve.draining import Drain
from serve.errors import ApiError


def test_waits_for_the_last_request_and_lets_no_other_in() -> None:
    async def visit() -> None:
        drain, ended = Drain(), asyncio.Event()

        async def request() -> None:
            with drain.request():
                await ended.wait()

        requests = [asyncio.create_task(request()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting = asyncio.create_task(drain.wait(20.0))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        with pytest.raises(ApiError) as caught, drain.request():
            pass
        assert (caught.value.failure.status, caught.value.failure.retry_after_s is None) == (503, False)
        ended.set()
        assert await waiting is True
        await asyncio.gather(*requests)

    asyncio.run(visit())


def test_an_idle_endpoint_goes_at_once_and_a_slow_request_is_not_awaited_for_ever() -> None:
    async def visit() -> None:
        assert await Drain().wait(20.0) is True
        drain = Drain()
        with drain.request():
            assert await drain.wait(0.01) is False

    asyncio.run(visit())
