"""Checks of what Serve and its nodes are set to, beside the endpoint's own settings.

The run's config names an address, but it is Serve that binds one: that of ``http_options`` under ``serve deploy`` and in
a RayService, of whoever started Serve first on a shared cluster, and all addresses behind HAProxy by default. So an
endpoint is open to others on purpose alone, wherever it listens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from safety.errors import ConfigError
from serve.endpoint_config import CLOSE, EndpointConfig

CONTROLLER, NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
"""Serve's controller, by the name that Ray gives it; a test on a real Serve holds both."""
NODE_DRAIN, NODE_DRAIN_DEFAULT_S = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30.0
"""How long ``ray start --block`` drains its node after SIGTERM, and Ray's default."""


@dataclass(frozen=True)
class Listener:
    """Where a cluster's Serve listens, and after how long its HTTP servers give up a request (None: never)."""

    host: str
    request_timeout_s: float | None = None


def find_controller() -> Any | None:
    """Return the controller of the connected cluster's Serve; None when it does not run there."""
    try:
        return ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        return None


def find_listener() -> Listener | None:
    """Return what the connected cluster's Serve is set to; None when it does not run there."""
    controller = find_controller()
    if controller is None:
        return None
    found = ray.get(controller.get_http_config.remote())
    return Listener(str(found.host), found.request_timeout_s)


def require_purpose(config: EndpointConfig, listener: Listener | None) -> None:
    """Raise ConfigError when an endpoint would be open to others, where Serve listens, without a word for it."""
    if listener is not None and config.opens(listener.host):
        raise ConfigError(
            f"Serve listens on {listener.host}, which others can reach, and no key is asked for",
            field="serve.keys",
            fix=f"{CLOSE}; or have Serve listen on 127.0.0.1 (http_options)",
        )


def find_short_limits(
    config: EndpointConfig, listener: Listener | None, environment: Mapping[str, str]
) -> Iterator[str]:
    """Yield a sentence for each limit around the endpoint that cuts answers short of ``request_timeout_s``."""
    promised = f"serve.request_timeout_s is {config.request_timeout_s:g}"
    given_up = None if listener is None else listener.request_timeout_s
    if given_up is not None and given_up <= config.request_timeout_s:
        yield f"{promised}, and Serve's HTTP servers give up after {given_up:g} s: raise http_options.request_timeout_s"
    drained = float(environment.get(NODE_DRAIN) or NODE_DRAIN_DEFAULT_S)
    if drained < config.node_drain_s:
        yield (
            f"{promised}, and a node that is told to stop cuts answers off: its Ray needs {NODE_DRAIN}="
            f"{config.node_drain_s:g} in its environment (and a pod's terminationGracePeriodSeconds more), not {drained:g}"
        )
