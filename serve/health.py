"""The health check that renders."""

from __future__ import annotations

import asyncio

from serve.endpoint_config import EndpointConfig
from serve.engine import Engine


async def check_renders(engine: Engine, endpoint: EndpointConfig) -> None:
    """Render with each model, unless images have been rendered within the last interval.

    Raises:
        RuntimeError: A model cannot render.
        TimeoutError: It takes too long, such as behind a batch that hangs.
    """
    if engine.idle_s() < endpoint.health_interval_s:
        return
    async with asyncio.timeout(endpoint.health_timeout_s):
        await asyncio.to_thread(engine.warm_up)
