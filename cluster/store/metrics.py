"""Metrics of the artifact store."""

from __future__ import annotations

from cluster.metrics import Counter

STORE_RETRIES = Counter("safetydpo_store_retries_total", "Requests to the store that were tried again.", ("reason",))
