"""What a key is charged: images from the moment their batch is cut, whoever still waits for them, and no refusal."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.access import Access
from serve.api import make_api
from serve.backend import RayBackend
from serve.batching import Batcher
from serve.endpoint_config import EndpointConfig
from serve.errors import ApiError, Failure, busy, invalid, unavailable
from serve.job_queue import MAX_KNOWN_JOBS, JobQueue
from serve.keys import KeyRing, new_key
from serve.request_log import Observers
from serve.schema import Job, RenderedImage
from tests.support.echo_endpoint import CONFIG, PATH, EchoBackend, Records, caller, failure

WAIT_S = 20.0
PER_MINUTE = 4


class Renderer:
    """A renderer's job queue in this process, behind calls like those of a Serve handle; its batches can be held."""

    def __init__(self, batch_size: int, batch_s: float = 0.0) -> None:
        self.rendered: list[int] = []
        self.fails_at: int | None = None
        self.reachable = True
        self.open = threading.Event()
        self.open.set()
        self._batch_s = batch_s
        self.jobs = JobQueue(self, Batcher(self._render, batch_size, 0.0))

    def admit(self, job: Job) -> list[Any]:
        return [job.seed + i for i in range(job.n)]

    def _render(self, seeds: Sequence[Any]) -> list[RenderedImage | Failure]:
        self.rendered += seeds
        time.sleep(self._batch_s)
        self.open.wait(WAIT_S)
        failed = invalid("no").failure
        return [failed if seed == self.fails_at else RenderedImage(b"x", seed, 16, 16) for seed in seeds]

    @property
    def generate(self) -> Renderer:
        return self

    def remote(self, job: Job) -> asyncio.Task[Any]:
        return asyncio.create_task(self.jobs.generate(job))

    def broadcast(self, method: str, job_id: str) -> Answers:
        assert method == "abandon"
        if not self.reachable:
            raise RuntimeError("no replica")
        return Answers([None, self.jobs.abandon(job_id)])


class Answers:
    """The answers of two replicas, one of which does not know the job."""

    def __init__(self, answers: list[int | None]) -> None:
        self._answers = answers

    async def results_async(self, **_: object) -> list[int | None]:
        return self._answers


class Endpoint:
    """The application with a key of four images a minute, and the clock of its quota, which stands still."""

    def __init__(self, folder: Path, renderer: Renderer, **settings: Any) -> None:
        config = EndpointConfig.model_validate({"request_timeout_s": WAIT_S, "batch_size": 4, **settings})
        file = folder / "keys.yaml"
        self.renderer, self.key = renderer, new_key(file, "alice", None, PER_MINUTE)
        access = Access(KeyRing(file), lambda: 0.0)
        backend = RayBackend(renderer, config, access.settle_images)
        self._queue = backend._queue
        self._transport = httpx.ASGITransport(make_api(config, backend, access, Observers([])))

    @property
    def waiting(self) -> int:
        """Return the number of requests in the gateway's queue."""
        return self._queue._waiting

    async def ask(self, n: int, seed: int = 0) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(transport=self._transport, base_url="http://test") as client:
            return await client.post(PATH, json={"prompt": "x", "n": n, "seed": seed}, headers=headers)

    async def hang_up_after(self, n: int, seconds: float) -> None:
        """Ask, and give up after a while."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ask(n), seconds)
        await settled()

    async def hang_up_when(self, holds: Callable[[], bool], n: int, seed: int = 0) -> None:
        """Ask, and give up once something holds."""
        task = asyncio.create_task(self.ask(n, seed))
        await until(holds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0.001)


def test_hanging_up_again_and_again_renders_no_more_than_the_key_may(tmp_path: Path) -> None:
    renderer = Renderer(4, batch_s=0.01)

    async def attack() -> None:
        endpoint = Endpoint(tmp_path, renderer)
        for _ in range(40):
            await endpoint.hang_up_after(4, 0.02)
        assert (await endpoint.ask(4)).status_code == 429

    asyncio.run(attack())
    assert len(renderer.rendered) == PER_MINUTE


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.002, 0.005, 0.01])
def test_at_whatever_moment_a_caller_hangs_up_each_image_is_paid_or_not_rendered(
    tmp_path: Path, after_s: float
) -> None:
    renderer = Renderer(1, batch_s=0.003)

    async def attack() -> None:
        endpoint = Endpoint(tmp_path, renderer)
        for _ in range(30):
            await endpoint.hang_up_after(2, after_s)
        await asyncio.sleep(0.05)

    asyncio.run(attack())
    assert len(renderer.rendered) <= PER_MINUTE


def test_one_that_hangs_up_while_it_waits_pays_nothing_and_one_whose_batch_is_cut_pays(tmp_path: Path) -> None:
    renderer = Renderer(4)

    async def visit() -> None:
        endpoint = Endpoint(tmp_path, renderer)
        renderer.open.clear()
        first = asyncio.create_task(endpoint.ask(1, seed=100))
        await until(lambda: renderer.rendered == [100])
        await endpoint.hang_up_when(lambda: len(renderer.jobs._jobs) == 2, 3)  # behind the batch that runs
        renderer.open.set()
        assert (await first).status_code == 200
        renderer.open.clear()
        await endpoint.hang_up_when(lambda: len(renderer.rendered) == 3, 2, seed=200)
        renderer.open.set()
        assert renderer.rendered == [100, 200, 201]
        assert (await endpoint.ask(2)).status_code == 429
        assert (await endpoint.ask(1)).status_code == 200

    asyncio.run(visit())


def test_one_that_hangs_up_in_the_gateways_queue_pays_nothing(tmp_path: Path) -> None:
    renderer = Renderer(1)

    async def visit() -> None:
        endpoint = Endpoint(tmp_path, renderer, batch_size=1)  # two places
        renderer.open.clear()
        others = [asyncio.create_task(endpoint.ask(1, seed)) for seed in (1, 2)]
        await until(lambda: len(renderer.jobs._jobs) == 2)
        await endpoint.hang_up_when(lambda: endpoint.waiting == 1, 2)
        renderer.open.set()
        assert [(await other).status_code for other in others] == [200, 200]
        assert (await endpoint.ask(2, seed=7)).status_code == 200

    asyncio.run(visit())
    assert renderer.rendered == [1, 2, 7, 8]


def test_a_part_that_is_cut_is_paid_and_the_rest_is_given_back_and_not_rendered(tmp_path: Path) -> None:
    renderer = Renderer(1)

    async def visit() -> None:
        endpoint = Endpoint(tmp_path, renderer, batch_size=1)
        renderer.open.clear()
        await endpoint.hang_up_when(lambda: renderer.rendered == [0], 4)
        renderer.open.set()
        assert (await endpoint.ask(3, seed=5)).status_code == 200
        assert renderer.rendered == [0, 5, 6, 7]
        assert (await endpoint.ask(1)).status_code == 429

    asyncio.run(visit())


def test_a_request_that_takes_too_long_pays_for_what_was_rendered_for_it(tmp_path: Path) -> None:
    renderer = Renderer(1)

    async def visit() -> None:
        endpoint = Endpoint(tmp_path, renderer, batch_size=1, request_timeout_s=1.0)
        renderer.open.clear()
        late = await endpoint.ask(4)
        assert (late.status_code, late.headers["x-should-retry"]) == (504, "false")
        await settled()
        renderer.open.set()
        assert (await endpoint.ask(3, seed=5)).status_code == 200
        assert renderer.rendered == [0, 5, 6, 7], "the rest is not rendered"
        assert (await endpoint.ask(1)).status_code == 429

    asyncio.run(visit())


def test_without_the_renderers_word_an_abandoned_job_counts_as_rendered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renderer = Renderer(4)
    renderer.reachable = False

    async def visit() -> None:
        endpoint = Endpoint(tmp_path, renderer)
        renderer.open.clear()
        await endpoint.hang_up_when(lambda: len(renderer.rendered) == 4, 4)
        renderer.open.set()
        assert (await endpoint.ask(1)).status_code == 429

    asyncio.run(visit())
    assert "do not say how much of the abandoned job" in caplog.text


def test_a_job_that_fails_costs_nothing_and_its_other_images_are_not_rendered(tmp_path: Path) -> None:
    renderer = Renderer(1)
    renderer.fails_at = 10

    async def visit() -> None:
        endpoint = Endpoint(tmp_path, renderer)
        assert (await endpoint.ask(4, seed=10)).status_code == 400
        assert (await endpoint.ask(4, seed=20)).status_code == 200
        assert renderer.rendered[0] == 10
        assert len([seed for seed in renderer.rendered if seed < 20]) <= 2

    asyncio.run(visit())


def test_an_abandoned_job_leaves_the_queue_before_serve_cancels_it() -> None:
    renderer = Renderer(1)

    async def visit() -> None:
        renderer.open.clear()
        job = asyncio.create_task(renderer.jobs.generate(Job("x", "aligned", 4, 0, 1, 1.0, id="one")))
        await until(lambda: renderer.rendered == [0])
        assert renderer.jobs.abandon("one") == 3
        renderer.open.set()
        await asyncio.gather(job, return_exceptions=True)
        assert isinstance(await renderer.jobs.generate(Job("x", "aligned", 1, 9, 1, 1.0, id="two")), list)

    asyncio.run(visit())
    assert renderer.rendered == [0, 9]


def test_a_job_that_comes_after_it_was_abandoned_is_not_rendered_and_old_ones_are_forgotten() -> None:
    renderer = Renderer(1)

    async def visit() -> None:
        assert renderer.jobs.abandon("late") is None
        assert isinstance(await renderer.jobs.generate(Job("x", "aligned", 1, 0, 1, 1.0, id="late")), Failure)
        for number in range(MAX_KNOWN_JOBS + 5):
            renderer.jobs.abandon(str(number))
        assert len(renderer.jobs._jobs) == MAX_KNOWN_JOBS

    asyncio.run(visit())
    assert renderer.rendered == []


@pytest.fixture
def limited(tmp_path: Path) -> tuple[EchoBackend, Callable[..., httpx.Response]]:
    """Return a backend, and a client whose key may ask twice a minute for two images."""
    backend, file = EchoBackend(), tmp_path / "keys.yaml"
    key = new_key(file, "alice", 2, 2)
    ask = caller(CONFIG, backend, Access(KeyRing(file), lambda: 0.0), Records())
    return backend, lambda **fields: ask(headers={"authorization": f"Bearer {key}"}, json={"prompt": "x", **fields})


@pytest.mark.parametrize("refusal", [busy(3), unavailable(3)])
def test_a_refusal_for_want_of_capacity_costs_no_request(
    limited: tuple[EchoBackend, Callable[..., httpx.Response]], refusal: ApiError
) -> None:
    backend, ask = limited
    backend.error = refusal
    for _ in range(5):
        assert failure(ask())["code"] in ("queue_full", "unavailable")
    backend.error, backend.full = None, True
    for _ in range(5):
        assert failure(ask())["code"] == "queue_full"
    backend.full = False
    assert [ask().status_code for _ in range(3)] == [200, 200, 429]


def test_a_refusal_for_want_of_images_costs_no_request(
    limited: tuple[EchoBackend, Callable[..., httpx.Response]],
) -> None:
    _, ask = limited
    assert ask(n=2).status_code == 200
    assert {failure(ask())["message"].partition(" per ")[0] for _ in range(3)} == {"this key is limited to 2 images"}


def test_a_wrong_request_costs_one(limited: tuple[EchoBackend, Callable[..., httpx.Response]]) -> None:
    _, ask = limited
    assert [ask(n=0).status_code for _ in range(3)] == [400, 400, 429]


def test_an_answer_that_a_retry_would_only_make_dearer_says_so(
    limited: tuple[EchoBackend, Callable[..., httpx.Response]],
) -> None:
    backend, ask = limited
    backend.error = RuntimeError("out of memory")
    assert (answer := ask()).status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    for refusal in (busy(3), unavailable(3)):
        backend.error = refusal
        answer = ask()
        assert "retry-after" in answer.headers
        assert "x-should-retry" not in answer.headers, "after a while it may be served"
