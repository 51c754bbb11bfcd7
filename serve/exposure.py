"""Checks that an endpoint is open to others on purpose alone, wherever Serve listens.

The run's config names an address, but it is Serve that binds one: that of ``http_options`` under ``serve deploy`` and in
a RayService, of whoever started Serve first on a shared cluster, and all addresses behind HAProxy by default.
"""

from __future__ import annotations

from typing import Any

import ray

from safety.errors import ConfigError
from serve.endpoint_config import CLOSE, EndpointConfig

CONTROLLER, NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
"""Serve's controller, by the name that Ray gives it; a test on a real Serve holds both."""


def listening_host() -> str | None:
    """Return the address on which the connected cluster's Serve listens; None when Serve does not run there."""
    try:
        controller: Any = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        return None
    return str(ray.get(controller.get_http_config.remote()).host)


def require_purpose(config: EndpointConfig, host: str | None) -> None:
    """Raise ConfigError when an endpoint, on the address where Serve listens, would be open without a word for it."""
    if host is not None and config.opens(host):
        raise ConfigError(
            f"Serve listens on {host}, which others can reach, and no key is asked for",
            field="serve.keys",
            fix=f"{CLOSE}; or have Serve listen on 127.0.0.1 (http_options)",
        )
