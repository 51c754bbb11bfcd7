"""The health check that renders: what it costs, what it finds, and what it waits for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serve.endpoint_config import EndpointConfig
from serve.engine import Engine
from serve.schema import Job

CONFIG = EndpointConfig(health_interval_s=0.2, health_timeout_s=0.5, batch_size=4)


@pytest.fixture
def own(engine: Engine) -> Engine:
    return Engine(engine._models, CONFIG)


def check(engine: Engine, config: EndpointConfig = CONFIG) -> None:
    asyncio.run(engine.check_renders(config.health_interval_s, config.health_timeout_s))


def test_an_engine_that_renders_is_healthy_and_one_that_just_did_is_not_asked(own: Engine) -> None:
    assert own.idle_s() == float("inf")
    check(own, CONFIG.model_copy(update={"health_timeout_s": 60.0}))
    first = own.idle_s()
    check(own, CONFIG.model_copy(update={"health_interval_s": 60.0}))
    assert own.idle_s() > first, "nothing was rendered for the second check"


def test_an_engine_whose_model_fails_is_unhealthy(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: device-side assert")

    monkeypatch.setattr(own._models["base"].family, "sample", fail)
    with pytest.raises(RuntimeError, match="'base' cannot render"):
        check(own, CONFIG.model_copy(update={"health_timeout_s": 60.0}))


def test_an_engine_that_hangs_is_unhealthy_in_time(own: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(own._models["aligned"].family, "sample", lambda *_, **__: release.wait(20))
    batch = threading.Thread(target=own.render, args=(own.admit(Job("a house", "aligned", 1, 0, 1, 3.0)),))
    batch.start()

    async def timed() -> None:
        with pytest.raises(TimeoutError):
            await own.check_renders(CONFIG.health_interval_s, CONFIG.health_timeout_s)
        release.set()

    asyncio.run(timed())
    batch.join(20)
    assert not batch.is_alive()
