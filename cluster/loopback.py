"""Keeps requests to this machine away from proxies: whoever sets ``http_proxy`` seldom sets ``no_proxy`` too."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_PROXY = ("no_proxy", "NO_PROXY")
"""Both spellings, of which some programs read only one."""
EVERYTHING = "*"
REQUEST_TIMEOUT_S = 5.0


def exempted_loopback(environment: Mapping[str, str]) -> dict[str, str]:
    """Return both spellings of ``no_proxy`` as ``environment`` has them, with this machine's loopback added.

    One that is missing takes the entries of the other, which would no longer be read beside it.
    """
    return {
        name: _with_loopback(environment.get(name) or environment.get(other) or "")
        for name, other in (NO_PROXY, NO_PROXY[::-1])
    }


def _with_loopback(value: str) -> str:
    entries = [entry.strip() for entry in value.split(",") if entry.strip()]
    if EVERYTHING in entries:  # Programs know it only when nothing stands beside it.
        return EVERYTHING
    return ",".join([*entries, *(host for host in LOOPBACK if host not in entries)])


def loopback_fault() -> str | None:
    """Return why a request of this process to its own loopback does not arrive there, if so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer_once, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        try:
            # Not urlopen, whose opener is made once and keeps the proxies of then.
            with urllib.request.build_opener().open(url, timeout=REQUEST_TIMEOUT_S):
                return None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            proxies = ", ".join(sorted(set(urllib.request.getproxies()) - {"no"})) or "none"
            return f"a request to {url} does not arrive ({error}); proxies in the environment: {proxies}"


def _answer_once(server: socket.socket) -> None:
    # The server is closed under a request that never came.
    with contextlib.suppress(OSError):
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
