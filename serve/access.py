"""Access control: API keys, and rate limits per key and minute."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from serve.errors import invalid, limited
from serve.keys import KeyEntry, KeyRing

MINUTE_S = 60.0
MAX_OPEN_CHARGES = 10_000
"""Charges that wait for their settlement; the oldest stands as it is."""


class TokenBucket:
    """A token bucket that refills at ``per_minute`` and holds a minute's worth at most."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level, self._since = float(per_minute), now

    def take(self, amount: int, now: float) -> float:
        """Take an amount and return 0; with too little left, take nothing and return the seconds until there is enough."""
        rate = self.per_minute / MINUTE_S
        self._level = min(float(self.per_minute), self._level + (now - self._since) * rate)
        self._since = now
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return (amount - self._level) / rate

    def give_back(self, amount: int) -> None:
        """Return an amount that was taken and not used."""
        self._level = min(float(self.per_minute), self._level + amount)


class Access:
    """Checks keys and enforces their limits.

    The limits hold per process. The endpoint has one gateway, so they hold for the whole endpoint; they start full
    again when the gateway is replaced.
    """

    def __init__(self, ring: KeyRing | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._ring, self._clock = ring, clock
        self._buckets: dict[tuple[str, str], TokenBucket] = {}
        self._open_charges: OrderedDict[str, tuple[KeyEntry, int]] = OrderedDict()

    def admit(self, authorization: str | None) -> KeyEntry | None:
        """Return the sender's key (None where none is asked for) and count the request; raise ApiError 401, 403 or 429."""
        if self._ring is None:
            return None
        key = self._ring.find(authorization)
        self._take(key, "requests", key.requests_per_minute, 1)
        return key

    def refund_request(self, key: KeyEntry | None) -> None:
        """Return a request that was counted and then refused for want of capacity."""
        self._give_back(key, "requests", 1)

    def charge_images(self, key: KeyEntry | None, count: int, job_id: str = "") -> None:
        """Count a job's images before they are rendered; raise ApiError 429 when the key has too few left this minute.

        The charge stays open until it is settled, so that nobody renders for nothing by hanging up.
        """
        if key is None or key.images_per_minute is None:
            return
        if count > key.images_per_minute:
            raise invalid(f"n is over this key's {key.images_per_minute} images per minute", param="n")
        self._take(key, "images", key.images_per_minute, count)
        if job_id:
            self._open_charges[job_id] = (key, count)
            while len(self._open_charges) > MAX_OPEN_CHARGES:
                self._open_charges.popitem(last=False)

    def settle_images(self, job_id: str, unrendered: int) -> None:
        """Close a job's charge and return its images that were not rendered; a closed charge stays as it is."""
        key, count = self._open_charges.pop(job_id, (None, 0))
        self._give_back(key, "images", min(unrendered, count))

    def _give_back(self, key: KeyEntry | None, kind: str, amount: int) -> None:
        bucket = None if key is None else self._buckets.get((key.sha256, kind))
        if bucket is not None:
            bucket.give_back(amount)

    def _take(self, key: KeyEntry, kind: str, per_minute: int | None, amount: int) -> None:
        if per_minute is None:
            return
        now, name = self._clock(), (key.sha256, kind)
        bucket = self._buckets.get(name)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[name] = TokenBucket(per_minute, now)
        wait_s = bucket.take(amount, now)
        if wait_s > 0.0:
            raise limited(kind, per_minute, max(1, math.ceil(wait_s)))
