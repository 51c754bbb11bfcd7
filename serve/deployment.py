"""Deploys a Ray Serve application and waits until it answers over HTTP, or reports why it does not."""

from __future__ import annotations

import contextlib
import logging
import socket
import time

import httpx
from ray import serve

from cluster.errors import ClusterError
from cluster.resources import require
from serve.endpoint_config import DRAIN_GRACE_S, EndpointConfig
from serve.surroundings import find_listener, require_purpose

logger = logging.getLogger(__name__)

POLL_S = 0.25
ANY_ADDRESS = ("0.0.0.0", "::")
PROXY_GRACE_S = 10.0
"""How much longer than the application's own time-out the proxy waits, so that the application's answer arrives."""


class DeploymentFailed(ClusterError):
    """The application does not start; the message is the first cause."""


def deploy(application: serve.Application, endpoint: EndpointConfig) -> str:
    """Deploy an application and return its URL once it answers.

    Args:
        application: The Serve application, such as ``serve.app.build`` returns.
        endpoint: Its address, its name, and how long it may take to start.

    Raises:
        ImpossibleResources: No node can hold a replica.
        DeploymentFailed: The port is taken, a replica cannot start, or nothing answers in time.
    """
    deadline = time.monotonic() + endpoint.start_timeout_s
    require({"CPU": endpoint.num_cpus}, "serve.num_cpus")
    require({"GPU": endpoint.num_gpus}, "serve.num_gpus")
    host = "127.0.0.1" if endpoint.host in ANY_ADDRESS else endpoint.host
    url = f"http://{host}:{endpoint.port}{endpoint.route_prefix.rstrip('/')}"
    if not serve.status().proxies:
        _require_free_port(endpoint)
    timeout_s = endpoint.request_timeout_s + PROXY_GRACE_S
    serve.start(http_options={"host": endpoint.host, "port": endpoint.port, "request_timeout_s": timeout_s})
    # Serve that runs already keeps its address.
    require_purpose(endpoint, find_listener())
    serve.run_many(
        [serve.RunTarget(application, name=endpoint.app, route_prefix=endpoint.route_prefix)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    try:
        _wait_until_running(endpoint, deadline)
        _wait_until_answering(url, endpoint, deadline)
    except DeploymentFailed:
        undeploy(endpoint)
        raise
    return url


def undeploy(endpoint: EndpointConfig) -> None:
    """Answer what the application has accepted, and delete it; it is no error when it is not running."""
    application = serve.status().applications.get(endpoint.app)
    if application is not None:
        if application.status.value == "RUNNING":
            _drain(endpoint)
        # Serve stops waiting after a minute and goes on deleting; that must not hide the error that led here.
        with contextlib.suppress(TimeoutError):
            serve.delete(endpoint.app)


def _drain(endpoint: EndpointConfig) -> None:
    """Let no more requests in, and wait until those that are in are answered, as long as one may take."""
    limit_s = endpoint.request_timeout_s + DRAIN_GRACE_S
    try:
        serve.get_app_handle(endpoint.app).broadcast("drain", limit_s).results(timeout_s=limit_s + DRAIN_GRACE_S)
    except Exception:
        # Another application may have the name, or its gateway may have died: it is deleted all the same.
        logger.warning("the endpoint does not say that it is idle; it is deleted as it is", exc_info=True)


def _require_free_port(endpoint: EndpointConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((endpoint.host, endpoint.port))
        except OSError as error:
            raise DeploymentFailed(
                f"{endpoint.host}:{endpoint.port} cannot be used: {error.strerror}",
                field="serve.port",
                fix="stop what listens there, or name another port",
            ) from error


def _wait_until_running(endpoint: EndpointConfig, deadline: float) -> None:
    state = "NOT_STARTED"
    while time.monotonic() < deadline:
        application = serve.status().applications.get(endpoint.app)
        state = "NOT_STARTED" if application is None else str(application.status.value)
        if state == "RUNNING":
            return
        if application is not None and state in ("DEPLOY_FAILED", "UNHEALTHY"):
            causes = [d.message for d in application.deployments.values()] + [application.message]
            raise DeploymentFailed(
                f"it does not start: {_first_cause(causes)}",
                field=f"serve application {endpoint.app!r}",
                fix="fix the cause; the whole traceback is in the replica's log, and in the dashboard under Serve",
            )
        time.sleep(POLL_S)
    raise DeploymentFailed(
        f"it is {state} after {endpoint.start_timeout_s:g} s",
        field="serve.start_timeout_s",
        fix="check 'ray status' for missing resources, or allow more time",
    )


def _wait_until_answering(url: str, endpoint: EndpointConfig, deadline: float) -> None:
    while True:
        try:
            # This machine's own address, whatever it is: no proxy of the environment has a part in it.
            httpx.get(f"{url}/healthz", timeout=5, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError as error:
            if time.monotonic() > deadline:
                raise DeploymentFailed(
                    f"nothing answers at {url}: {error}",
                    field="serve.port",
                    fix=f"Serve may run on another port of this cluster than {endpoint.port}: name that, or shut it down",
                ) from error
        time.sleep(POLL_S)


def _first_cause(messages: list[str]) -> str:
    """Return the last line of a traceback that names an error, or else the first message."""
    for message in messages:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        errors = [
            line for line in lines if line.partition(":")[0].endswith(("Error", "Artifact", "Credentials", "Exception"))
        ]
        if errors:
            return errors[-1]
    return next((message for message in messages if message), "Serve gives no reason")
