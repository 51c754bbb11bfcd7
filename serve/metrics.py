"""The endpoint's metrics for Prometheus (see ``cluster.metrics``); ``docs/grafana/safetydpo.json`` shows them.

Tags never hold a prompt or a key, because metrics are public.
"""

from __future__ import annotations

from cluster.metrics import Counter, Gauge, Histogram
from serve.request_log import RequestRecord

LATENCY_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

REQUESTS = Counter(
    "safetydpo_endpoint_requests_total", "Requests by outcome: ok, or the code of the refusal", ("code",)
)
LATENCY = Histogram("safetydpo_endpoint_latency_seconds", "Seconds to a request's answer", ("code",), LATENCY_S)
WAITING = Gauge("safetydpo_endpoint_waiting", "Requests that wait for a renderer", ())
IMAGES = Counter("safetydpo_endpoint_images_total", "Images returned", ("model",))
WITHHELD = Counter("safetydpo_endpoint_withheld_total", "Images that the output judge withheld", ("model",))
RELOADS = Counter(
    "safetydpo_endpoint_reloads_total", "New releases by outcome: loaded, refused or failed", ("model", "outcome")
)


class RequestMetrics:
    """The observer that counts requests, in the gateway."""

    def observe(self, record: RequestRecord) -> None:
        """Count a request."""
        REQUESTS.add(code=record.code)
        LATENCY.observe(record.latency_s, code=record.code)
        if record.model is not None:
            IMAGES.add(record.images, model=record.model)
            WITHHELD.add(record.withheld, model=record.model)
