"""A store that is busy, slow, cut off in the middle and away for a minute loses nothing and shows nothing half."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.errors import StoreUnreachable
from cluster.lease import lease
from cluster.store.artifacts import ArtifactStore
from cluster.store.pointer import read_pointer, swap_pointer
from tests.faults.faulty_proxy import Faults, FaultyProxy
from tests.faults.figures import Figures
from tests.support.s3_server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FAULTS = Faults(busy=0.2, cut_request=0.05, lost_answer=0.05, cut_answer=0.05)
FILES = {"weights.safetensors": bytes(range(256)) * 2000, "rows.parquet": b"rows" * 999, "card.json": b"{}"}


class Setting(NamedTuple):
    """How hard it is made."""

    faults: Faults
    outage_s: float
    artifacts: int


@pytest.fixture
def setting(full: bool) -> Setting:
    faults = Faults(**{**vars(FAULTS), "latency_s": 0.5 if full else 0.02})
    return Setting(faults, 60.0, 12) if full else Setting(faults, 4.0, 6)


@pytest.fixture
def proxy(s3_server: RunningServer, setting: Setting) -> Iterator[FaultyProxy]:
    found = FaultyProxy(s3_server.port, setting.faults)
    yield found
    found.close()


@pytest.fixture
def store(s3_store: ArtifactStore) -> ArtifactStore:
    """The proxy passes on what it gets to the real server."""
    return s3_store


@pytest.fixture
def behind(store: ArtifactStore, proxy: FaultyProxy) -> ArtifactStore:
    """The same store, seen through the proxy."""
    return ArtifactStore(store.config.model_copy(update={"endpoint": proxy.endpoint}))


def source(folder: Path, number: int) -> Path:
    place = folder / f"source-{number}"
    place.mkdir()
    for name, data in FILES.items():
        (place / name).write_bytes(data + str(number).encode())
    return place


class Witness:
    """Looks at the store past the proxy all the time: what it can see must be whole."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store, self.looks, self.seen = store, 0, set[str]()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self._watching = self._pool.submit(self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            for name in self.store.ids("expert"):
                self.store.verify("expert", name)
                self.seen.add(name)
                self.looks += 1

    def close(self) -> None:
        """Stop, and raise what was seen half."""
        self._stop.set()
        self._watching.result(timeout=60)
        self._pool.shutdown()


def test_nothing_is_lost_or_half_visible(
    store: ArtifactStore,
    behind: ArtifactStore,
    proxy: FaultyProxy,
    setting: Setting,
    tmp_path: Path,
    figures: Figures,
) -> None:
    started, witness = time.monotonic(), Witness(ArtifactStore(store.config))
    behind.ensure_bucket()
    behind.probe_conditional_writes()
    outage = threading.Timer(2.0, proxy.outage, [setting.outage_s])
    outage.start()
    with lease(behind, "faulty"), ThreadPoolExecutor(4) as pool:

        def publish(number: int) -> None:
            folder = source(tmp_path, number)
            mine = ArtifactStore(behind.config)
            mine.put("expert", f"expert-{number}", folder, config={"n": number}, seed=number)
            for step in range(3):
                mine.write(f"work/expert/expert-{number}/{step}", bytes([step]) * 5000)
            mine.verify("expert", f"expert-{number}")

        list(pool.map(publish, range(setting.artifacts)))
        swap_pointer(behind, "aligned", None, "expert-0")
        swap_pointer(behind, "aligned", "expert-0", "expert-1")
    outage.join()
    witness.close()
    seconds = time.monotonic() - started
    for number in range(setting.artifacts):
        folder = store.fetch("expert", f"expert-{number}", tmp_path / f"copy-{number}")
        for name, data in FILES.items():
            assert (folder / name).read_bytes() == data + str(number).encode()
        for step in range(3):
            assert store.read(f"work/expert/expert-{number}/{step}") == bytes([step]) * 5000
    assert read_pointer(store, "aligned") == "expert-1"
    assert store.keys("leases/") == [], "the lease was given back"
    assert store.keys("probe/") == []
    assert witness.seen == {f"expert-{number}" for number in range(setting.artifacts)}
    assert seconds > setting.outage_s, "the outage was sat out"
    for fault in ("busy", "cut_request", "lost_answer", "cut_answer", "outage"):
        assert proxy.seen[fault], f"no request met {fault}"
    failed = sum(count for name, count in proxy.seen.items() if name != "passed")
    figures.note(
        "S3 through a faulty proxy: 20% 503, resets in bodies and answers, latency, outage",
        f"{setting.artifacts} artifacts whole, {witness.looks} looks past the proxy saw nothing half; {failed} of "
        f"{proxy.seen.total()} requests failed, {setting.faults.latency_s * 1000:g} ms latency, "
        f"{setting.outage_s:g} s outage",
        seconds=round(seconds),
        **proxy.seen,
    )


def test_a_store_that_stays_away_is_reported_when_patience_ends(behind: ArtifactStore, proxy: FaultyProxy) -> None:
    proxy.away = True
    impatient = ArtifactStore(behind.config.model_copy(update={"patience_s": 2.0}))
    started = time.monotonic()
    with pytest.raises(StoreUnreachable, match=r"store\.endpoint: .*does not answer.*Fix: check the address"):
        impatient.read("anything")
    assert 2.0 <= time.monotonic() - started < 20.0


def test_the_proxy_by_itself_changes_nothing(
    store: ArtifactStore, s3_server: RunningServer, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    """Signatures hold through it, and every fault of the tests above is its faults' doing."""
    clean = FaultyProxy(s3_server.port, Faults())
    through = ArtifactStore(store.config.model_copy(update={"endpoint": clean.endpoint, "patience_s": 0.001}))
    for number in range(times(20, 3)):
        through.put("expert", f"expert-{number}", source(tmp_path, number), config={}, seed=0)
        through.verify("expert", f"expert-{number}")
    assert set(clean.seen) == {"passed"}
    clean.close()
