"""Who may ask for how much: keys, and what each of them may use a minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve.endpoint_config import EndpointConfig
from serve.errors import invalid, limited
from serve.keys import KeyEntry, KeyRing

MINUTE_S = 60.0


class TokenBucket:
    """Gives out so many a minute, at most a minute's worth at once."""

    def __init__(self, per_minute: int, now: float) -> None:
        """Start full."""
        self.per_minute = per_minute
        self._level, self._since = float(per_minute), now

    def take(self, amount: int, now: float) -> float:
        """Take an amount and return 0; or take nothing and return the seconds until there is enough."""
        rate = self.per_minute / MINUTE_S
        self._level = min(float(self.per_minute), self._level + (now - self._since) * rate)
        self._since = now
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return (amount - self._level) / rate

    def give_back(self, amount: int) -> None:
        """Return what was taken and not used."""
        self._level = min(float(self.per_minute), self._level + amount)


@dataclass(frozen=True)
class Caller:
    """Who asks: the entry of the key, or None where no key is asked for."""

    key: KeyEntry | None = None

    @property
    def name(self) -> str | None:
        """Return the key's name."""
        return None if self.key is None else self.key.name


class Access:
    """Checks keys and holds each to its limits.

    The limits are those of one process. The endpoint has one gateway, so that they are the endpoint's; they start
    full again when it is replaced.
    """

    def __init__(self, ring: KeyRing | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Ask for the keys of a ring, or for none."""
        self._ring, self._clock = ring, clock
        self._buckets: dict[tuple[str, str], TokenBucket] = {}

    def admit(self, authorization: str | None) -> Caller:
        """Return who asks, and count the request; raise ApiError 401, 403 or 429."""
        if self._ring is None:
            return Caller()
        key = self._ring.find(authorization)
        self._take(key, "requests", key.requests_per_minute, 1)
        return Caller(key)

    def charge_images(self, caller: Caller, count: int) -> None:
        """Count images that are to be made; raise ApiError 429 when the key has no more of them this minute."""
        if caller.key is None or caller.key.images_per_minute is None:
            return
        if count > caller.key.images_per_minute:
            raise invalid(f"n is over this key's {caller.key.images_per_minute} images a minute", param="n")
        self._take(caller.key, "images", caller.key.images_per_minute, count)

    def refund_images(self, caller: Caller, count: int) -> None:
        """Return images that were counted and not made."""
        bucket = None if caller.key is None else self._buckets.get((caller.key.sha256, "images"))
        if bucket is not None:
            bucket.give_back(count)

    def _take(self, key: KeyEntry, kind: str, per_minute: int | None, amount: int) -> None:
        if per_minute is None:
            return
        now, place = self._clock(), (key.sha256, kind)
        bucket = self._buckets.get(place)
        if bucket is None or bucket.per_minute != per_minute:
            bucket = self._buckets[place] = TokenBucket(per_minute, now)
        wait_s = bucket.take(amount, now)
        if wait_s > 0.0:
            raise limited(kind, per_minute, max(1, math.ceil(wait_s)))


def open_access(config: EndpointConfig) -> Access:
    """Return the access that an endpoint's settings ask for; raise ConfigError when the key file is wrong."""
    return Access(None if config.keys is None else KeyRing(config.keys))
